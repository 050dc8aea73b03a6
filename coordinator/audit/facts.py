"""What the database knows of one audit, as the facts that :mod:`coordinator.audit.case` decides by.

Invariants:

* Needs follow from the audit, its roster and the layout alone, so they are the same after every
  restart, and challenges are found again under them.
* An opened chunk counts for every audit of that contribution: an appeal does not ask again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.case import UNASKED, Facts, Need, Replay, Source
from coordinator.audit.challenges import MAX_ANSWER_BYTES
from coordinator.audit.schema import (
    ANSWERED,
    DONE,
    OPENING,
    AuditJobRow,
    AuditRow,
    ChallengeRow,
    OpeningRow,
)
from coordinator.context import RunContext
from coordinator.reports import read_roster
from coordinator.schema import RosterRow
from protocol.projection import MAX_SIGNED_CHUNKS
from protocol.tolerance import Outcome
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

PROJECT, OPEN = service_pb2.CHALLENGE_KIND_PROJECT, service_pb2.CHALLENGE_KIND_OPEN


@dataclass(frozen=True)
class Share:
    """A range of chunks, and who can show the worker's bytes of it, best first."""

    first: int
    end: int
    holders: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """What one challenge asks for: a range to project, or chunks to open."""

    name: str
    holders: tuple[str, ...]
    first: int = 0
    end: int = 0
    chunks: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Chunks that it is about."""
        return len(self.chunks) or self.end - self.first


@dataclass(frozen=True)
class Compared:
    """What the comparisons of an audit found; kept in memory, since it can be computed again."""

    outcomes: Mapping[int, Outcome]
    agreeing: frozenset[tuple[int, int]]
    unreadable: frozenset[int]  # replays whose bytes are gone


@dataclass(frozen=True)
class Docket:
    """An audit's facts, and the pieces and challenges behind their needs."""

    facts: Facts
    pieces: Mapping[str, Piece]
    asked: Mapping[tuple[str, str], ChallengeRow]  # by piece, and by who was asked


def read_docket(
    session: Session,
    context: RunContext,
    audit: AuditRow,
    compared: Compared | None,
    now_s: float,
) -> Docket:
    """Everything that the next step of an audit depends on.

    Args:
        session: in a transaction.
        context: of the run.
        audit: which one.
        compared: what is known of its replays.
        now_s: the coordinator's clock.
    """
    shares = read_shares(session, context, audit)
    opening = audit.phase == OPENING
    asked = _asked(session, audit)
    if opening:
        pieces = opening_pieces(context, shares, json.loads(audit.chunks))
        shown = set(opened_numbers(session, audit))
        needs = [_need(piece, asked, met=shown.issuperset(piece.chunks)) for piece in pieces]
    else:
        pieces = projection_pieces(shares)
        needs = [_need(piece, asked) for piece in pieces]
    jobs = jobs_of(session, audit)
    options = context.options.audit
    facts = Facts(
        now_s=now_s,
        phase=audit.phase,
        since_s=audit.phase_since_s,
        projections=() if opening else tuple(needs),
        openings=tuple(needs) if opening else (),
        unprojected=opening and _is_unprojected(session, context, audit),
        replays=tuple(_replay(job, compared) for job in jobs if job.status == DONE),
        unfinished=sum(job.status != DONE for job in jobs),
        second=audit.second,
        agreeing=compared.agreeing if compared else frozenset(),
        answer_s=options.answer_s,
        patience_s=options.patience_s,
        most_replays=options.most_replays,
    )
    return Docket(facts, {piece.name: piece for piece in pieces}, asked)


def read_shares(session: Session, context: RunContext, audit: AuditRow) -> list[Share]:
    """The reducers' ranges; what was never reduced, only its worker has."""
    if not audit.group_id:
        return [Share(0, context.layout.count, (audit.worker,))]
    row = session.scalars(select(RosterRow).where(RosterRow.group_id == audit.group_id)).one()
    return [
        Share(
            share.first_chunk,
            share.end_chunk,
            tuple(dict.fromkeys((share.reducer, audit.worker))),
        )
        for share in read_roster(row).reducers
    ]


def projection_pieces(shares: Sequence[Share]) -> list[Piece]:
    """The whole update, in ranges that fit into one answer."""
    return [
        Piece(f"{first}-{end}", share.holders, first, end)
        for share in shares
        for first in range(share.first, share.end, MAX_SIGNED_CHUNKS)
        for end in (min(first + MAX_SIGNED_CHUNKS, share.end),)
    ]


def opening_pieces(
    context: RunContext, shares: Sequence[Share], chunks: Sequence[int]
) -> list[Piece]:
    """Chunks to open by who holds them, as many at a time as fit into one answer."""
    largest = context.layout.encoded_bytes(context.manifest.update.codec, 0)
    most = max(1, MAX_ANSWER_BYTES // largest)
    pieces = []
    for share in shares:
        held = [chunk for chunk in sorted(chunks) if share.first <= chunk < share.end]
        for start in range(0, len(held), most):
            part = tuple(held[start : start + most])
            name = ",".join(map(str, part))
            pieces.append(Piece(name, share.holders, chunks=part))
    return pieces


def opened_numbers(session: Session, audit: AuditRow) -> list[int]:
    """Chunks of the contribution that are proven, by this audit or an earlier one."""
    return list(
        session.scalars(
            select(OpeningRow.chunk).where(
                OpeningRow.audit_id.in_(audits_of(session, audit.assignment_id)),
                OpeningRow.member == audit.worker,
            )
        )
    )


def opened_chunks(session: Session, audit: AuditRow) -> dict[int, bytes]:
    """The proven chunks that this audit compares."""
    rows = session.execute(
        select(OpeningRow.chunk, OpeningRow.encoded).where(
            OpeningRow.audit_id.in_(audits_of(session, audit.assignment_id)),
            OpeningRow.member == audit.worker,
            OpeningRow.chunk.in_(json.loads(audit.chunks)),
        )
    )
    return {row.chunk: row.encoded for row in rows}


def audits_of(session: Session, assignment_id: bytes) -> list[bytes]:
    """Ids of all audits of a contribution: the first one, and its appeals."""
    query = select(AuditRow.audit_id).where(AuditRow.assignment_id == assignment_id)
    return list(session.scalars(query))


def jobs_of(session: Session, audit: AuditRow) -> list[AuditJobRow]:
    """Replays of an audit, by ordinal."""
    query = select(AuditJobRow).where(AuditJobRow.audit_id == audit.audit_id)
    return list(session.scalars(query.order_by(AuditJobRow.ordinal)))


def read_result(job: AuditJobRow) -> wire.AuditResult:
    """The signed result of a finished job."""
    assert job.result is not None, "done without a result"
    return wire.AuditResult.FromString(wire.Envelope.FromString(job.result).payload)


def _asked(session: Session, audit: AuditRow) -> dict[tuple[str, str], ChallengeRow]:
    """Challenges of the phase by piece and by who was asked."""
    kind = OPEN if audit.phase == OPENING else PROJECT
    rows = session.scalars(
        select(ChallengeRow).where(
            ChallengeRow.audit_id == audit.audit_id, ChallengeRow.kind == int(kind)
        )
    )
    return {(_piece_name(row), row.asked): row for row in rows}


def _piece_name(row: ChallengeRow) -> str:
    if row.kind == PROJECT:
        return f"{row.first_chunk}-{row.end_chunk}"
    return ",".join(map(str, json.loads(row.chunks)))


def _need(
    piece: Piece, asked: Mapping[tuple[str, str], ChallengeRow], *, met: bool = False
) -> Need:
    sources = []
    for who in piece.holders:
        row = asked.get((piece.name, who))
        if row is None:
            sources.append(Source(who, UNASKED))
        else:
            sources.append(Source(who, row.status, row.asked_at_s))
    answered = any(source.status == ANSWERED for source in sources)
    return Need(piece.name, tuple(sources), met or answered, piece.size)


def _is_unprojected(session: Session, context: RunContext, audit: AuditRow) -> bool:
    """Whether a range was given up before chunks were opened; an appeal projects nothing anew."""
    rows = session.scalars(
        select(ChallengeRow).where(
            ChallengeRow.audit_id == audit.audit_id,
            ChallengeRow.kind == int(PROJECT),
            ChallengeRow.status == ANSWERED,
        )
    )
    covered = {chunk for row in rows for chunk in range(row.first_chunk, row.end_chunk)}
    return not audit.appeal and len(covered) < context.layout.count


def _replay(job: AuditJobRow, compared: Compared | None) -> Replay:
    result = read_result(job)
    failed = result.failed
    if compared is not None and job.ordinal in compared.unreadable:
        failed = failed or "unreadable"
    outcome = None if compared is None else compared.outcomes.get(job.ordinal)
    return Replay(job.ordinal, result.auditor, result.execution, outcome, failed)
