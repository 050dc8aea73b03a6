"""The wall clock is set, and the coordinator stands still: nobody loses time or a lease by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos_idle_engine import SILENT_AFTER_S
from chaos_scripted_run import START_S, ScriptedRun, manifest
from sqlalchemy import select

from coordinator.database import Database
from coordinator.requests import Rate, RequestGuard
from coordinator.round_state import Phase, load
from coordinator.schema import TRAINING, AssignmentRow, RoundRow, WorkerRow
from coordinator.steady_clock import SteadyClock
from ledger.log import read_leaves
from ledger.records import parse_leaf
from ledger.schema import LogHead
from ledger.tree import tree_size
from protocol.envelope import open_envelope, seal
from protocol.wire import records_pb2 as wire

HOUR_S = 3600.0
TEN_MINUTES_S = 600.0


class Machine:
    def __init__(self) -> None:
        self.wall_s, self.counted_s = START_S, 0.0
        self.clock = SteadyClock(wall=lambda: self.wall_s, elapsed=lambda: self.counted_s)

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.counted_s += seconds


@pytest.fixture
async def two(tmp_path: Path) -> Any:
    """A run on a machine's clock, whose two members train."""
    machine = Machine()
    run = ScriptedRun(tmp_path, manifest(rounds=2))
    run.clock = machine.clock
    await run.boot()
    await run.admit_all()
    for worker in run.workers:
        await worker.lease()
    run._recall(0)
    yield run, machine
    run.database.close()


def dates(run: Any) -> list[int]:
    """Of the leaves and of the heads, in their order."""

    def read(session: Any) -> tuple[list[int], list[int]]:
        leaves = [parse_leaf(data).at_s for data in read_leaves(session, 0, tree_size(session))]
        return leaves, list(
            session.scalars(select(LogHead.signed_at_s).order_by(LogHead.tree_size))
        )

    leaves, heads = run.read(read)
    assert leaves == sorted(leaves) and heads == sorted(heads)
    return [*leaves, *heads]


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_the_wall_clock_is_set_in_mid_round(two: Any, step_s: float) -> None:
    run, machine = two
    guard = RequestGuard(
        run.run_id, machine.clock, per_key=Rate(100, 100), per_address=Rate(100, 100)
    )
    before = run.machine()
    machine.passes(1.0)
    worker = run.workers[0]

    def heartbeat(sent_at_ms: int) -> wire.Envelope:
        fresh = wire.Freshness(sent_at_ms=sent_at_ms, nonce=os.urandom(16))
        beat = wire.Heartbeat(run_id=run.run_id, worker=worker.name, freshness=fresh)
        return seal(beat, worker.identity)

    # As a worker dates it, which learnt the coordinator's clock a moment ago.
    learnt_ms = int(machine.clock() * 1000)
    machine.wall_s += step_s
    for _ in range(8):
        machine.passes(0.5)
        await run.engine.keep_time()
    guard.open(heartbeat(learnt_ms + 4000), wire.Heartbeat, peer="ipv4:10.0.0.1:1")
    after = run.machine()
    assert after.phase is Phase.TRAINING and set(after.training) == set(before.training)
    assert after.deadline_s == before.deadline_s
    while run.machine().phase is not Phase.GATHER:
        await run._train(0)
    await run.gather()
    await run.submit(run.results())
    assert await run.engine.settle()
    assert all(START_S <= at_s <= START_S + 60 for at_s in dates(run))
    head = open_envelope(run.stored_head(), wire.RunHead).record
    assert START_S * 1000 <= head.issued_at_ms <= (START_S + 60) * 1000


async def test_ten_minutes_away_cost_nobody_anything(two: Any) -> None:
    run, machine = two
    ada, bob = run.workers
    await ada.commit()
    before = run.machine()
    await run.engine.keep_time()
    machine.passes(TEN_MINUTES_S)  # stopped, or without a database: no tick came through
    await run.engine.keep_time()
    after = run.machine()
    assert after.training == (bob.name,) and after.committed == (ada.name,)
    assert after.deadline_s == pytest.approx(before.deadline_s + TEN_MINUTES_S, abs=3)
    assert not (await ada.commit()).first
    assert (await bob.commit()).first
    assert run.machine().phase is Phase.GATHER
    roster, _ = run.roster()
    assert roster.gather_deadline_ms > machine.clock() * 1000


async def test_ten_minutes_down_cost_nobody_anything(two: Any) -> None:
    run, machine = two
    ada, bob = run.workers
    await ada.commit()
    before = run.machine()
    run.database.close()
    machine.passes(TEN_MINUTES_S)
    await run.boot()
    after = run.machine()
    assert after.deadline_s == pytest.approx(before.deadline_s + TEN_MINUTES_S, abs=3)
    assert not (await ada.commit()).first, "delivered again from the outbox"
    assert (await bob.commit()).first, "trained while nobody was there"
    await run.gather()
    await run.submit(run.results())
    assert await run.engine.settle()
    assert run.machine().number == 1


def test_a_stopped_process_goes_on_where_it_was(tmp_path: Path) -> None:
    program = Path(__file__).with_name("chaos_idle_engine.py")
    log = tmp_path / "engine.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path)], stdout=output, stderr=output
        ) as process,
    ):
        try:
            wait_until(lambda: "leased\n" in log.read_text(), process, log)
            process.send_signal(signal.SIGSTOP)
            # Absence is made of time: longer than the silence that ends a lease.
            time.sleep(3 * SILENT_AFTER_S)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: log.read_text().count("round_resumed") > 0, process, log)
            database = Database(f"sqlite:///{tmp_path / 'coordinator.db'}")
            # That is said before it is committed.
            wait_until(lambda: deadline_after_s(database) > 9.0 + 2 * SILENT_AFTER_S, process, log)
            with database.session() as session:
                machine = load(session.scalars(select(RoundRow)).one().machine)
                statuses = set(session.scalars(select(AssignmentRow.status)))
            database.close()
            assert statuses == {TRAINING} and len(machine.training) == 2
            assert "lease_expired" not in log.read_text()
        finally:
            process.kill()


def deadline_after_s(database: Database) -> float:
    """How long after its opening the only round ends: ten seconds, but for the absence."""
    with database.session() as session:
        row = session.scalars(select(RoundRow)).one()
        return (load(row.machine).deadline_s or 0.0) - row.opened_at_s


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 100.0
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()[-4000:]
        time.sleep(0.05)


@pytest.mark.parametrize("away_s", [0.0, TEN_MINUTES_S])
async def test_an_absence_is_not_counted_as_slowness(two: Any, away_s: float) -> None:
    run, machine = two
    ada, _ = run.workers
    machine.passes(4.0)
    await run.engine.keep_time()
    machine.passes(away_s)
    await run.engine.keep_time()
    machine.passes(4.0)
    await run.engine.keep_time()
    await ada.commit()
    tokens = ada.assignment.steps * run.manifest.tokens_per_step
    speed = run.read(lambda session: session.get_one(WorkerRow, ada.name).measured_tokens_per_s)
    assert speed == pytest.approx(tokens / 8.0, rel=0.4)  # known to two seconds
