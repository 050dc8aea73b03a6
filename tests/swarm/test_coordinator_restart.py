"""The coordinator is killed in the middle of a round, and comes back: nothing trained is lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

ORPHAN_PATIENCE_S = 30.0
TRAINING = '"event": "training"'
COMMITTED = '"event": "committed"'


@pytest.fixture
def rig(worker_rig: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with worker_rig.open_rig(tmp_path) as opened:
        yield opened


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def kill_without_orphans(process: Any) -> None:
    """kill -9; what it had started must end by itself."""
    children = psutil.Process(process.popen.pid).children(recursive=True)
    assert children
    os.kill(process.popen.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(children, timeout=ORPHAN_PATIENCE_S)[1] == []


@contextmanager
def stopped(process: Any) -> Iterator[None]:
    """A process that stands still; its children go on."""
    process.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.popen.send_signal(signal.SIGCONT)


def start_two(rig: Any, **settings: Any) -> tuple[Any, Any, Any]:
    """Coordinator and two workers, both in the middle of their first units."""
    rig.init(max_steps=100_000, min_members=2, max_rounds=2, **settings)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    rig.join("bob", "--client-mode")
    ada, bob = (rig.work(name, "--until-finished") for name in ("ada", "bob"))
    for worker in (ada, bob):
        worker.wait_for(TRAINING)
    return coordinator, ada, bob


def rows(rig: Any, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{rig.run}/coordinator.db?mode=ro", uri=True)) as database:
        return list(database.execute(sql))


def check_record(rig: Any, barnraise: Callable[..., Any], *workers: Any) -> None:
    """One state everywhere, a record that verifies, and every sequence merged once."""
    server = (rig.folder / "coordinator.log").read_text()
    settled = [event["state"] for event in events(server, "round_settled")]
    assert len(settled) == 2
    for worker in workers:
        steps = [event["state"] for event in events(worker.text(), "outer step made")]
        assert steps == settled[-len(steps) :]
        assert steps[-1] == settled[-1]
    database = f"sqlite:///{rig.run}/coordinator.db"
    root = rig.link.rsplit("root=", 1)[1]
    assert barnraise("ledger", "verify", "--db", database, "--root", root).returncode == 0
    merged = rows(
        rig,
        "SELECT a.epoch, a.start_batch, c.steps, c.tokens FROM assignments a "
        "JOIN contributions c USING (assignment_id) WHERE a.status = 'merged'",
    )
    batches = [(epoch, start + i) for epoch, start, steps, _ in merged for i in range(steps)]
    assert len(batches) == len(set(batches))
    (consumed,) = rows(rig, "SELECT sum(stop - start) FROM intervals WHERE state = 'consumed'")
    assert consumed == (len(batches),)
    (tokens,) = rows(rig, "SELECT max(merged_tokens) FROM states")
    assert tokens == (sum(row[3] for row in merged),)


def test_killed_while_its_workers_train(rig: Any, worker_rig: ModuleType) -> None:
    coordinator, ada, bob = start_two(rig, duration_s=5.0, grace_s=20.0)
    kill_without_orphans(coordinator)
    coordinator = rig.serve()
    assert (ada.wait(200), bob.wait(60)) == (0, 0)

    # The round that was open went on: what was trained while nobody was there was merged.
    assert events(coordinator.text(), "round_resumed")[0]["round"] == 0
    assert rows(rig, "SELECT phase, members FROM rounds WHERE number = 0") == [("SETTLED", 2)]
    check_record(rig, worker_rig.barnraise, ada, bob)


def test_killed_between_the_commits(rig: Any, worker_rig: ModuleType) -> None:
    coordinator, ada, bob = start_two(rig, duration_s=5.0, grace_s=20.0)
    with stopped(ada):  # her trainer goes on, but nobody hears of it
        bob.wait_for(COMMITTED)
        assert rows(rig, "SELECT status FROM assignments ORDER BY status") == [
            ("committed",),
            ("training",),
        ]
        kill_without_orphans(coordinator)
        coordinator = rig.serve()
        coordinator.wait_for("Serving", count=2)
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    assert rows(rig, "SELECT phase, members FROM rounds WHERE number = 0") == [("SETTLED", 2)]
    check_record(rig, worker_rig.barnraise, ada, bob)


def test_killed_right_after_the_inclusion_set(rig: Any, worker_rig: ModuleType) -> None:
    coordinator, ada, bob = start_two(rig, duration_s=3.0, grace_s=20.0)
    # Wherever it dies in the moments after that, the round goes on from there.
    coordinator.wait_for("inclusion_signed")
    kill_without_orphans(coordinator)
    rig.serve()
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    assert rows(rig, "SELECT phase, members FROM rounds WHERE number = 0") == [("SETTLED", 2)]
    check_record(rig, worker_rig.barnraise, ada, bob)
