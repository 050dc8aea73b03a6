"""A real run with ``overlap = lag1``: training goes on while the round before is reduced."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


SETTLED, STEP = "round_settled", "outer step made"
TRAINING = r'{{"round": {}, .*"event": "training"'


@pytest.fixture
def rig(worker_rig: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with worker_rig.open_rig(tmp_path) as opened:
        yield opened


def events(text: str, *names: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") in names]


def rows(rig: Any, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{rig.run}/coordinator.db?mode=ro", uri=True)) as database:
        return list(database.execute(sql))


def start(rig: Any, **settings: Any) -> tuple[Any, Any, Any]:
    """A coordinator and two workers, both in the middle of their first units."""
    settings |= {"overlap": "lag1", "outer_learning_rate": 0.4, "outer_momentum": 0.0}
    # A round closes early, with the second commit: its times are for machines that are busy.
    settings |= {"min_members": 2, "max_steps": 300, "duration_s": 90.0, "gather_s": 60.0}
    rig.init(**settings, reducer_passes=10)  # nobody but the anchor may reduce
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    rig.join("bob", "--client-mode")
    ada, bob = (rig.work(name, "--until-finished") for name in ("ada", "bob"))
    for worker in (ada, bob):
        worker.wait_for(TRAINING.format(0))
    return coordinator, ada, bob


def hold_reduce(coordinator: Any) -> int:
    """The anchor stands still, and with it every reduce.

    Returns:
        Its process.
    """
    started = events(coordinator.text(), "child_started")
    (pid,) = (int(event["pid"]) for event in started if event["child"] == "anchor")
    os.kill(pid, signal.SIGSTOP)
    return pid


def check(rig: Any, worker_rig: ModuleType, *workers: Any) -> None:
    """Two rounds with all that was trained, one state everywhere, a record that verifies."""
    settled = [e["state"] for e in events((rig.folder / "coordinator.log").read_text(), SETTLED)]
    assert len(settled) == 2
    for worker in workers:
        steps = [event["state"] for event in events(worker.text(), STEP)]
        assert steps == settled[-len(steps) :]
        assert steps[-1] == settled[-1]
    phases = rows(rig, "SELECT phase, members, settled_rounds, settled_after FROM rounds")
    # Both were trained from the first state: nobody waited for the second.
    assert phases[:2] == [("SETTLED", 2, 0, 1), ("SETTLED", 2, 0, 2)]
    assert rows(rig, "SELECT status, count(*) FROM assignments GROUP BY status") == [("merged", 4)]
    database = f"sqlite:///{rig.run}/coordinator.db"
    root = rig.link.rsplit("root=", 1)[1]
    verified = worker_rig.barnraise("ledger", "verify", "--db", database, "--root", root)
    assert verified.returncode == 0


def test_members_train_on_while_the_round_before_is_reduced(
    rig: Any, worker_rig: ModuleType
) -> None:
    coordinator, ada, bob = start(rig, max_rounds=2)
    anchor = hold_reduce(coordinator)
    for worker in (ada, bob):
        worker.wait_for(TRAINING.format(1))
    assert not events(coordinator.text(), SETTLED)
    os.kill(anchor, signal.SIGCONT)
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    check(rig, worker_rig, ada, bob)
    for name, worker in (("ada", ada), ("bob", bob)):
        # The state of the next round is one's own step: nothing is downloaded again.
        assert len(events(worker.text(), "state fetched")) <= 2
        home = str(rig.home(name))
        listed = worker_rig.barnraise("worker", "receipts", "--home", home, "--json")
        assert [receipt["state"] for receipt in json.loads(listed.stdout)] == ["verified"] * 2


def test_a_member_and_the_coordinator_are_killed_in_the_overlap(
    rig: Any, worker_rig: ModuleType
) -> None:
    coordinator, ada, bob = start(rig, max_rounds=2)
    anchor = hold_reduce(coordinator)
    ada.wait_for(TRAINING.format(1))
    for process in (ada, coordinator):
        os.kill(process.popen.pid, signal.SIGKILL)
        process.wait()
    os.kill(anchor, signal.SIGCONT)  # it has been told to end
    coordinator = rig.serve()
    ada = rig.work("ada", "--until-finished")
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    assert [event["round"] for event in events(coordinator.text(), "round_resumed")] == [0, 1]
    check(rig, worker_rig, ada, bob)
