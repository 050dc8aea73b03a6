"""A worker while its machine may not work: it stays in touch, and takes next to nothing.

It is heard of by heartbeats that say why it does nothing, shows what audits ask for, delivers what
was signed before and collects receipts. Where not even that may go over the network, it is silent.

Invariants:

* Neither this module nor what it imports loads torch or hivemind, or starts a process.
* Nothing that happens here ends it: a coordinator that is away, or that refuses, is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from protocol.channel import backoff_s
from protocol.errors import PeerFault, ProtocolError, TransientError, UsageError
from protocol.identity import Identity
from worker.config import Home, WorkerConfig
from worker.contact import ELEMENTS, Contact, open_retained
from worker.delegation import ENROLLED_FOR
from worker.evidence import Evidence
from worker.governing import Governing
from worker.heartbeat import Heartbeats
from worker.journal import Journal
from worker.meter import NetworkBudget
from worker.metered_line import MeteredLine
from worker.news import News
from worker.outbox import Outbox
from worker.race import unless
from worker.receipts import collect_receipts
from worker.session import Session
from worker.status import Board
from worker.trouble import Trouble
from worker.watch import Watch

log = structlog.get_logger()

_GREET_S = 300.0
_LONGEST_PAUSE_S = 60.0
_LOOK_S = 5.0  # whether the quota is used up: nobody tells


@dataclass
class Asleep:
    """Use :meth:`run` as a task for ever; what it opens is closed when it is cancelled."""

    home: Home
    config: WorkerConfig
    identity: Identity
    board: Board
    governing: Governing
    budget: NetworkBudget
    news: News  # told of each change of the verdict
    _out_of_touch: Trouble = field(default_factory=lambda: Trouble("lost touch with the run"))

    async def run(self) -> None:
        journal = await asyncio.to_thread(Journal, self.home.journal)
        try:
            if await asyncio.to_thread(journal.get, ENROLLED_FOR) is None:
                await asyncio.Future()  # nobody knows this device yet: nobody waits for it
            while True:
                if not self._silent:
                    await unless(self._stay_in_touch(journal), self._until(silent=True))
                self.board.connected = False
                await self._until(silent=False)
        finally:
            journal.close()

    @property
    def _silent(self) -> bool:
        """Whatever the verdict's reason: a quota that is used up is used up."""
        return self.governing.verdict.offline or self.budget.exhausted()

    async def _until(self, *, silent: bool) -> None:
        while self._silent != silent:
            await self.news.wait(_LOOK_S)

    async def _stay_in_touch(self, journal: Journal) -> None:
        """For ever."""
        while True:
            try:
                await self._in_touch(journal)
            except* ProtocolError as group:  # the disk, as a rule
                self._out_of_touch.tell(group.exceptions[0])
            await asyncio.sleep(_LONGEST_PAUSE_S)

    async def _in_touch(self, journal: Journal) -> None:
        """On one connection, for ever."""
        async with self._connected() as session, asyncio.TaskGroup() as tasks:
            contact = await self._contact(session, journal)
            self._out_of_touch.over()
            tasks.create_task(Heartbeats(contact, self.board).run())
            tasks.create_task(collect_receipts(contact, self.board))
            tasks.create_task(Outbox(session, journal).run())
            tasks.create_task(_greet_again(contact))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Session]:
        line = MeteredLine(self.config.join_link.address, self.home.line, self.budget)
        line.open()
        try:
            session = await self._connect(line.target)
            try:
                yield session
            finally:
                await session.close()
        finally:
            await line.close()

    async def _connect(self, through: str) -> Session:
        failures, said = 0, ""
        while True:
            try:
                return await Session.connect(self.config.join_link, self.identity, through)
            except (TransientError, PeerFault, UsageError) as error:
                self.board.heard_of_coordinator(False)
                if error.reason != said:
                    log.warning("not in touch with the run", problem=str(error))
                said = error.reason
            await asyncio.sleep(backoff_s(failures, base_s=1.0, limit_s=_LONGEST_PAUSE_S))
            failures += 1

    async def _contact(self, session: Session, journal: Journal) -> Contact:
        retained = await asyncio.to_thread(open_retained, self.home, self.config)
        manifest = session.greeting.manifest
        # No stream is opened: it would bring what concerns only others.
        watch = Watch(session, manifest.lag_rounds)
        watch.connected = True
        return Contact(
            home=self.home,
            config=self.config,
            identity=self.identity,
            session=session,
            watch=watch,
            journal=journal,
            retained=retained,
            evidence=Evidence(
                self.identity, manifest, retained, self.home.answers, lambda: _elements(journal)
            ),
            admission=None,
        )


def _elements(journal: Journal) -> int:
    text = journal.get(ELEMENTS)
    if text is None:
        raise TransientError("the size of the model is not known before it was loaded once")
    return int(text)


async def _greet_again(contact: Contact) -> None:
    """Learn the run's head, keys and certificate from time to time."""
    session = contact.session
    while True:
        await asyncio.sleep(_GREET_S)
        try:
            try:
                greeting = await session.hello()
            except TransientError:
                await session.follow_certificate()
                greeting = await session.hello()
            if greeting.run_head is not None:
                contact.watch.offer_head(greeting.run_head.envelope)
        except ProtocolError as error:
            log.debug("not greeted", problem=str(error))
