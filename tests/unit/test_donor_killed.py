"""A donor's command that is killed at one exact point, and given again: done once, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.donor.home import DonorHome

_CHAOS = Path(__file__).parents[1] / "chaos" / "chaos_process.py"


class Donor:
    """A donor's folder and its commands as processes."""

    def __init__(self, folder: Path, link: str) -> None:
        self.home = DonorHome(folder)
        self.link = link
        self.home.prepare()
        self.home.make_key(self.home.key)

    async def run(self, *command: str, fault: dict[str, Any] | None = None) -> tuple[int, str]:
        program = [str(_CHAOS), "--points", "chaos_points_donor", "--fault", json.dumps(fault)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *([*program, "--"] if fault else ["-m", "barnraise"]),
            *("donor", *command, "--home", str(self.home.path), "--link", self.link),
            env={**os.environ, "BARNRAISE_HOME": str(self.home.path / "no-worker")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode() + (err.decode() if process.returncode else "")

    async def killed(self, point: str, nth: int, *command: str) -> None:
        fault = {"point": point, "do": "kill", "nth": nth}
        status, said = await self.run(*command, fault=fault)
        assert status == -signal.SIGKILL, said

    async def done(self, *command: str) -> dict[str, Any]:
        status, said = await self.run(*command, "--json")
        assert status == 0, said
        answer: dict[str, Any] = json.loads(said)
        return answer


@pytest.fixture
def donor(office: Any, tmp_path: Path) -> Donor:
    return Donor(tmp_path / "donor", str(office.link))


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("key written", 1),
        ("folder synced", 1),  # the next key has its name
        ("answered", 1),
        ("before the key is used", 1),
        ("folder synced", 2),  # the old key is kept
        ("folder synced", 3),  # the next key is the key, and nobody was told
    ],
)
async def test_a_rotation_loses_no_key_and_happens_once(
    office: Any, donor: Donor, point: str, nth: int
) -> None:
    old = Identity.load(donor.home.key).peer_id
    await donor.killed(point, nth, "rotate-key", "--yes")
    assert Identity.load(donor.home.key)  # at every moment

    answer = await donor.done("rotate-key", "--yes")

    (change,) = office.records(wire.KeyChange)
    assert (change.old, answer["old"]) == (old, old)
    assert change.new == answer["new"] == Identity.load(donor.home.key).peer_id
    assert donor.home.key_of(old) is not None
    assert answer["leaf"] == 100
    assert not donor.home.next_key.exists()


@pytest.mark.parametrize("point", ["after sign", "answered"])
async def test_a_pledge_is_made_once(office: Any, donor: Donor, point: str) -> None:
    command = ("pledge", "2", "--by", "2099-12-31", "--visibility", "secret")
    await donor.killed(point, 1, *command)
    answer = await donor.done(*command)
    (pledge,) = office.records(wire.Pledge)
    assert (answer["pledge"], answer["leaf"]) == (pledge.pledge.hex(), 100)
    assert (pledge.microcredits, pledge.visibility) == (2_000_000, wire.VISIBILITY_SECRET)


@pytest.mark.parametrize(("point", "nth"), [("after recorded", 1), ("after recorded", 2)])
async def test_a_team_is_founded_once_and_has_its_name_and_founder(
    office: Any, donor: Donor, point: str, nth: int
) -> None:
    await donor.killed(point, nth, "team", "found", "Owls")
    answer = await donor.done("team", "found", "Owls")
    (team,) = office.records(wire.TeamFounding)
    (member,) = office.records(wire.TeamMembership)
    assert member.team == team.team == bytes.fromhex(answer["team"])
    assert {(p.team, p.display_name) for p in office.records(wire.ProfileUpdate)} == {
        (team.team, "Owls")
    }
