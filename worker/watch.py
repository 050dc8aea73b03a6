"""What the coordinator announces, verified, as things that can be waited for.

Invariants:

* Heads, rosters and inclusion sets are believed by their signature alone, so it does not matter
  whether they came over the stream, in a reply, or from the DHT while the coordinator is away.
* A second, different roster for one (round, attempt), inclusion set for one group, or head for one
  round is refused and both are logged as evidence of equivocation.
* The head never goes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from protocol.channel import backoff_s
from protocol.envelope import Signed
from protocol.errors import PeerFault, TransientError, UsageError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.session import Session
from worker.trouble import Trouble

if TYPE_CHECKING:
    from worker.swarm import Swarm

log = structlog.get_logger()

Found = TypeVar("Found")
_KEPT_ROUNDS = 2
_MOST_KEPT = 64  # rosters, and inclusion sets, whatever rounds and attempts they claim to be of
_MOST_EVIDENCE = 4  # records are large: more of them would only fill the log

RECONNECT_S = 3.0
"""Longest wait between two attempts to reach a coordinator that is away: well within a round's
grace, so that what was trained meanwhile still counts."""


class Watch:
    """Keeps the event stream open; :meth:`run` never returns."""

    def __init__(self, session: Session, lag_rounds: int = 0) -> None:
        """
        Args:
            session: of the run.
            lag_rounds: how many rounds before the head's one may still be reduced.
        """
        self.lag_rounds = lag_rounds
        self._no_news = Trouble("the swarm has nothing newer")
        self._session = session
        self._change = asyncio.Event()
        self._rosters: dict[tuple[int, int], Signed[wire.Roster]] = {}
        self._inclusions: dict[bytes, Signed[wire.InclusionSet]] = {}
        self._wanted = api.ResultsWanted()
        self.head: Signed[wire.RunHead] | None = session.greeting.run_head
        self._evidence_told = 0
        self.phase = ""
        self.round = 0
        self.phase_deadline_ms = 0
        self._running_from = 0
        self.connected = False
        self.on_connected: Callable[[], None] = lambda: None
        self.problem = ""
        self.swarm: Swarm | None = None

    async def run(self) -> None:
        """Follow the stream for ever, with reconnects. Run it as a task."""
        failures = 0
        while True:
            try:
                async for event in self._session.watch():
                    failures = 0
                    self._connection(True, "")
                    self._take(event)
            except (TransientError, PeerFault, UsageError) as error:
                self._connection(False, str(error))
            if failures:  # the first time only be quick: a reduce may be waiting for us
                await self._ask_swarm()
            await asyncio.sleep(backoff_s(failures, base_s=0.5, limit_s=RECONNECT_S))
            failures += 1
            await self._greet_again()

    # ---- waiting -----------------------------------------------------------------------

    async def until(self, ready: Callable[[], Found | None]) -> Found:
        """Wait until ``ready`` gives something; asked again at every change."""
        while True:
            change = self._change
            found = ready()
            if found is not None:
                return found
            await change.wait()

    async def change(self, timeout_s: float) -> None:
        """Wait for any change, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._change.wait()
        except TimeoutError:
            return

    def head_beyond(self, round_: int) -> Signed[wire.RunHead] | None:
        """The head, when its round is later than ``round_``."""
        return self.head if self.head is not None and self.head.record.round > round_ else None

    def over(self, round_: int) -> Signed[wire.RunHead] | None:
        """The head that came out of a round, or a later one: nothing is to be done for it any more.

        With an overlap that is the head of the round after the next: until then the next one trains
        from the state before.
        """
        return self.head_beyond(round_ + self.lag_rounds)

    def has_ended(self, round_: int) -> bool:
        """Whether a round is settled or skipped, as the coordinator says."""
        return self._running_from > round_ or self.over(round_) is not None

    def roster_after(self, round_: int, attempt: int) -> Signed[wire.Roster] | None:
        """The latest roster of a round with an attempt number above ``attempt``."""
        later = [key for key in self._rosters if key[0] == round_ and key[1] > attempt]
        return self._rosters[max(later)] if later else None

    def inclusion_of(self, group_id: bytes) -> Signed[wire.InclusionSet] | None:
        return self._inclusions.get(group_id)

    def take_wanted(self) -> api.ResultsWanted | None:
        """What results the coordinator asks their holders for; told once for each time it asks."""
        wanted, self._wanted = self._wanted, api.ResultsWanted()
        return wanted if wanted.chunks else None

    # ---- taking in ---------------------------------------------------------------------

    def offer_head(self, envelope: wire.Envelope) -> None:
        """Take in a head from anywhere.

        Raises:
            PeerFault: it is not signed by the run's round key.
        """
        head = self._session.open_round_record(envelope, wire.RunHead)
        if self.head is not None:
            if head.record.round < self.head.record.round:
                return
            if head.record.round == self.head.record.round:
                if head.record.state_digest != self.head.record.state_digest:
                    self._equivocation("head", self.head, head)
                return
        self.head = head
        self._forget_before(head.record.round)
        self.notify()

    def offer_roster(self, envelope: wire.Envelope) -> None:
        roster = self._session.open_round_record(envelope, wire.Roster)
        key = (roster.record.round, roster.record.attempt)
        known = self._rosters.setdefault(key, roster)
        _keep_newest(self._rosters)
        if known.digest != roster.digest:
            self._equivocation("roster", known, roster)
        elif known is roster:
            self.notify()

    def offer_inclusion(self, envelope: wire.Envelope) -> None:
        inclusion = self._session.open_round_record(envelope, wire.InclusionSet)
        known = self._inclusions.setdefault(inclusion.record.group_id, inclusion)
        _keep_newest(self._inclusions)
        if known.digest != inclusion.digest:
            self._equivocation("inclusion set", known, inclusion)
        elif known is inclusion:
            self.notify()

    def notify(self) -> None:
        """Wake everybody who waits."""
        self._change.set()
        self._change = asyncio.Event()

    def training_deadline_ms(self, record: wire.Assignment) -> int:
        """When training ends: a coordinator that was away has moved what the assignment says."""
        if (self.phase, self.round) != ("TRAINING", record.round):
            return record.deadline_ms
        return max(record.deadline_ms, self.phase_deadline_ms)

    def _take(self, event: api.RunEvent) -> None:
        self._take_phase(event)
        kind = event.WhichOneof("event")
        try:
            if kind == "run_head":
                self.offer_head(event.run_head)
            elif kind == "roster":
                self.offer_roster(event.roster)
            elif kind == "inclusion_set":
                self.offer_inclusion(event.inclusion_set)
            elif kind == "results_wanted":
                self._wanted = event.results_wanted
                self.notify()
            elif kind == "notice":
                log.info("notice from the organiser", text=event.notice[:500])
        except PeerFault as error:
            log.error("event refused", kind=kind, error=str(error))

    def _take_phase(self, event: api.RunEvent) -> None:
        """Of the round in training; one that is reduced beside it has nothing to tell by it."""
        if event.running_from > self._running_from:
            self._running_from = event.running_from
            self.notify()
        if event.round < self.round:
            return
        if event.phase and (event.phase, event.round) != (self.phase, self.round):
            self.phase, self.round = event.phase, event.round
            self.notify()
        self.phase_deadline_ms = event.deadline_ms

    def _forget_before(self, round_: int) -> None:
        oldest = round_ - _KEPT_ROUNDS
        self._rosters = {key: value for key, value in self._rosters.items() if key[0] >= oldest}
        self._inclusions = {
            key: value for key, value in self._inclusions.items() if value.record.round >= oldest
        }

    # ---- while the coordinator is away -------------------------------------------------

    def _connection(self, connected: bool, problem: str) -> None:
        if connected != self.connected:
            if connected:
                log.info("watching the run")
                self.on_connected()
            else:
                log.warning("lost the coordinator, trying again", problem=problem)
            self.connected = connected
            self.notify()
        self.problem = problem

    async def _ask_swarm(self) -> None:
        """The DHT may know the head or roster that the stream did not bring any more."""
        if self.swarm is None:
            return
        try:
            head = await self.swarm.get_head()
            if head is not None:
                self.offer_head(head.envelope)
            if self.head is not None:
                await self._ask_roster(self.swarm, self.head.record.round - self.lag_rounds)
            self._no_news.over()
        except (PeerFault, TransientError) as error:
            self._no_news.tell(error)

    async def _ask_roster(self, swarm: Swarm, round_: int) -> None:
        known = self.roster_after(round_, -1)
        attempt = 1 if known is None else known.record.attempt + 1
        roster = await swarm.get_roster(round_, attempt)
        if roster is not None:
            self.offer_roster(roster.envelope)

    async def _greet_again(self) -> None:
        """New delegations, clock and head after a reconnect."""
        try:
            try:
                greeting = await self._session.hello()
            except TransientError:
                await self._session.follow_certificate()
                greeting = await self._session.hello()
            if greeting.run_head is not None:
                self.offer_head(greeting.run_head.envelope)
        except (TransientError, PeerFault, UsageError) as error:
            self.problem = str(error)

    def _equivocation(self, what: str, first: Signed, second: Signed) -> None:  # type: ignore[type-arg]
        if self._evidence_told == _MOST_EVIDENCE:
            return
        self._evidence_told += 1
        log.error(
            f"the run's key signed two different records for one {what}: the first one counts",
            first=first.envelope.SerializeToString().hex(),
            second=second.envelope.SerializeToString().hex(),
        )


def _keep_newest(found: dict[Any, Any]) -> None:
    """Of those that came; a coordinator may send any number of them."""
    while len(found) > _MOST_KEPT:
        del found[next(iter(found))]
