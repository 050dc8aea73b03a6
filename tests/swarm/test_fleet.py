"""Two devices of one machine in a real run: one donor, one command, one status."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from worker.energy_book import EnergyBook

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture
def rig(worker_rig: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # A short path: the members' control sockets lie two folders down, and pytest's are long.
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        monkeypatch.setitem(
            worker_rig.ENVIRONMENT, "BARNRAISE_DONOR_HOME", str(Path(folder) / "donor")
        )
        with worker_rig.open_rig(Path(folder)) as opened:
            yield opened


def told(process: Any, event: str) -> list[dict[str, Any]]:
    """What a process logged of one kind."""
    lines = [line for line in process.text().splitlines() if line.startswith("{")]
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def test_both_devices_are_credited_to_one_donor(rig: Any, worker_rig: ModuleType) -> None:
    barnraise = worker_rig.barnraise
    home = rig.home("machine")
    place = ("--home", str(home))
    rig.init(max_rounds=3, min_members=2)
    rig.serve().wait_for("Serving")
    joining = (
        "--devices",
        "cpu,cpu",
        "--dedicated",
        "--threads",
        "2",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
    )
    joined = barnraise("worker", "join", rig.link, *place, "--yes", *joining)
    assert "cpu-0" in joined.stdout
    keys = {
        name: worker_rig.Identity.load(home / "devices" / name / "worker.key").peer_id
        for name in ("cpu-0", "cpu-1")
    }
    donor = worker_rig.Identity.load(rig.home("donor") / "donor.key").peer_id

    # The first one's meter told something in an earlier life; the owner wants it known.
    settings = home / "worker.toml"
    settings.write_text(
        settings.read_text().replace("publish_energy = false", "publish_energy = true")
    )
    measured = EnergyBook(total_j=9000.0, verified_j=7200.0, verified_tokens=50_000)
    measured.save(home / "devices" / "cpu-0" / "energy.json")

    machine = rig.start("machine", "worker", "run", *place, "--json-logs", "--until-finished")
    machine.wait_for('"committed"', count=2)
    status = json.loads(barnraise("worker", "status", *place, "--json").stdout)
    assert {one["worker"] for one in status["members"]} == set(keys.values())
    assert [one["device"] for one in status["members"]] == ["cpu", "cpu"]
    children = psutil.Process(machine.popen.pid).children(recursive=True)

    # One of them is killed: it comes back by itself, and the other never noticed.
    (pid,) = [
        entry["pid"] for entry in told(machine, "member started") if entry["member"] == "cpu-1"
    ]
    os.kill(pid, 9)
    machine.wait_for('"member started"', count=3)
    assert machine.wait(250) == 0
    assert not [child for child in children if child.is_running()]

    enrolled = told(machine, "enrolled")
    assert {entry["donor"] for entry in enrolled} == {donor}
    assert {entry["worker"] for entry in enrolled} == set(keys.values())
    assert {entry["member"] for entry in told(machine, "committed")} == set(keys)
    died = told(machine, "member died")
    assert [(entry["member"], entry["how"]) for entry in died] == [("cpu-1", "signal SIGKILL")]
    receipts = json.loads(barnraise("worker", "receipts", *place, "--json").stdout)
    each = [
        json.loads(
            barnraise("worker", "receipts", "--home", str(home / "devices" / name), "--json").stdout
        )
        for name in keys
    ]
    assert all(any(row["state"] == "verified" for row in rows) for rows in each)
    assert len(receipts) == sum(map(len, each))
    with closing(sqlite3.connect(rig.run / "coordinator.db")) as database:
        told_energy = database.execute("SELECT worker, donor, milliwatt_hours FROM device_energy")
        assert told_energy.fetchall() == [(keys["cpu-0"], donor, 2000)]
