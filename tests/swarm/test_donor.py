"""A donor with three devices in a real run: what it does is in the record, and adds up."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from protocol.hello import client_version
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from worker.session import Session

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture
def rig(worker_rig: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with worker_rig.open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
def donor(rig: Any, worker_rig: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``donor("pledge", "1", ...)``: what the command answers, decoded."""
    monkeypatch.setitem(worker_rig.ENVIRONMENT, "BARNRAISE_DONOR_HOME", str(rig.home("donor")))
    monkeypatch.setitem(worker_rig.ENVIRONMENT, "BARNRAISE_HOME", str(rig.home("one")))

    def run(*command: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            worker_rig.barnraise("donor", *command, "--json").stdout
        )
        return answer

    return run


def key_of(rig: Any, name: str) -> Identity:
    return Identity.load(rig.home(name) / "worker.key")


async def enrol(link: str, identity: Identity) -> None:
    """A device that is let in under its own key, and does no work."""
    session = await Session.connect(JoinLink.parse(link), identity)
    try:
        await session.enrol(
            wire.Enrolment(
                run_id=session.link.run_id,
                worker=identity.peer_id,
                donor=identity.peer_id,
                client_version=client_version(),
                device=wire.Device(device_class="cpu"),
                client_mode=True,
            )
        )
    finally:
        await session.close()


def test_a_donors_acts_are_recorded_and_its_devices_count_as_one(
    rig: Any, donor: Any, worker_rig: ModuleType
) -> None:
    port = worker_rig.free_port()
    url = f"http://127.0.0.1:{port}"
    # Enough steps that a unit is worth some microcredits.
    sizes = {"max_rounds": 2, "max_steps": 120, "duration_s": 10.0, "min_members": 2}
    rig.init(public_url=url, **sizes)
    rig.serve().wait_for("Serving")
    database = f"sqlite:///{rig.run / 'coordinator.db'}"
    site = rig.start("site", "ledger", "serve", "--db", database, "--listen", f"127.0.0.1:{port}")
    site.wait_for("leaderboard at")

    def shown(path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{url}/{path}", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def shown_after(path: str, leaf: int) -> dict[str, Any]:
        """The page once the site has followed the record so far."""
        while (found := shown(path))["size"] <= leaf:
            time.sleep(0.1)
        return found

    # Two devices of one donor train: one with the key beside it, one with a line that was sent.
    rig.join("one", "--donor")
    first_key = donor("show")["donor"]
    rig.join("two")
    line = donor("add-device", key_of(rig, "two").peer_id, "--for", "30")["line"]
    worker_rig.barnraise("worker", "delegation", line, "--home", str(rig.home("two")))
    devices = [rig.work(name, "--until-finished") for name in ("one", "two")]
    for device in devices:
        enrolled = json.loads(device.wait_for(r'\{.*"event": "enrolled".*\}'))
        assert enrolled["donor"] == first_key

    # While they do, the donor promises, founds a team, and says its name.
    pledged = donor("pledge", "0.000001", "--by", "2099-12-31")
    secret = donor("pledge", "7", "--by", "2099-12-31", "--visibility", "secret")
    donor("withdraw", secret["pledge"])
    team = donor("team", "found", "Owls")["team"]
    donor("profile", "set", "--name", "Ada", "--about", "Zebrafinch")
    assert pledged["url"] == f"{url}/log/{pledged['leaf']}"
    assert [device.wait(200) for device in devices] == [0, 0]

    # A third one had an account of its own; then the donor takes a new key.
    rig.join("three")
    asyncio.run(enrol(rig.link, key_of(rig, "three")))
    merged = donor("merge", "--worker-home", str(rig.home("three")), "--yes")
    rotated = donor("rotate-key", "--yes")
    assert (merged["into"], rotated["old"]) == (first_key, first_key)
    revised = donor("pledge", "0.000002", "--by", "2099-12-31", "--revise", pledged["pledge"])
    before = shown_after(f"api/v1/donors/{first_key}", revised["leaf"])
    erased = donor("profile", "erase", "--yes")

    # Anybody recomputes all of it from the record, from the database and over the web.
    verify = ("ledger", "verify", "--root", JoinLink.parse(rig.link).root, "--json")
    by_database = json.loads(worker_rig.barnraise(*verify, "--db", database).stdout)
    by_web = json.loads(worker_rig.barnraise(*verify, "--url", url).stdout)
    assert by_database["size"] == by_web["size"] > revised["leaf"]
    assert erased["leaf"] is None

    # One person: by any of its keys, under the newest one, with the credit of all devices.
    person = shown_after(f"api/v1/donors/{first_key}", by_web["size"] - 1)
    assert person["donor"]["donor"] == rotated["new"]
    assert set(person["keys"]) == {first_key, rotated["new"], key_of(rig, "three").peer_id}
    trained = [
        receipt["microcredits"]
        for name in ("one", "two")
        for receipt in json.loads(
            worker_rig.barnraise(
                "worker", "receipts", "--home", str(rig.home(name)), "--json"
            ).stdout
        )
    ]
    assert len(trained) == 4
    assert person["donor"]["training_microcredits"] == sum(trained)
    assert person["donor"]["team"] == team

    # A file says the same to whoever has it, and the record's own command agrees.
    file = str(rig.folder / "ada.json")
    donor("certificate", "save", "--out", file)
    root = ("--root", JoinLink.parse(rig.link).root)
    proven = donor("certificate", "check", file, *root)
    worker_rig.barnraise("ledger", "certificate", "check", file, *root)
    assert proven["subject"] == rotated["new"]
    assert proven["credits"] >= len(trained)  # what both reduced is credited, too
    for status in ("pending_microcredits", "final_microcredits"):
        assert proven[status] == person["donor"][status]

    # Its pledge is delivered by what both did after it, its team counts the same.
    (listed,) = person["pledges"]
    assert (listed["pledge"], listed["microcredits"]) == (pledged["pledge"], 2)
    assert 0 < listed["delivered_microcredits"] <= sum(trained)
    assert (before["donor"]["name"], before["about"]) == ("Ada", "Zebrafinch")
    assert person["donor"]["name"] is None
    assert not person["about"]
    told = shown("profiles")
    assert not set(person["keys"]) & {row["donor"] for row in told["profiles"]}
    assert set(person["keys"]) <= {row["subject"] for row in told["erased"]}
