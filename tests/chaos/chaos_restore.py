"""A run of real processes whose coordinator is lost, moved or given other keys on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

ORPHAN_PATIENCE_S = 30.0
SETTLED = '"event": "round_settled"'
ROUNDS = 8


def worker_rig() -> ModuleType:
    """``tests/swarm/worker_rig.py``."""
    if "worker_rig" not in sys.modules:
        path = Path(__file__).parents[1] / "swarm" / "worker_rig.py"
        spec = importlib.util.spec_from_file_location("worker_rig", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["worker_rig"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["worker_rig"]


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


def rows(rig: Any, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{rig.run}/coordinator.db?mode=ro", uri=True)) as database:
        return list(database.execute(sql))


def start_two(rig: Any, rounds: int = ROUNDS) -> tuple[Any, Any, Any]:
    """Two members whose units are short, in rounds that wait for both as long as it takes."""
    rig.init(max_steps=40, min_members=2, max_rounds=rounds, duration_s=600.0)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    rig.join("bob", "--client-mode")
    return coordinator, *(rig.work(name, "--until-finished") for name in ("ada", "bob"))


@contextmanager
def mid_round(coordinator: Any, ada: Any, bob: Any) -> Iterator[int]:
    """A round in which bob has committed and ada cannot: her trainer stands still, she does not."""
    coordinator.wait_for(SETTLED)
    trainer = next(
        child
        for child in psutil.Process(ada.popen.pid).children(recursive=True)
        if any("trainer_process" in part for part in child.cmdline())
    )
    trainer.suspend()
    try:
        # A round closes only with both, so the open one is the one that she holds up.
        settled = len(events(coordinator.text(), "round_settled"))
        while events(bob.text(), "committed")[-1]["round"] < settled:
            settled = len(events(coordinator.text(), "round_settled"))
            time.sleep(0.05)
        yield settled
    finally:
        trainer.resume()


def back_up_in_mid_round(rig: Any, barnraise: Any, coordinator: Any, ada: Any, bob: Any) -> Path:
    """Under load, with rounds before and after it."""
    out: Path = rig.folder / "backups"
    with mid_round(coordinator, ada, bob) as round_:
        done = barnraise(
            "coordinator", "backup", "--run-dir", str(rig.run), "--out", str(out), "--json"
        )
        assert json.loads(done.stdout)["round"] == round_
    coordinator.wait_for(SETTLED, count=round_ + 1)  # it will be lost
    return out


def lose(rig: Any, coordinator: Any) -> None:
    kill_without_orphans(coordinator)
    shutil.rmtree(rig.run)


def check_merged_once(rig: Any, barnraise: Any, *workers: Any) -> None:
    """One state everywhere, a record that verifies, every sequence merged once in this history."""
    (state,) = rows(rig, "SELECT hex(digest) FROM states ORDER BY settled_rounds DESC LIMIT 1")
    for worker in workers:
        assert events(worker.text(), "outer step made")[-1]["state"] == state[0][:16].lower()
    root = rig.link.rsplit("root=", 1)[1]
    database = f"sqlite:///{rig.run}/coordinator.db"
    report = barnraise("ledger", "verify", "--db", database, "--root", root, "--json")
    (tokens,) = rows(rig, "SELECT max(merged_tokens) FROM states")
    assert json.loads(report.stdout)["merged_tokens"] == tokens[0]
    merged = rows(
        rig,
        "SELECT a.epoch, a.start_batch, c.steps, c.tokens FROM assignments a "
        "JOIN contributions c USING (assignment_id) WHERE a.status = 'merged'",
    )
    batches = [(epoch, start + i) for epoch, start, steps, _ in merged for i in range(steps)]
    assert len(batches) == len(set(batches))
    (consumed,) = rows(rig, "SELECT sum(stop - start) FROM intervals WHERE state = 'consumed'")
    assert consumed == (len(batches),)
    assert tokens == (sum(row[3] for row in merged),)


def check_restored(rig: Any, restored: dict[str, Any]) -> None:
    """No number of a round was used twice, and the record says what happened."""
    numbers = [number for (number,) in rows(rig, "SELECT number FROM rounds ORDER BY number")]
    lost, following = restored["lost_round"], restored["next_round"]
    assert not [number for number in numbers if lost < number < following]
    assert next(number for number in numbers if number >= following) == following
    assert rows(rig, "SELECT count(*) FROM log_leaf WHERE kind = 'restore'") == [(1,)]
