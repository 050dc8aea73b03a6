"""The reduce of a real run, while senders and reducers die at every step of it.

One run, one victim: in each round it dies at another point, and comes back. Three honest workers,
one of them without an inbound port, and the anchor go on. Every fault fires at a named point of
the victim's process.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chaos_faulty import program
from worker_rig import barnraise, open_rig

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

HONEST = ("ada", "bob", "cyd")
DEATHS: tuple[dict[str, Any], ...] = (
    # A sender before, during and after GATHER. It reduces too: it is reachable.
    {"point": "committed", "do": "kill"},
    {"point": "gather.chunk", "do": "kill", "nth": 3},
    {"point": "gather.end", "do": "kill"},
    # A reducer in the middle of GATHER, in the middle of BROADCAST, and before it has delivered.
    {"point": "reducer.keep", "do": "kill", "nth": 4},
    {"point": "reducer.combine", "do": "kill", "nth": 2},
    {"point": "reducer.submit", "do": "kill"},
)
BREAKS: tuple[dict[str, Any], ...] = (
    {"point": "reducer.receive", "do": "break", "nth": 2},
    {"point": "reducer.serve", "do": "break"},
)
STANDSTILL: dict[str, Any] = {"point": "reducer.combine", "do": "stop"}
_POLL_S = 0.1


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_rig(tmp_path_factory.mktemp("losses")) as opened:
        # Long enough for everybody to be leased a unit before anybody commits.
        opened.init(max_steps=40, duration_s=60.0, grace_s=60.0, min_members=2, max_rounds=10_000)
        opened.coordinator = opened.serve()
        opened.coordinator.wait_for("Serving")
        for name in HONEST:
            opened.join(name, *(("--client-mode",) if name == "bob" else ()))
            opened.work(name)
        opened.join("vic")
        yield opened


def events(log: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def look(rig: Any, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{rig.run}/coordinator.db?mode=ro", uri=True)) as database:
        return list(database.execute(sql, values))


def fired(victim: Any, count: int = 1) -> int:
    """Wait for the fault; the round in which it fired."""
    victim.wait_for('"fault_fired"', 200.0, count=count)
    return max(event["round"] for event in events(victim.log, "training"))


def outcome(rig: Any, round_: int) -> tuple[int, int]:
    """Wait until a round is over; its members and attempts."""
    end_s = time.monotonic() + 200.0
    while time.monotonic() < end_s and rig.coordinator.popen.poll() is None:
        ((phase, members),) = look(
            rig, "SELECT phase, members FROM rounds WHERE number = ?", round_
        )
        assert phase != "SKIPPED"
        if phase == "SETTLED":
            ((attempts,),) = look(rig, "SELECT count(*) FROM rosters WHERE round = ?", round_)
            return members, attempts
        time.sleep(_POLL_S)
    raise AssertionError(f"round {round_} did not end:\n{rig.coordinator.text()[-3000:]}")


def test_a_victim_dies_at_every_step_and_no_round_is_lost(rig: Any) -> None:
    for death in DEATHS:
        victim = rig.work("vic", program=program("chaos_points_reduce", death))
        died_in = fired(victim)
        assert victim.wait() == -signal.SIGKILL
        members, attempts = outcome(rig, died_in)
        assert members in (len(HONEST), len(HONEST) + 1), death
        assert attempts <= 2, death
        victim.log.unlink()


def test_streams_that_break_are_resumed(rig: Any) -> None:
    victim = rig.work("vic", program=program("chaos_points_reduce", *BREAKS))
    broke_in = fired(victim, len(BREAKS))
    assert outcome(rig, broke_in) == (len(HONEST) + 1, 1)
    victim.end()
    victim.log.unlink()


def test_a_reducer_that_stands_still_is_done_without(rig: Any) -> None:
    victim = rig.work("vic", program=program("chaos_points_reduce", STANDSTILL))
    stood_in = fired(victim)
    members, attempts = outcome(rig, stood_in)
    assert members in (len(HONEST), len(HONEST) + 1)
    assert attempts == 2
    victim.popen.send_signal(signal.SIGCONT)
    # It finds the round over without it, and works again.
    victim.wait_for('"event": "committed"', 200.0, count=2)
    victim.end()


def test_in_the_end_all_agree_and_nothing_was_lost_or_merged_twice(rig: Any) -> None:
    for process in rig.processes[1:]:
        process.end()
    assert look(rig, "SELECT count(*) FROM reports WHERE agrees = 0") == [(0,)]
    settled = {e["round"]: e["state"] for e in events(rig.coordinator.log, "round_settled")}
    for name in HONEST:
        steps = events(rig.folder / f"{name}.log", "outer step made")
        assert len(steps) > len(DEATHS)
        assert [e["state"] for e in steps] == [settled[e["round"]] for e in steps]
    merged = look(
        rig,
        "SELECT a.epoch, a.start_batch, c.steps FROM assignments a "
        "JOIN contributions c USING (assignment_id) WHERE a.status = 'merged'",
    )
    batches = [(epoch, start + i) for epoch, start, steps in merged for i in range(steps)]
    assert len(batches) == len(set(batches))
    database = f"sqlite:///{rig.run}/coordinator.db"
    root = rig.link.rsplit("root=", 1)[1]
    assert barnraise("ledger", "verify", "--db", database, "--root", root).returncode == 0
