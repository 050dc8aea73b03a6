"""Taking part in the reduce of one round, attempt after attempt. Members and anchors share it.

Invariants:

* A group stays open, and the pieces it holds stay at hand, until its round is over: others may
  still want them, and so may the coordinator.
* Never step on un-reduced updates: the outer step needs a complete mean over the signed
  inclusion set; an attempt that fails leaves the state alone and the commitment valid.
* An attempt ends here as soon as the coordinator has begun another: nobody waits out its deadlines.
* The coordinator decides. What is computed here only saves a download.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from protocol.channel import backoff_s
from protocol.envelope import Signed, seal
from protocol.errors import (
    BadDigest,
    BadRecord,
    PeerFault,
    TransientError,
    UsageError,
)
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.journal import report_key
from worker.outbox import REPORT, Outbox
from worker.race import unless
from worker.session import Session
from worker.state_cache import StateCache
from worker.testimony import bring_proofs, bring_results, submit_screening
from worker.trouble import Trouble
from worker.watch import Watch

if TYPE_CHECKING:
    from protocol.update import EncodedUpdate
    from worker.allreduce import GroupReduce, ReduceResult
    from worker.node import Node
    from worker.retained import Retained
    from worker.swarm import Swarm

log = structlog.get_logger()

_LAST_MOMENT_S = 2.0
_REPORT_AGAIN_S = 2.0  # at most: the gather waits for it


@dataclass
class Outcome:
    """How a round ended, as seen from here."""

    included: bool = False  # own update was in the last inclusion set
    decided: bool = False  # that set was seen here; else the own update may well be in it
    stepped: bool = False  # own outer step was made, and is the head's state
    peers: int = 0


@dataclass
class _Attempt:
    roster: Signed[wire.Roster]
    inclusion: Signed[wire.InclusionSet] | None = None


@dataclass(frozen=True)
class _OwnStep:
    """What our own outer step led to."""

    group: GroupReduce
    settled_rounds: int
    digest: bytes

    def contradicts(self, head: wire.RunHead) -> bool:
        """The run made the same step, and came to something else."""
        return head.settled_rounds == self.settled_rounds and head.state_digest != self.digest


@dataclass
class Reduction:
    """One round's reduce. Make a new one for every round."""

    session: Session
    swarm: Swarm
    watch: Watch
    states: StateCache
    outbox: Outbox
    retained: Retained
    reports: bool = True  # members report their state; anchors only serve it
    ending: asyncio.Event = field(default_factory=asyncio.Event)  # no more is waited for than must
    _groups: list[GroupReduce] = field(default_factory=list)
    _last: _Attempt | None = None
    _own_step: _OwnStep | None = None

    @classmethod
    def of(
        cls, node: Node, *, reports: bool = True, ending: asyncio.Event | None = None
    ) -> Reduction:
        """With a node's parts."""
        return cls(
            session=node.session,
            swarm=node.swarm,
            watch=node.watch,
            states=node.states,
            outbox=node.outbox,
            retained=node.retained,
            reports=reports,
            ending=ending or asyncio.Event(),
        )

    async def follow(self, round_: int, update: EncodedUpdate | None, *, listen: bool) -> Outcome:
        """Take part in every attempt until the round is over.

        Args:
            round_: its number.
            update: own committed update, if there is one.
            listen: take part in rosters that do not name us too (anchors keep fresh by that).
        """
        outcome = await unless(self._attempts(round_, update, listen), self._help_out())
        assert outcome is not None, "helping out never ends by itself"
        return outcome

    async def _attempts(self, round_: int, update: EncodedUpdate | None, listen: bool) -> Outcome:
        head, attempt = await self.watch.until(partial(self._applied_to, round_)), -1
        with ExitStack() as groups:
            while True:
                await self.watch.until(partial(self._news, round_, attempt))
                if self._over(round_):
                    return await self._conclude(round_)
                roster = self.watch.roster_after(round_, attempt)
                assert roster is not None, "that was the news"
                attempt = roster.record.attempt
                if roster.record.state_digest != head.record.state_digest:
                    log.error("roster starts from another state, ignored", round=round_)
                elif listen or self._named_in(roster.record):
                    await self._attempt(groups, head, roster, update)

    async def _help_out(self) -> None:
        """A reducer is gone: give the coordinator what results of it we hold. Never ends."""
        while True:
            wanted = await self.watch.until(self.watch.take_wanted)
            for group in self._groups:
                if group.group_id == wanted.group_id:
                    held = [group.pieces[c] for c in wanted.chunks if c in group.pieces]
                    log.info("asked for a lost reducer's results", held=len(held))
                    await self._submit(held)

    def _applied_to(self, round_: int) -> Signed[wire.RunHead] | None:
        """The head whose state the round's mean is applied to, unless there is a later one.

        With an overlap it comes when the round closes.
        """
        return self.watch.head_beyond(round_ + self.watch.lag_rounds - 1)

    def _over(self, round_: int) -> bool | None:
        """True when there is nothing to be done for the round any more."""
        ended = self.ending.is_set() and self.watch.has_ended(round_)
        return True if ended or self.watch.over(round_) is not None else None

    def _news(self, round_: int, attempt: int) -> bool | None:
        """True when the round is over or has a later attempt."""
        if self.watch.roster_after(round_, attempt) is not None:
            return True
        return self._over(round_)

    async def _attempt(
        self,
        groups: ExitStack,
        head: Signed[wire.RunHead],
        roster: Signed[wire.Roster],
        update: EncodedUpdate | None,
    ) -> None:
        self._last = _Attempt(roster)
        own_root = update.root if update is not None else None
        if not self._commits_to(roster.record, own_root):
            update = None
        try:
            group = self.swarm.open_group(roster, update)
        except (BadRecord, TransientError) as error:
            log.warning("cannot take part", round=roster.record.round, error=str(error))
            return
        groups.callback(group.close)
        self._groups.append(group)
        log.info(
            "reduce begins",
            round=roster.record.round,
            attempt=roster.record.attempt,
            members=len(roster.record.members),
            reducing=group.is_reducer,
        )
        inclusion = await self._gather(group, roster)
        if inclusion is None:
            return
        self._last.inclusion = inclusion
        if group.reducer is not None:
            self.retained.keep(group.reducer, inclusion)
        digest = await self._finish(group, head, roster, inclusion)
        await bring_proofs(self.session, group)
        if digest is not None and self.reports:
            await self._report(roster, digest)

    async def _gather(
        self, group: GroupReduce, roster: Signed[wire.Roster]
    ) -> Signed[wire.InclusionSet] | None:
        """Send and receive chunks until the coordinator has signed who is in.

        Returns:
            None when the attempt ended without that.
        """
        record = roster.record

        def ready() -> bool | None:
            decided = self.watch.inclusion_of(group.group_id) is not None
            return True if decided or self._news(record.round, record.attempt) else None

        await unless(self._exchange(group), self.watch.until(ready))
        await self.watch.until(ready)
        return self.watch.inclusion_of(group.group_id)

    async def _exchange(self, group: GroupReduce) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(group.gather())
            if group.is_reducer:
                tasks.create_task(self._send_reports(group))

    async def _send_reports(self, group: GroupReduce) -> None:
        async for report in group.reports():
            await self._send_report(report)

    async def _send_report(self, report: wire.Envelope) -> None:
        """Send until it is answered: it may be the last one, and no roster waits for a person."""
        failures, trouble = 0, Trouble("will report again")
        while True:
            try:
                reply = await self.session.reducer_report(report)
                break
            except TransientError as error:
                trouble.tell(error)
                await asyncio.sleep(backoff_s(failures, base_s=0.5, limit_s=_REPORT_AGAIN_S))
                failures += 1
            except (PeerFault, UsageError) as error:
                log.warning("reducer report refused", error=str(error))
                return
        if reply.HasField("inclusion_set") and reply.inclusion_set.payload:
            self.watch.offer_inclusion(reply.inclusion_set)

    async def _finish(
        self,
        group: GroupReduce,
        head: Signed[wire.RunHead],
        roster: Signed[wire.Roster],
        inclusion: Signed[wire.InclusionSet],
    ) -> bytes | None:
        """Combine, collect and step; meanwhile give own results to the coordinator.

        The step does not wait for a coordinator that is away.

        Returns:
            Digest of the state after our own step; None when the mean could not be had, or the
            attempt was over before.
        """
        async with asyncio.TaskGroup() as tasks:
            submitting = tasks.create_task(self._submit_own(group, inclusion.record))
            try:
                result = await unless(group.finish(inclusion), self._passed(inclusion.record))
            except (TransientError, PeerFault) as error:
                log.warning("reduce incomplete", error=str(error), pieces=len(group.pieces))
                result = None
            if result is None:  # what is missing will not come any more
                submitting.cancel()
                return None
            return await self._step(head, roster, inclusion, result)

    async def _passed(self, inclusion: wire.InclusionSet) -> None:
        """The round is over, and a moment more, for results in flight still save a download; or
        another attempt has begun."""
        await self.watch.until(partial(self._news, inclusion.round, inclusion.attempt))
        if self._over(inclusion.round):
            await asyncio.sleep(_LAST_MOMENT_S)

    async def _submit_own(self, group: GroupReduce, inclusion: wire.InclusionSet) -> None:
        """As soon as they are there, and for as long as the attempt waits for them."""
        await unless(self._submit_range(group, len(inclusion.members)), self._passed(inclusion))

    async def _submit_range(self, group: GroupReduce, members: int) -> None:
        pieces = await group.own_results()
        if pieces and group.reducer is not None:
            # First: the round may be settled as soon as the last result is there.
            await submit_screening(self.session, group.reducer.screener, members)
        await self._submit(pieces)

    async def _submit(self, pieces: list[api.ResultPiece]) -> set[int]:
        """Give results to the coordinator.

        Returns:
            The chunks that it still lacks.
        """
        if not pieces:
            return set()
        try:
            return set((await self.session.submit_results(pieces)).missing)
        except (TransientError, PeerFault, UsageError) as error:
            # It asks again in its answer to the report; else the next attempt begins.
            log.warning("results not taken by the coordinator", error=str(error))
            return set()

    async def _step(
        self,
        head: Signed[wire.RunHead],
        roster: Signed[wire.Roster],
        inclusion: Signed[wire.InclusionSet],
        result: ReduceResult,
    ) -> bytes | None:
        # Not the sum of the roster's weights: policy may cap those.
        tokens = inclusion.record.merged_tokens
        try:
            descriptor = await self.states.advance(
                head, result.mean_update, head.record.merged_tokens + tokens
            )
        except (TransientError, BadDigest, BadRecord, UsageError) as error:
            log.warning("no own outer step: will fetch the new state", error=str(error))
            return None
        settled_rounds = head.record.settled_rounds + 1
        self._own_step = _OwnStep(self._groups[-1], settled_rounds, descriptor.digest)
        log.info("outer step made", round=roster.record.round, state=descriptor.digest.hex()[:16])
        return descriptor.digest

    async def _report(self, roster: Signed[wire.Roster], digest: bytes) -> None:
        record = wire.Report(
            run_id=roster.record.run_id,
            round=roster.record.round,
            attempt=roster.record.attempt,
            worker=self.session.identity.peer_id,
            state_digest=digest,
        )
        key = report_key(record.round, record.attempt, record.worker)
        envelope = seal(record, self.session.identity)
        if self._over(record.round):
            await self.outbox.post(key, REPORT, record.round, envelope)
            return
        # While the coordinator is away the report waits in the outbox, not here.
        sending = self._deliver_report(key, record.round, envelope)
        await unless(sending, self.watch.until(partial(self._over, record.round)))

    async def _deliver_report(self, key: str, round_: int, envelope: wire.Envelope) -> None:
        try:
            reply = await self.outbox.deliver(key, REPORT, round_, envelope)
            assert isinstance(reply, api.ReportReply)
            await self._answer(reply)
        except (PeerFault, UsageError) as error:
            log.warning("report refused", error=str(error))

    async def _answer(self, reply: api.ReportReply) -> None:
        missing = set(reply.missing)
        for group in reversed(self._groups):
            held = [group.pieces[chunk] for chunk in sorted(missing) if chunk in group.pieces]
            if held:
                missing = await self._submit(held)
        if reply.HasField("run_head") and reply.run_head.payload:
            self.watch.offer_head(reply.run_head)

    async def _conclude(self, round_: int) -> Outcome:
        for group in self._groups:  # what came late, or could not be brought before
            await bring_proofs(self.session, group)
        head = self.watch.over(round_)
        stepped = head is not None and await self._confirm(head)
        if self._last is None:
            return Outcome(stepped=stepped)
        inclusion = self._last.inclusion
        me = self.session.identity.peer_id
        return Outcome(
            included=inclusion is not None and me in inclusion.record.members,
            decided=inclusion is not None,
            stepped=stepped,
            peers=len(self._last.roster.record.members),
        )

    async def _confirm(self, head: Signed[wire.RunHead]) -> bool:
        """Whether the own step led to the run's new state."""
        stepped = await self.states.confirm(head)
        step = self._own_step
        if step is not None and step.group is self._groups[-1] and step.contradicts(head.record):
            await bring_results(self.session, step.group)
        return stepped

    def _named_in(self, roster: wire.Roster) -> bool:
        me = self.session.identity.peer_id
        return any(member.worker == me for member in roster.members) or any(
            reducer.reducer == me for reducer in roster.reducers
        )

    def _commits_to(self, roster: wire.Roster, root: bytes | None) -> bool:
        me = self.session.identity.peer_id
        return any(m.worker == me and m.commitment_root == root for m in roster.members)
