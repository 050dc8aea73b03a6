"""The coordinator dies under real workers: they do what they can without it, and lose nothing."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import worker_rig

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
COORDINATOR_POINTS, MEMBER_POINTS = "chaos_points_coordinator", "chaos_points_member"


def program(points: str, **fault: Any) -> tuple[str, ...]:
    """The real command, in which this goes wrong."""
    chaos = str(HERE / "chaos_process.py")
    return (chaos, "--points", points, "--fault", json.dumps(fault), "--")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Any]:
    with worker_rig.open_rig(tmp_path) as opened:
        opened.init(max_steps=200, min_members=2, max_rounds=2, duration_s=10.0, grace_s=20.0)
        yield opened


def join(rig: Any) -> None:
    """Two workers, and an anchor that does not end with the coordinator."""
    home = ("--home", str(rig.home("anchor")), "--listen", "/ip4/127.0.0.1/tcp/0")
    key = ("--identity", str(rig.run / "keys" / "anchor.key"))
    rig.start("anchor", "worker", "anchor", "--link", rig.link, *home, *key, "--json-logs")
    rig.join("ada")
    rig.join("bob", "--client-mode")


def serve_alone(rig: Any, **how: Any) -> Any:
    """Without an anchor of its own: that would die with it."""
    serve = ("coordinator", "serve", "--run-dir", str(rig.run), "--no-anchor")
    return rig.start("coordinator", *serve, **how)


def rows(rig: Any, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{rig.run}/coordinator.db?mode=ro", uri=True)) as database:
        return list(database.execute(sql))


def states(log: str, event: str) -> list[str]:
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["state"] for line in found if line.get("event") == event]


def check(rig: Any) -> None:
    """Both rounds settled with both members; nothing was lost or merged twice."""
    assert rows(rig, "SELECT phase, members FROM rounds WHERE number < 2 ORDER BY number") == [
        ("SETTLED", 2),
        ("SETTLED", 2),
    ]
    assert rows(rig, "SELECT DISTINCT status FROM assignments") == [("merged",)]
    (merged,) = rows(rig, "SELECT sum(steps) FROM contributions")
    assert rows(rig, "SELECT sum(stop - start) FROM intervals WHERE state = 'consumed'") == [merged]
    settled = states((rig.folder / "coordinator.log").read_text(), "round_settled")
    for name in ("ada", "bob"):
        made = states((rig.folder / f"{name}.log").read_text(), "outer step made")
        assert made[-1] == settled[-1] and set(made) <= set(settled)
    database = f"sqlite:///{rig.run}/coordinator.db"
    root = rig.link.rsplit("root=", 1)[1]
    assert worker_rig.barnraise("ledger", "verify", "--db", database, "--root", root)


def test_a_reduce_is_finished_without_it(rig: Any) -> None:
    coordinator = serve_alone(rig)
    coordinator.wait_for("Serving")
    join(rig)
    stop = program(MEMBER_POINTS, point="inclusion.taken", do="stop")
    members = [rig.work(name, "--until-finished", program=stop) for name in ("ada", "bob")]
    for member in members:
        member.wait_for("fault_fired")  # it holds the inclusion set, and stands still
    coordinator.popen.kill()
    coordinator.wait()
    for member in members:
        member.popen.send_signal(signal.SIGCONT)
    for member in members:
        member.wait_for("outer step made")
    serve_alone(rig)
    assert [member.wait(200) for member in members] == [0, 0]
    check(rig)
    assert rows(rig, "SELECT max(attempt) FROM rosters WHERE round = 0") == [(1,)]


@pytest.mark.parametrize(
    "fault",
    [
        {"point": "inclusion.signing", "where": {"round": 0}},  # signed, and not committed
        {"point": "result.kept", "where": {"round": 0}},  # its last results are not, either
        {"point": "state.saved", "nth": 2},  # in the middle of the first settle
    ],
    ids=["inclusion", "results", "settle"],
)
def test_killed_in_a_reduce(rig: Any, fault: dict[str, Any]) -> None:
    coordinator = serve_alone(rig, program=program(COORDINATOR_POINTS, do="kill", **fault))
    coordinator.wait_for("Serving")
    join(rig)
    members = [rig.work(name, "--until-finished") for name in ("ada", "bob")]
    assert coordinator.wait(200) == -signal.SIGKILL
    assert "fault_fired" in coordinator.text()
    serve_alone(rig)
    assert [member.wait(200) for member in members] == [0, 0]
    check(rig)
