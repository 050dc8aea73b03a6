"""Turns one after the other, each committed before anybody hears of it.

Invariants:

* A turn is one request's, or a batch's of one kind (:mod:`coordinator.batches`).
* Turns do not overlap, and their events are published in the order of their commits.
* Nothing is told to anybody before it is committed. An error that a turn *returns* is raised after
  the commit, so that evidence of a conflict stays; one that it *raises* undoes the turn.
* Leaves that a turn added are under a signed head before its caller goes on.
* A turn of which nobody knows whether it was committed (the database went away just then) fails for
  its caller, who asks again; watchers hear at the next turn where the round stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog
from sqlalchemy.orm import Session

from coordinator.batches import Batches
from coordinator.context import RunContext
from coordinator.database import Database, OutcomeUnknown
from coordinator.events import Hub, Subscription
from coordinator.queries import snapshot_events
from coordinator.turn import Turn
from protocol.errors import ProtocolError, TransientError
from protocol.uncancelled import to_the_end
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

T = TypeVar("T")

_OPENED_TOGETHER = 256  # subscriptions, from one snapshot

_log = structlog.get_logger()


class Turns:
    """Everything that changes the running round passes through here."""

    def __init__(
        self,
        context: RunContext,
        database: Database,
        clock: Callable[[], float],
        is_absent: Callable[[str], bool],
    ) -> None:
        """Touches nothing yet.

        Args:
            context: of the run.
            database: with upgraded tables.
            clock: seconds since the epoch.
            is_absent: whether a reduce should not count on a worker; called on any thread.
        """
        self.settle_due = asyncio.Event()  # set when a round can be settled
        self.head: wire.Envelope | None = None  # of the running round, as of the last turn
        self._context = context
        self._database = database
        self._clock = clock
        self._is_absent = is_absent
        self._hub = Hub(context.options.subscriber_events)
        self._openings = Batches[Subscription, None](self._open, _OPENED_TOGETHER)
        self._one_at_a_time = asyncio.Lock()
        self._unsigned = False  # leaves are committed that no signed head covers yet
        self._unheard = False  # something may be committed that nobody was told

    async def run(self, work: Callable[[Turn], T | ProtocolError]) -> T:
        """Run one transaction on the running round, then publish and sign what came of it."""

        def once(session: Session) -> tuple[Turn, T | ProtocolError]:
            turn = Turn(self._context, session, self._clock(), self._is_absent)
            result = work(turn)
            turn.head = turn.row.head
            return turn, result

        async def commit_and_tell() -> T | ProtocolError:
            turn, result = await self._commit(once)
            self.head = wire.Envelope.FromString(turn.head)
            self._unsigned |= turn.then.leaves_added
            self._hub.publish(turn.then.events)
            if turn.then.settle_due:
                self.settle_due.set()
            await self._sign(insist=turn.then.leaves_added)
            return result

        async with self._one_at_a_time:
            # A client that hangs up after the commit must not take the news of it along.
            result = await to_the_end(commit_and_tell())
        if isinstance(result, ProtocolError):
            raise result
        return result

    async def _commit(self, once: Callable[[Session], tuple[Turn, T]]) -> tuple[Turn, T]:
        """Commit a turn; after one whose outcome is unknown, with what watchers may have missed."""

        def catching_up(session: Session) -> tuple[Turn, T]:
            turn, result = once(session)
            turn.then.events += snapshot_events(turn)
            turn.then.leaves_added = turn.then.settle_due = True  # for all we know
            return turn, result

        try:
            found = await self._database.run(catching_up if self._unheard else once)
        except OutcomeUnknown as error:
            _log.warning("outcome_unknown", error=str(error))
            self._unheard = True
            raise
        self._unheard = False
        return found

    async def _sign(self, *, insist: bool) -> None:
        """Sign the head of what is committed, if leaves are new.

        Raises:
            TransientError: if ``insist``; the caller added some of them. Who only reads goes on.
        """
        if not self._unsigned:
            return
        try:
            await self._database.run(self._context.log.sign_head)
        except TransientError:
            if insist:
                raise
            return  # the next tick insists
        self._unsigned = False

    @asynccontextmanager
    async def subscribe(self, worker: str) -> AsyncIterator[AsyncIterator[service_pb2.RunEvent]]:
        """What is current, then every event as it happens.

        The iterator raises TransientError when its reader is too slow: it must subscribe anew.

        Args:
            worker: PeerID of the reader, already admitted.
        """
        subscription = self._hub.make()
        try:
            await self._openings.ask(subscription)
            _log.debug("watching", worker=worker)
            yield subscription.events()
        finally:
            self._hub.close(subscription)

    async def _open(self, subscriptions: Sequence[Subscription]) -> list[None]:
        """Begin subscriptions, all from one snapshot."""
        async with self._one_at_a_time:
            snapshot = await self._database.run(
                lambda session: snapshot_events(Turn(self._context, session, self._clock()))
            )
            for subscription in subscriptions:
                self._hub.open(subscription, snapshot)
        return [None] * len(subscriptions)
