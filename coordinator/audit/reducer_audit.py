"""Layer 5: result chunks are recomputed from their inputs, byte for byte.

Steps of an audit of one result chunk:

1. the inputs of all included members are asked of the reducer, and then, of each member, its own;
2. each of them is proven against the member's commitment as it comes in;
3. with every one of them, combining and encoding must give what the reducer signed.

Invariants:

* ``wrong_mean`` takes every input, proven, and the reducer's signature. One that cannot be had
  makes the audit UNAVAILABLE, which costs nobody credit or trust. The reducer had all of them, so
  it reduces no more for a while: a member that reduces could else always hide a wrong mean, by
  withholding its own input too.
* Two different signed results for one chunk convict without any inputs, whenever they turn up.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from coordinator import suspensions
from coordinator.audit.case import UNASKED, Ask, Decide, Need, Source, Wait, pursue
from coordinator.audit.challenges import MAX_ANSWER_BYTES, ask, withdraw
from coordinator.audit.schema import (
    DECIDED,
    SILENT,
    ChallengeRow,
    OpeningRow,
    ReducerAuditRow,
)
from coordinator.audit.verdict import convict_reducer, record_verdict
from coordinator.context import RunContext
from coordinator.reports import read_roster
from coordinator.schema import EvidenceRow, ResultRow, RosterRow
from coordinator.turn import Turn
from protocol.audit_policy import Verdict
from protocol.codec import MEAN_SOURCE
from protocol.combine import combine_chunk
from protocol.envelope import open_envelope
from protocol.errors import BadRecord, Diverged
from protocol.update import decode_chunk, encode_chunk, noise_key
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

T = TypeVar("T")

OPEN, INPUTS = service_pb2.CHALLENGE_KIND_OPEN, service_pb2.CHALLENGE_KIND_INPUTS
WRONG_MEAN, EQUIVOCATION = "wrong_mean", "equivocation"

_REDUCER, _MEMBER = "reducer", "member"
"""Sources of an input. They may be the same peer, and are asked in two ways all the same."""

_AUDITS_PER_STEP = 16
_EVIDENCE_PER_STEP = 16

_log = structlog.get_logger()


class RunTurn(Protocol):
    """Runs one transaction on the running round."""

    def __call__(self, work: Callable[[Turn], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True)
class Inputs:
    """All that a result chunk is computed from, and what was signed."""

    audit_id: bytes
    round: int
    chunk: int
    chunks: tuple[bytes, ...]  # proven, in roster order
    weights: tuple[int, ...]
    signed_sha256: bytes


class ResultDesk:
    """Takes the audits of result chunks forward; all of its state is in the database."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._after = b""  # the audit that was looked at last
        self._evidence = 0  # the newest evidence that was looked at

    async def step(self, turn: RunTurn) -> bool:
        """Take a batch of audits one step further.

        Returns:
            Whether anything changed.
        """
        changed, due = await turn(self._advance)
        for inputs in due:
            found = await asyncio.to_thread(recompute, self._context, inputs)
            await turn(partial(conclude, inputs=inputs, sha256=found))
        return changed or bool(due)

    def _advance(self, turn: Turn) -> tuple[bool, list[Inputs]]:
        changed = self._convict_equivocators(turn)
        rows = turn.session.scalars(
            select(ReducerAuditRow)
            .where(ReducerAuditRow.phase != DECIDED, ReducerAuditRow.audit_id > self._after)
            .order_by(ReducerAuditRow.audit_id)
            .limit(_AUDITS_PER_STEP)
        ).all()
        due: list[Inputs] = []
        for row in rows:
            if due:
                break  # one at a time: inputs of many members are large
            self._after = row.audit_id
            outcome = advance(turn, row)
            if isinstance(outcome, Inputs):
                due.append(outcome)
            else:
                changed |= outcome
        else:
            if len(rows) < _AUDITS_PER_STEP:
                self._after = b""
        return changed, due

    def _convict_equivocators(self, turn: Turn) -> bool:
        rows = turn.session.scalars(
            select(EvidenceRow)
            .where(EvidenceRow.kind == "result", EvidenceRow.id > self._evidence)
            .order_by(EvidenceRow.id)
            .limit(_EVIDENCE_PER_STEP)
        ).all()
        convicted = [convict_equivocator(turn, row) for row in rows]
        if rows:
            self._evidence = rows[-1].id
        return any(convicted)


def advance(turn: Turn, row: ReducerAuditRow) -> Inputs | bool:
    """One step of an audit: ask, give up, or hand over the inputs; else whether it changed."""
    group = _Group.read(turn, row)
    options = turn.context.options.audit
    decision = pursue(
        group.needs(),
        now_s=turn.now_s,
        answer_s=options.answer_s,
        out_of_patience=turn.now_s >= row.created_at_s + options.patience_s,
        reason="inputs_unavailable",
    )
    match decision:
        case Wait():
            return False
        case Ask():
            group.ask(decision)
            return True
        case Decide():
            _finish(turn, row, decision.verdict, decision.reason, [])
            _suspend(turn, row.reducer)
            return True
    return group.inputs()


def _suspend(turn: Turn, reducer: str) -> None:
    rounds = select(func.count(ReducerAuditRow.round.distinct())).where(
        ReducerAuditRow.reducer == reducer, ReducerAuditRow.verdict == Verdict.UNAVAILABLE
    )
    times = turn.session.scalar(rounds) or 1
    suspensions.note_withheld_inputs(turn.session, reducer, turn.machine.number, times)


def recompute(context: RunContext, inputs: Inputs) -> bytes | None:
    """SHA-256 of the encoded mean of the inputs; None when they have none. Blocks."""
    codec, size = context.manifest.update.codec, context.layout.chunk_size(inputs.chunk)
    try:
        values = [decode_chunk(codec, encoded, size) for encoded in inputs.chunks]
        mean = combine_chunk(context.manifest.update.combine, values, inputs.weights)
        key = noise_key(context.run_id, inputs.round, inputs.chunk, MEAN_SOURCE)
        return hashlib.sha256(encode_chunk(codec, mean, key)).digest()
    except (BadRecord, Diverged):
        return None


def conclude(turn: Turn, inputs: Inputs, sha256: bytes | None) -> None:
    """Write the verdict, unless it is written already."""
    row = turn.session.get_one(ReducerAuditRow, inputs.audit_id)
    if row.phase == DECIDED:
        return
    if sha256 is None:
        # Inputs that cannot be combined should never have been taken, but that is another fault.
        _finish(turn, row, Verdict.INCONCLUSIVE, "inputs_not_combinable", [])
    elif sha256 == inputs.signed_sha256:
        _finish(turn, row, Verdict.PASSED, "recomputed", [])
    else:
        finding = wire.Finding(what="bytes", chunk=row.chunk, sha256=inputs.signed_sha256)
        _finish(turn, row, Verdict.FAILED, WRONG_MEAN, [finding])


def convict_equivocator(turn: Turn, evidence: EvidenceRow) -> bool:
    """Convict a reducer by two results that it signed for one chunk, once for a reduce.

    Returns:
        Whether it was not convicted of that before.
    """
    first, second = (
        open_envelope(wire.Envelope.FromString(data), wire.ResultChunk, signer=evidence.signer)
        for data in (evidence.first, evidence.second)
    )
    one, other = first.record, second.record
    if (one.group_id, one.chunk) != (other.group_id, other.chunk) or one.sha256 == other.sha256:
        return False
    known = select(ReducerAuditRow.audit_id).where(
        ReducerAuditRow.group_id == one.group_id,
        ReducerAuditRow.reducer == evidence.signer,
        ReducerAuditRow.reason == EQUIVOCATION,
    )
    if turn.session.scalars(known).first() is not None:
        return False
    roster = turn.session.scalars(select(RosterRow).where(RosterRow.group_id == one.group_id)).one()
    findings = [
        wire.Finding(what="bytes", chunk=record.chunk, sha256=record.sha256)
        for record in (one, other)
    ]
    convict_reducer(
        turn, evidence.signer, roster.round, one.group_id, one.chunk, EQUIVOCATION, findings
    )
    return True


@dataclass(frozen=True)
class _Group:
    """The reduce that a result chunk came from, as far as it was shown."""

    turn: Turn
    row: ReducerAuditRow
    members: tuple[wire.RosterMember, ...]  # included, in roster order
    batches: Mapping[str, tuple[str, ...]]  # by member: whose inputs are asked for together
    asked: Mapping[tuple[int, str, tuple[str, ...]], ChallengeRow]  # kind, who, members
    shown: Mapping[str, bytes]  # by member

    @classmethod
    def read(cls, turn: Turn, row: ReducerAuditRow) -> _Group:
        session = turn.session
        roster_row = session.scalars(
            select(RosterRow).where(RosterRow.group_id == row.group_id)
        ).one()
        assert roster_row.inclusion is not None, "settled without an inclusion set"
        payload = wire.Envelope.FromString(roster_row.inclusion).payload
        included = set(wire.InclusionSet.FromString(payload).members)
        members = tuple(m for m in read_roster(roster_row).members if m.worker in included)
        codec = turn.context.manifest.update.codec
        encoded_bytes = turn.context.layout.encoded_bytes(codec, row.chunk)
        challenges = session.scalars(
            select(ChallengeRow).where(ChallengeRow.audit_id == row.audit_id)
        )
        return cls(
            turn,
            row,
            members,
            _batches(
                [member.worker for member in members], max(1, MAX_ANSWER_BYTES // encoded_bytes)
            ),
            {(c.kind, c.asked, tuple(json.loads(c.members))): c for c in challenges},
            _shown(session, row),
        )

    def needs(self) -> list[Need]:
        """One input of each member."""
        return [
            Need(
                member.worker,
                (self._source(member.worker, _REDUCER), self._source(member.worker, _MEMBER)),
                met=member.worker in self.shown,
            )
            for member in self.members
        ]

    def ask(self, decision: Ask) -> None:
        """Carry out what :func:`pursue` wants."""
        assignments = {member.worker: member.assignment_id for member in self.members}
        for member, source in decision.ask:
            kind, who, members = self._key(member, source)
            ask(
                self.turn.session,
                audit_id=self.row.audit_id,
                kind=kind,
                asked=who,
                members=members,
                now_s=self.turn.now_s,
                group_id=self.row.group_id,
                assignment_id=assignments[member] if source == _MEMBER else b"",
                chunks=[self.row.chunk],
            )
        for member, source in decision.silent:
            self.asked[self._key(member, source)].status = SILENT

    def inputs(self) -> Inputs:
        """Everything, once it is there."""
        result = self.turn.session.get_one(ResultRow, (self.row.group_id, self.row.chunk))
        return Inputs(
            audit_id=self.row.audit_id,
            round=self.row.round,
            chunk=self.row.chunk,
            chunks=tuple(self.shown[member.worker] for member in self.members),
            weights=tuple(member.weight for member in self.members),
            signed_sha256=result.sha256,
        )

    def _key(
        self, member: str, source: str
    ) -> tuple[service_pb2.ChallengeKind, str, tuple[str, ...]]:
        if source == _REDUCER:
            return INPUTS, self.row.reducer, self.batches[member]
        return OPEN, member, (member,)

    def _source(self, member: str, source: str) -> Source:
        row = self.asked.get(self._key(member, source))
        return (
            Source(source, UNASKED) if row is None else Source(source, row.status, row.asked_at_s)
        )


def _batches(members: list[str], most: int) -> dict[str, tuple[str, ...]]:
    found = {}
    for start in range(0, len(members), most):
        batch = tuple(members[start : start + most])
        found.update(dict.fromkeys(batch, batch))
    return found


def _shown(session: Session, row: ReducerAuditRow) -> dict[str, bytes]:
    rows = session.execute(
        select(OpeningRow.member, OpeningRow.encoded).where(
            OpeningRow.audit_id == row.audit_id, OpeningRow.chunk == row.chunk
        )
    )
    return {found.member: found.encoded for found in rows}


def _finish(
    turn: Turn, row: ReducerAuditRow, verdict: Verdict, reason: str, findings: list[wire.Finding]
) -> None:
    record_verdict(turn, row, verdict, reason, findings, [])
    withdraw(turn.session, row.audit_id)
    if verdict is not Verdict.FAILED:  # otherwise they are the evidence
        turn.session.execute(delete(OpeningRow).where(OpeningRow.audit_id == row.audit_id))
