"""A worker that asks for work, and a coordinator that answers whatever it likes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.daemon import Daemon
from worker.journal import Journal
from worker.news import News
from worker.session import Session
from worker.status import Board
from worker.verdict import Verdict
from worker.watch import Watch

KEY = Identity.generate()


class Coordinator(Session):
    """The session of one that says what ``reply`` is."""

    greeting: Any = SimpleNamespace(run_head=None)

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    async def _call_dated(self, attempt: Any, **options: Any) -> Any:
        return self.reply

    def open_round_record(self, envelope: wire.Envelope, kind: type[Any]) -> Any:
        return open_envelope(envelope, kind)


def unit(round_: int, *, probation: bool = False) -> tuple[bytes, api.WorkReply]:
    record = wire.Assignment(
        run_id=bytes(32), round=round_, assignment_id=os.urandom(16), probation=probation
    )
    return record.assignment_id, api.WorkReply(assignment=seal(record, KEY))


class Worker:
    """A daemon's way to a lease, with a journal and a board of its own."""

    def __init__(self, journal: Journal, session: Coordinator) -> None:
        self.board, self.probations = Board("w", "r"), 0
        nothing: Any = SimpleNamespace(verdict=Verdict(works=True))
        self.daemon = Daemon(
            home=nothing,
            config=nothing,
            identity=KEY,
            board=self.board,
            trainer=nothing,
            governing=nothing,
            budget=nothing,
            finish=asyncio.Event(),
            news=News(),
        )
        self.node: Any = SimpleNamespace(session=session, watch=Watch(session), journal=journal)
        self.node.watch.offer_head(seal(wire.RunHead(run_id=bytes(32), round=5), KEY))

    async def lease(self) -> Any:
        opened = lambda envelope: open_envelope(envelope, wire.Assignment)  # noqa: E731
        runner: Any = SimpleNamespace(
            tuner=SimpleNamespace(speed_hint=lambda: 1.0), open_assignment=opened
        )
        probation: Any = SimpleNamespace(
            deliver_rest=self.nothing, passed=self.nothing, run=self.do
        )
        return await self.daemon._lease(self.node, runner, probation, 5)

    async def nothing(self) -> None:
        return

    async def do(self, _assignment: wire.Envelope, _head: wire.Envelope) -> None:
        self.probations += 1  # it was done before


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal.db")) as made:
        yield made


async def lasted_s(work: Any) -> float:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    assert await work is None
    return loop.time() - begun_s


async def test_units_of_no_round_are_neither_kept_nor_asked_for_at_once(journal: Journal) -> None:
    _, reply = unit(6)
    worker = Worker(journal, Coordinator(reply))
    assert await lasted_s(worker.lease()) > 0.15
    assert journal.open_leases() == []


async def test_a_first_unit_that_is_given_out_for_ever_spins_nothing(journal: Journal) -> None:
    _, reply = unit(5, probation=True)
    worker = Worker(journal, Coordinator(reply))
    assert await lasted_s(worker.lease()) > 0.15
    assert worker.probations == 1


async def test_a_lease_that_had_ended_here_is_given_up_aloud(journal: Journal) -> None:
    lease_id, reply = unit(5)
    worker = Worker(journal, Coordinator(reply))
    lease = await worker.lease()
    assert (lease.assignment_id, worker.board.given_up) == (lease_id, "")
    journal.end(lease_id)  # and then the machine lost its power before anybody was told
    worker.daemon.finish.set()
    assert await worker.lease() is None
    assert worker.board.given_up == lease_id.hex()


async def test_what_a_coordinator_says_is_shown_in_a_line_or_two() -> None:
    endless = "\x1b[2J no " * 400_000
    wait = api.WorkReply(wait=api.Wait(reason=endless))
    told = await Coordinator(wait).request_work(0.0)
    beat = await Coordinator(api.HeartbeatReply(reason=endless)).heartbeat(wire.Heartbeat())
    for reason in (told.wait.reason, beat.reason):
        assert len(reason) <= 300
        assert reason.isprintable()
