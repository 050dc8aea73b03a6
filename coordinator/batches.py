"""Requests of one kind, answered together: what has gathered while the last ones were answered.

A transaction costs a flush of a disk and a few ways to the database, however much it does. Where
few call, a request waits for nothing; in a crowd it waits a little for others to come, and ten
thousand of them share a few hundred transactions.

Invariants:

* Each is answered once, after the transaction that holds its effects is committed, in the order
  in which they came.
* One request's fault is its own: it comes back as that request's error. When a whole batch fails
  for a reason that is not one of ours, each of it is tried alone.
* A batch is bounded, so nobody waits for all of a crowd.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session

from coordinator.turn import Turn
from protocol.errors import ProtocolError

Q = TypeVar("Q")
A = TypeVar("A")

Answer = Callable[[Sequence[Q]], Awaitable[Sequence[A | ProtocolError]]]


class Batches(Generic[Q, A]):
    """Gathers requests and hands them on, one batch at a time."""

    def __init__(
        self, answer: Answer[Q, A], most: int, gather_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Touches nothing yet.

        Args:
            answer: replies, or errors to raise, in the order of the requests.
            most: requests of one batch.
            gather_s: so long the first of a batch waits for others now.
        """
        self._answer = answer
        self._most = most
        self._gather_s = gather_s
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._work: asyncio.Task[None] | None = None  # ends when nobody waits

    async def ask(self, request: Q) -> A:
        """The reply to one request.

        Raises:
            ProtocolError: the request's own, or the whole batch's.
        """
        reply: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, reply))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_waiting())
        return await reply

    async def _answer_waiting(self) -> None:
        while self._waiting:
            gather_s = self._gather_s()
            if gather_s and len(self._waiting) < self._most:
                await asyncio.sleep(gather_s)
            batch = list[tuple[Q, asyncio.Future[A]]]()
            while self._waiting and len(batch) < self._most:
                request, reply = self._waiting.popleft()
                if not reply.done():  # else its caller has gone
                    batch.append((request, reply))
            if batch:
                await self._answer_together(batch)

    async def _answer_together(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            outcomes = await self._answer([request for request, _ in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} answers to {len(batch)} requests")
        except ProtocolError as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # a bug, whoever's request met with it: it is that caller's
            if len(batch) == 1:
                _settle(batch[0][1], error)
                return
            for one in batch:
                await self._answer_together([one])
            return
        for (_, reply), outcome in zip(batch, outcomes, strict=True):
            _settle(reply, outcome)


def _settle(reply: asyncio.Future[A], outcome: A | Exception) -> None:
    if reply.done():
        return
    if isinstance(outcome, Exception):
        reply.set_exception(outcome)
    else:
        reply.set_result(outcome)


class HalfDoneError(RuntimeError):
    """A request of a batch failed when it had begun to write: the others must not keep that."""


def each(
    turn: Turn, requests: Sequence[Q], work: Callable[[Turn, Q], A | ProtocolError]
) -> list[A | ProtocolError]:
    """Do a batch's requests in their order, in one turn; what they write is flushed together.

    The round is stored once, after the last, and whenever something follows from it.

    Returns:
        For each what ``work`` returned, or the error of ours that it raised.

    Raises:
        HalfDoneError: one of several raised when it had begun to write: undo them all.
    """
    if len(requests) == 1:
        return [work(turn, requests[0])]
    flushed: list[set[int]] = []
    event.listen(turn.session, "before_flush", lambda *_: flushed.append(_unwritten(turn.session)))
    turn.storing = False
    outcomes = list[A | ProtocolError]()
    for request in requests:
        flushed.clear()
        unwritten, machine, events = _unwritten(turn.session), turn.machine, len(turn.then.events)
        try:
            outcomes.append(work(turn, request))
        except ProtocolError as error:
            # What those before it left to be written, a query of this one may have flushed.
            theirs = [*flushed, _unwritten(turn.session)] in ([unwritten], [unwritten, set()])
            if not theirs or turn.machine is not machine or len(turn.then.events) != events:
                raise HalfDoneError from error
            outcomes.append(error)
    turn.storing = True
    turn.store()
    return outcomes


def _unwritten(session: Session) -> set[int]:
    """The rows, by identity, that the next flush will write; until then the session holds them."""
    return {id(row) for row in (*session.new, *session.dirty, *session.deleted)}
