"""One transaction's work on a running round: events in, effects carried out, all or nothing.

Invariants:

* The state machine's new state and everything that its effects write commit together, so a
  coordinator that is killed at any instruction comes back to a state and effects that agree.
* What others are to hear (:attr:`AfterCommit.events`) is collected here and sent only after the
  commit.
* When a round ends, the next one opens in the same transaction; with ``overlap = lag1`` it opens
  when a round closes. There is always exactly one round in training, the one with the highest
  number; the one before it may be alive beside it (:attr:`Turn.reducing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator import leases, round_state, suspensions
from coordinator.candidates import reducer_candidates, roster_members, still_welcome
from coordinator.context import RunContext, to_ms
from coordinator.ending import drop_results, free_leases
from coordinator.opening import (
    newest_state,
    note_whether_finished,
    open_round,
    running_round,
    running_rounds,
)
from coordinator.record import log_ended_rounds
from coordinator.roster import choose_reducers
from coordinator.round import tick
from coordinator.round_state import Effect, Event, FreeLeases, Phase, Round, Settle
from coordinator.schema import (
    EXPIRED,
    AssignmentRow,
    ContributionRow,
    ResultRow,
    RosterRow,
    RoundRow,
)
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

GROUP_ID_BYTES = 20

_log = structlog.get_logger()


def current_roster(session: Session, machine: Round) -> RosterRow | None:
    """The roster of the running attempt, once it is signed."""
    return session.get(RosterRow, (machine.number, machine.attempt)) if machine.reducers else None


@dataclass
class AfterCommit:
    """What follows once a transaction is committed; the turns of its rounds share one."""

    events: list[service_pb2.RunEvent] = field(default_factory=list)
    settle_due: bool = False
    leaves_added: bool = False


def closes(before: Round, after: Round) -> bool:
    """Whether an event ended the training of a round that goes on to be reduced."""
    return before.accepts_commits and after.phase is Phase.GATHER


class Turn:
    """The round in training within one transaction; :attr:`reducing` may be another one."""

    row: RoundRow
    machine: Round
    _stored: Round  # as the row has it

    def __init__(
        self,
        context: RunContext,
        session: Session,
        now_s: float,
        is_absent: Callable[[str], bool] = lambda _worker: False,
    ) -> None:
        self.context = context
        self.session = session
        self.now_s = now_s
        self.is_absent = is_absent
        self.then = AfterCommit()
        self.storing = True  # the round at each event, or once at the end of a batch
        self.head = b""  # of the round in training, once the work is done
        self._earlier: Turn | None = None
        self._later: Turn | None = None
        if context.manifest.lag_rounds:
            *earlier, row = running_rounds(session)
            for reducing in earlier:
                self._overlap(reducing)
        else:
            row = running_round(session)
        self._take_up(row)

    @property
    def reducing(self) -> Turn:
        """The round that is reduced, or will be before any other."""
        return self._earlier or self

    @property
    def running(self) -> tuple[Turn, ...]:
        """Every round that is alive, the earlier one first."""
        return (self,) if self._earlier is None else (self._earlier, self)

    def apply(self, event: Event) -> None:
        """Feed one event to the state machine and carry out what it asks for."""
        before = self.machine
        self.machine, effects = tick(before, event, self.now_s)
        if effects or self.storing:
            self.store()
        if self.machine.phase is not before.phase:
            self._announce_phase()
        suspensions.take_note(self.session, before, self.machine)
        self.context.speeds.take_note(self.machine, self.now_s)
        for effect in effects:
            self._carry_out(effect)
        if self.machine.ended and self.row.ended_at_s is None:
            self._end()
        elif self.context.manifest.lag_rounds and closes(before, self.machine):
            self.store()
            self._overlap(self.row)
            self._open_next(earlier_reducing=True)

    def expire(self, worker: str) -> None:
        """Give up the open lease of a worker that left or fell silent."""
        row = self.session.scalars(
            select(AssignmentRow).where(
                AssignmentRow.round == self.machine.number, AssignmentRow.worker == worker
            )
        ).one()
        row.status = EXPIRED
        leases.release(self.session, row.assignment_id)
        self.apply(round_state.Abandoned(worker))

    def say(self, event: service_pb2.RunEvent) -> None:
        """Queue an event of the running round for everybody who watches."""
        event.MergeFrom(self.describe_phase())
        self.then.events.append(event)

    def describe_phase(self) -> service_pb2.RunEvent:
        """An event without content: phase, round, and the times that go with them."""
        deadline_s = self.machine.deadline_s
        return service_pb2.RunEvent(
            phase=self.machine.phase.value,
            round=self.machine.number,
            server_time_ms=to_ms(self.now_s),
            deadline_ms=0 if deadline_s is None else to_ms(deadline_s),
            running_from=self.reducing.machine.number + self.reducing.machine.ended,
        )

    # ---- effects ----

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case round_state.SignRoster():
                self._sign_roster(effect)
            case round_state.SignInclusion():
                self._sign_inclusion(effect)
            case FreeLeases():
                free_leases(self.session, self.machine.number)
            case round_state.AskHolders():
                self._ask_holders()
            case Settle():
                self.then.settle_due = True
            case round_state.Skip():
                self.row.reason = effect.reason
                _log.warning("round_skipped", round=self.machine.number, reason=effect.reason)

    def _sign_roster(self, effect: round_state.SignRoster) -> None:
        layout, update = self.context.layout, self.context.manifest.update
        members = still_welcome(self, effect.members)
        shares = choose_reducers(
            reducer_candidates(self, members),
            layout.count,
            avoid=effect.avoid,
            anchors_only=effect.anchors_only,
        )
        if not shares or not members:
            return  # asked again at the next tick, until the attempt's deadline
        assert self.machine.deadline_s is not None
        assert self.machine.broadcast_deadline_s is not None
        record = wire.Roster(
            run_id=self.context.run_id,
            round=self.machine.number,
            attempt=effect.attempt,
            state_digest=newest_state(self.session).digest,
            members=roster_members(self, members),
            reducers=[
                wire.ReducerRange(
                    reducer=share.candidate.worker,
                    first_chunk=share.first,
                    end_chunk=share.end,
                    multiaddrs=share.candidate.multiaddrs,
                )
                for share in shares
            ],
            codec=update.codec,
            combine=update.combine,
            vector_elements=layout.elements,
            chunk_elements=layout.chunk_elements,
            chunk_count=layout.count,
            gather_deadline_ms=to_ms(self.machine.deadline_s),
            broadcast_deadline_ms=to_ms(self.machine.broadcast_deadline_s),
        )
        envelope = self.context.sign(record)
        digest = hashlib.sha256(envelope.payload).digest()
        self.row.roster_digest = digest
        self.session.add(
            RosterRow(
                round=self.machine.number,
                attempt=effect.attempt,
                group_id=digest[:GROUP_ID_BYTES],
                envelope=envelope.SerializeToString(),
            )
        )
        self.session.flush()
        left_out = tuple(worker for worker in effect.members if worker not in members)
        reducers = tuple(share.candidate.worker for share in shares)
        chunks = {share.candidate.worker: share.end - share.first for share in shares}
        self.context.speeds.begin(self.machine.number, effect.attempt, chunks, self.now_s)
        self.apply(round_state.RosterSigned(reducers, left_out))
        self.say(service_pb2.RunEvent(roster=envelope))
        _log.info(
            "roster_signed",
            round=self.machine.number,
            attempt=effect.attempt,
            members=len(members),
            reducers=len(shares),
        )

    def _sign_inclusion(self, effect: round_state.SignInclusion) -> None:
        roster = self.session.get_one(RosterRow, (self.machine.number, effect.attempt))
        merged_tokens = self.session.scalar(
            select(func.sum(ContributionRow.tokens)).where(
                ContributionRow.round == self.machine.number,
                ContributionRow.worker.in_(effect.members),
            )
        )
        envelope = self.context.sign(
            wire.InclusionSet(
                run_id=self.context.run_id,
                round=self.machine.number,
                attempt=effect.attempt,
                group_id=roster.group_id,
                members=effect.members,
                merged_tokens=int(merged_tokens or 0),  # PostgreSQL sums to a Decimal
            )
        )
        roster.inclusion = envelope.SerializeToString()
        self.say(service_pb2.RunEvent(inclusion_set=envelope))
        _log.info("inclusion_signed", round=self.machine.number, members=len(effect.members))

    def wanted_results(self) -> service_pb2.RunEvent | None:
        """What holders are asked to bring, while a reducer of the attempt is gone."""
        roster = current_roster(self.session, self.machine)
        if roster is None or self.machine.rescue_until_s is None:
            return None
        held = select(ResultRow.chunk).where(ResultRow.group_id == roster.group_id)
        lacking = set(range(self.context.layout.count)) - set(self.session.scalars(held))
        wanted = service_pb2.ResultsWanted(group_id=roster.group_id, chunks=sorted(lacking))
        return service_pb2.RunEvent(results_wanted=wanted)

    def _ask_holders(self) -> None:
        wanted = self.wanted_results()
        assert wanted is not None
        self.say(wanted)
        chunks = len(wanted.results_wanted.chunks)
        _log.warning("reducer_lost", round=self.machine.number, chunks_wanted=chunks)

    # ---- from round to round ----

    def store(self) -> None:
        """Write the round down, if it has changed."""
        if self.machine is not self._stored:
            self._stored = self.machine
            self.row.machine = round_state.dump(self.machine)
            self.row.phase = self.machine.phase.value

    def _announce_phase(self) -> None:
        """Phases that come with no record of their own."""
        notice = {
            Phase.TRAINING: "is training",
            Phase.COMMITTING: "is in its grace: commit now",
            Phase.SKIPPED: f"was skipped: {self.machine.reason}",
            Phase.SETTLED: "is settled",
        }.get(self.machine.phase)
        if notice is not None:
            text = f"round {self.machine.number} {notice}"
            self.say(service_pb2.RunEvent(notice=text))

    def _end(self) -> None:
        self.row.ended_at_s = self.now_s
        self.session.flush()
        drop_results(self.session, self.machine.number)
        self.row.settled_after = newest_state(self.session).settled_rounds
        self.then.leaves_added |= log_ended_rounds(self.context, self.session, self.now_s)
        if self._later is None:
            self._open_next(earlier_reducing=False)
            return
        later, self._later = self._later, None
        later._earlier = None
        note_whether_finished(self.context, self.session, later.machine.number)
        later.apply(round_state.EarlierEnded())

    def _open_next(self, *, earlier_reducing: bool) -> None:
        self._take_up(
            open_round(
                self.context,
                self.session,
                self.machine.number + 1,
                self.now_s,
                earlier_reducing=earlier_reducing,
            )
        )
        self.say(service_pb2.RunEvent(run_head=wire.Envelope.FromString(self.row.head)))

    def _take_up(self, row: RoundRow) -> None:
        self.row = row
        self.machine = self._stored = round_state.load(row.machine)

    def _overlap(self, row: RoundRow) -> None:
        """That round is reduced while this turn's is trained."""
        earlier = copy(self)
        earlier.storing = True
        earlier._take_up(row)
        earlier._earlier, earlier._later, self._earlier = None, self, earlier
