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
    """A coordinator and two workers."""
    rig.init(overlap="lag1", min_members=2, **settings)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    rig.join("bob", "--client-mode")
    ada, bob = (rig.work(name, "--until-finished") for name in ("ada", "bob"))
    return coordinator, ada, bob


def check(rig: Any, worker_rig: ModuleType, rounds: int, *workers: Any) -> None:
    """One state everywhere, a record that verifies, every unit merged and audited."""
    settled = [e["state"] for e in events((rig.folder / "coordinator.log").read_text(), SETTLED)]
    assert len(settled) == rounds
    for worker in workers:
        steps = [event["state"] for event in events(worker.text(), STEP)]
        assert steps == settled[-len(steps) :]
        assert steps[-1] == settled[-1]
    phases = rows(rig, "SELECT phase, members, settled_rounds, settled_after FROM rounds")
    assert phases[:rounds] == [
        ("SETTLED", 2, max(0, number - 1), number + 1) for number in range(rounds)
    ]
    database = f"sqlite:///{rig.run}/coordinator.db"
    root = rig.link.rsplit("root=", 1)[1]
    verified = worker_rig.barnraise("ledger", "verify", "--db", database, "--root", root)
    assert verified.returncode == 0


SETTLED, STEP, LEASED = "round_settled", "outer step made", "leased"


def test_members_train_on_while_the_round_before_is_reduced(
    rig: Any, worker_rig: ModuleType
) -> None:
    coordinator, ada, bob = start(rig, max_rounds=3, max_steps=30, duration_s=10.0)
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    check(rig, worker_rig, 3, ada, bob)

    # What is leased of a round comes before the settle of the one before: nobody waited for it.
    order = [(e["event"], e["round"]) for e in events(coordinator.text(), LEASED, SETTLED)]
    assert order.index((LEASED, 1)) < order.index((SETTLED, 0))
    for text in (ada.text(), bob.text()):
        done = events(text, "training", "reduce begins", STEP)
        order = [(event["event"], event["round"]) for event in done]
        assert order.index(("training", 1)) < order.index((STEP, 0))
        # The state of the next round is one's own step: nothing is downloaded again.
        assert len(events(text, "state fetched")) <= 2
    for name in ("ada", "bob"):
        home = str(rig.home(name))
        listed = worker_rig.barnraise("worker", "receipts", "--home", home, "--json")
        assert [receipt["state"] for receipt in json.loads(listed.stdout)] == ["verified"] * 3


def test_a_member_and_the_coordinator_are_killed_in_the_overlap(
    rig: Any, worker_rig: ModuleType
) -> None:
    coordinator, ada, bob = start(
        rig, max_rounds=2, max_steps=100_000, duration_s=5.0, grace_s=30.0
    )
    # Round 0 is being gathered, and both train round 1.
    ada.wait_for(r'"event": "training".*"round": 1|"round": 1.*"event": "training"')
    os.kill(ada.popen.pid, signal.SIGKILL)
    os.kill(coordinator.popen.pid, signal.SIGKILL)
    ada.wait()
    coordinator.wait()
    rig.serve()
    ada = rig.work("ada", "--until-finished")
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    check(rig, worker_rig, 2, bob)
    assert rows(rig, "SELECT status, count(*) FROM assignments GROUP BY status") == [("merged", 4)]
