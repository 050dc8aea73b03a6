"""Delivers signed records until they are answered, across restarts of either side.

Invariants:

* A record is in the journal before it is sent, and sent until the coordinator answers: with an
  acceptance or with a refusal that no repetition would change.
* Records go in the order in which they were posted.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from google.protobuf.message import Message

from protocol.channel import backoff_s
from protocol.errors import PeerFault, ProtocolError, TransientError, UsageError
from protocol.wire import records_pb2 as wire
from worker.journal import Journal, OutboxEntry
from worker.session import Session

log = structlog.get_logger()

CONTRIBUTION = "contribution"
REPORT = "report"


class Outbox:
    """Run :meth:`run` as a task; :meth:`deliver` waits for one record's answer."""

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session = session
        self._journal = journal
        self._work = asyncio.Event()
        self._work.set()  # what an earlier process left
        self._idle = asyncio.Event()
        self._reachable = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[Message]] = {}

    async def run(self) -> None:
        failures = 0
        while True:
            await self._work.wait()
            self._work.clear()
            for entry in await asyncio.to_thread(self._journal.undelivered):
                try:
                    await self._send(entry)
                    failures = 0
                except TransientError as error:
                    failures += 1
                    if failures == 1:
                        log.info("will deliver later", key=entry.key, error=str(error))
                    self._work.set()
                    await self._pause(backoff_s(failures, base_s=0.5))
                    break
            if not self._work.is_set():
                self._idle.set()

    def retry_now(self) -> None:
        """The coordinator answers again: a round may close before a long back-off ends."""
        self._reachable.set()

    async def _pause(self, seconds: float) -> None:
        self._reachable.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reachable.wait()

    async def drain(self, within_s: float) -> None:
        """Wait until every record has been answered, but no longer than this."""
        self._idle.clear()
        self._work.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    async def post(self, key: str, kind: str, round_: int, envelope: wire.Envelope) -> None:
        """Keep a record for delivery without waiting for its answer."""
        await asyncio.to_thread(self._journal.post, key, kind, round_, envelope)
        self._idle.clear()
        self._work.set()

    async def deliver(self, key: str, kind: str, round_: int, envelope: wire.Envelope) -> Message:
        """Post a record and wait for the coordinator's answer.

        Raises:
            PeerFault, UsageError: refused for good.
        """
        future = self._waiting.setdefault(key, asyncio.get_running_loop().create_future())
        try:
            await self.post(key, kind, round_, envelope)
            return await future
        finally:
            self._waiting.pop(key, None)

    async def _send(self, entry: OutboxEntry) -> None:
        answer: Message | ProtocolError
        try:
            if entry.kind == CONTRIBUTION:
                answer = await self._session.commit(entry.envelope)
            else:
                answer = await self._session.report(entry.envelope)
        except (PeerFault, UsageError) as error:
            log.warning("refused by the coordinator", key=entry.key, error=str(error))
            answer = error
        await asyncio.to_thread(self._journal.delivered, entry.key)
        future = self._waiting.get(entry.key)
        if future is None or future.done():
            return
        if isinstance(answer, ProtocolError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
