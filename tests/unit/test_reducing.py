"""What comes after a commit: reduces one after the other, beside the next unit's training."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.envelope import open_envelope, seal
from protocol.errors import TransientError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker import reducing
from worker.config import Home
from worker.daemon import Daemon
from worker.journal import Journal, Lease, LeaseState
from worker.reducing import Reducing, Unit
from worker.status import Board
from worker.taking_part import Outcome
from worker.watch import Watch

KEY = Identity.generate()


class Open:
    """A session that believes every record which some key signed."""

    greeting = SimpleNamespace(run_head=None)

    @staticmethod
    def open_round_record(envelope: wire.Envelope, kind: type[Any]) -> Any:
        return open_envelope(envelope, kind)


class Swarm:
    """Reduces that end when a test says so."""

    def __init__(self) -> None:
        self.followed: list[int] = []
        self.ends: dict[int, asyncio.Event] = {}
        self.failures = 0
        self.change = asyncio.Event()

    def reduction(self, ending: asyncio.Event) -> Any:
        return SimpleNamespace(follow=lambda *args, **_: self._follow(ending, *args))

    async def _follow(self, ending: asyncio.Event, round_: int, _update: Any) -> Outcome:
        self.followed.append(round_)
        self.change.set()
        if self.failures:
            self.failures -= 1
            raise TransientError("the disk is full")
        waits = [ending.wait(), self.ends.setdefault(round_, asyncio.Event()).wait()]
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return Outcome(included=True, decided=True, peers=round_)

    async def until(self, count: int) -> None:
        while len(self.followed) < count:
            self.change.clear()
            await self.change.wait()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "w")
    made.prepare()
    return made


@pytest.fixture
def journal(home: Home) -> Iterator[Journal]:
    with closing(Journal(home.journal)) as made:
        yield made


@pytest.fixture
def swarm() -> Swarm:
    return Swarm()


@pytest.fixture
def made(home: Home, journal: Journal, swarm: Swarm, make_manifest: Any) -> Reducing:
    watch: Any = Watch(Open(), lag_rounds=1)  # type: ignore[arg-type]
    return Reducing(home, make_manifest(), watch, journal, Board("w", "r"), swarm.reduction)


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def trained(journal: Journal, round_: int, *, state: LeaseState = LeaseState.TRAINED) -> Lease:
    lease_id = os.urandom(16)
    record = wire.Assignment(run_id=bytes(32), round=round_, assignment_id=lease_id)
    journal.begin(lease_id, round_, seal(record, KEY))
    if state is LeaseState.TRAINED:
        contribution = wire.Contribution(assignment_id=lease_id, tokens=7, vector_elements=1)
        journal.trained(lease_id, seal(contribution, KEY), Path("/nowhere"))
    lease = journal.lease(lease_id)
    assert lease is not None
    return lease


async def test_reduces_follow_each_other_and_leave_the_next_unit_alone(
    made: Reducing, swarm: Swarm, journal: Journal
) -> None:
    first, second = trained(journal, 3), trained(journal, 4)
    following = os.urandom(16)
    made.board.take_up(following.hex())
    made.board.steps = 9
    for lease in (first, second):
        made.home.snapshot(lease.assignment_id).touch()
    made.home.snapshot(following).touch()
    async with running(made):
        await made.add(Unit(first, None))
        await made.add(Unit(second, None))
        await swarm.until(1)
        assert made.holds(first.assignment_id) and made.holds(second.assignment_id)
        swarm.ends[3].set()
        await swarm.until(2)
        assert swarm.followed == [3, 4]
        assert not made.holds(first.assignment_id)
        assert [lease.round for lease in journal.open_leases()] == [4]
        assert journal.awaited_receipts() == [first.assignment_id]
        swarm.ends[4].set()
        await made.drain()
    assert journal.open_leases() == []
    assert (made.board.assignment_id, made.board.steps, made.board.peers) == (following.hex(), 9, 4)
    assert [path.name for path in made.home.unit.iterdir()] == [following.hex()]


async def test_before_its_end_a_worker_waits_for_no_more_than_the_reduce(
    made: Reducing, swarm: Swarm, journal: Journal
) -> None:
    async with running(made):
        await made.add(Unit(trained(journal, 3), None))
        await swarm.until(1)
        changed = made.watch._change
        await made.drain()
    assert changed.is_set(), "who waits for news of the run looks again"
    assert journal.open_leases() == []


async def test_a_reduce_that_fails_is_begun_again(
    made: Reducing, swarm: Swarm, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducing, "_AGAIN_S", 0.0)
    swarm.failures = 2
    async with running(made):
        await made.add(Unit(trained(journal, 3), None))
        await swarm.until(3)
        swarm.ends[3].set()
        await made.drain()
    assert swarm.followed == [3, 3, 3]


async def test_a_restart_takes_up_the_reduce_of_the_round_that_has_closed(
    made: Reducing, swarm: Swarm, journal: Journal
) -> None:
    trained(journal, 2)  # over
    closed = trained(journal, 3)
    given_up = trained(journal, 3, state=LeaseState.LEASED)
    trained(journal, 4)  # to be committed yet
    await made.take_up(4)
    await made.take_up(4)
    assert list(made._units) == [closed.assignment_id, given_up.assignment_id]


async def test_without_an_overlap_there_is_nothing_to_take_up(
    made: Reducing, journal: Journal
) -> None:
    made.watch.lag_rounds = 0
    trained(journal, 3)
    await made.take_up(4)
    assert not made._units


async def test_a_round_that_is_over_is_not_forgotten_before_its_reduce_is(
    made: Reducing, journal: Journal
) -> None:
    """A kill in between would lose what tells a restart to ask for the receipt."""
    earlier, held = trained(journal, 3), trained(journal, 4)
    await made.add(Unit(held, None))
    node, runner = SimpleNamespace(journal=journal), SimpleNamespace(reducing=made)
    Daemon._forget_before(None, node, runner, 5)  # type: ignore[arg-type]
    assert [lease.assignment_id for lease in journal.open_leases()] == [held.assignment_id]
    assert [receipt.assignment_id for receipt in journal.receipts()] == [earlier.assignment_id]
