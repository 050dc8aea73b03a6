"""Workers are killed around every durable write, and started again by the same command.

In the end each is told to end in another way while it works, and leaves nothing.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from chaos_points_worker import WRITES
from chaos_worker import (
    FIRED,
    Rig,
    check_receipts,
    check_record,
    events,
    fault,
    open_rig,
    wait_for_receipts,
)

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(900)]

POINTS = [f"{side} {name}" for name in (*WRITES, "adopt_update") for side in ("before", "after")]
WORKERS = ("ada", "bob", "cyn")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        yield opened


def trained(rig: Rig, name: str) -> set[bytes]:
    """Units that the journal of a dead worker calls trained, or has a signed record of."""
    with closing(sqlite3.connect(rig.home(name) / "journal.db")) as journal:
        rows = journal.execute("SELECT assignment_id FROM lease WHERE contribution IS NOT NULL")
        return {bytes(row[0]) for row in rows}


def walk(rig: Rig, name: str, points: list[str]) -> set[bytes]:
    """Die at one point after the other; the units that were trained then."""
    units: set[bytes] = set()
    for number, point in enumerate(points, 1):
        worker = rig.work(name, faults=[fault(point, "kill")])
        worker.wait_for(FIRED, 300, count=number)
        assert worker.popen.wait(60) == -9
        assert events(worker.text(), "fault_fired")[-1]["point"] == point
        units |= trained(rig, name)
    return units


def test_killed_around_every_durable_write(rig: Rig) -> None:
    # Time for a restart on a busy machine; a round closes as soon as all have committed.
    rig.init(max_steps=4, min_members=1, max_rounds=500, duration_s=60.0, grace_s=10.0)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    for name in WORKERS:
        rig.join(name)
    with ThreadPoolExecutor() as pool:
        walks = [
            pool.submit(walk, rig, name, POINTS[number :: len(WORKERS)])
            for number, name in enumerate(WORKERS)
        ]
        units = set().union(*(each.result() for each in walks))

    # Now without faults: each asks for the receipts that it is due, begins a unit, and ends.
    before = [len(events((rig.folder / f"{n}.log").read_text(), "training")) for n in WORKERS]
    workers = [rig.work(name) for name in WORKERS]
    for worker, known in zip(workers, before, strict=True):
        worker.wait_for('"event": "training"', count=known + 1)
    due = {name: wait_for_receipts(rig, name) for name in WORKERS}
    finishing, stopping, terminated = workers
    finishing.signal(signal.SIGINT)
    stopping.signal(signal.SIGINT)
    stopping.wait_for("finishing this unit")
    stopping.signal(signal.SIGINT)
    terminated.signal(signal.SIGTERM)
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert [worker.leftovers() for worker in workers] == [[], [], []]

    committed = {bytes(row[0]) for row in rig.rows("SELECT assignment_id FROM contributions")}
    given_up = {
        bytes(row[0])
        for row in rig.rows("SELECT assignment_id FROM assignments WHERE status = 'expired'")
    }
    assert len(units) >= len(WORKERS)
    assert units <= committed | given_up
    check_record(rig)
    for name in WORKERS:
        check_receipts(rig, name, due[name])
