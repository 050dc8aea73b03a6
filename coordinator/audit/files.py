"""What anybody needs to redo an audit, and to see that it was done right (GetAudit).

Invariants:

* Nothing here helps a worker that is being audited: the preimage, from which the chunks to open
  follow, only once its draw is published, and projections and chunks only once it is decided.
* Records are the bytes that were signed.
* The file itself is one gRPC message, so of the records whose number grows with the model only as
  many are in it as fit; the others follow one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.schema import (
    ANSWERED,
    DECIDED,
    AuditJobRow,
    AuditRow,
    ChallengeRow,
    DrawRow,
    OpeningRow,
    ProbationRow,
)
from coordinator.audit.tolerances import load_table
from coordinator.context import RunContext
from coordinator.schema import AssignmentRow, ContributionRow, RosterRow, RoundRow
from protocol.errors import BadRecord, NotFound, TransientError
from protocol.merkle import HASH_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

MAX_ROUND = 1 << 31
"""No database holds every integer that the wire can carry."""

MAX_FILE_BYTES = 2 << 20
"""Of an AuditFile with what is in it: half of the largest gRPC message."""

_ENVELOPE_SLACK_BYTES = 16
"""Tag and length of an envelope within the file."""

_log = structlog.get_logger()

OpeningKey = tuple[bytes, str, int]
"""Of an opened chunk: audit, member, chunk."""


@dataclass(frozen=True)
class Found:
    """The file, the records that follow it, and the keys of the chunks that follow them."""

    file: service_pb2.AuditFile
    more_results: tuple[wire.Envelope, ...]
    more_projections: tuple[wire.Envelope, ...]
    openings: tuple[OpeningKey, ...]

    def pieces(self) -> Iterator[service_pb2.AuditPiece]:
        """The file and the records, as they are streamed."""
        yield service_pb2.AuditPiece(file=self.file)
        for result in self.more_results:
            yield service_pb2.AuditPiece(audit_result=result)
        for projection in self.more_projections:
            yield service_pb2.AuditPiece(projection=projection)


def audit_file(
    session: Session,
    context: RunContext,
    round_: int,
    worker: str,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Found:
    """Everything about the audits of a contribution.

    Args:
        session: in a transaction.
        context: of the run.
        round_: of the contribution; of a probation unit, the round whose weights it started from.
        worker: PeerID.
        max_file_bytes: of the file with the records in it.

    Raises:
        NotFound: it was not audited, or what is needed to redo it is kept no more.
        TransientError: it is being audited.
    """
    known = 0 <= round_ < MAX_ROUND
    audits = (
        session.scalars(
            select(AuditRow)
            .where(AuditRow.round == round_, AuditRow.worker == worker)
            .order_by(AuditRow.created_at_s, AuditRow.appeal)
        ).all()
        if known
        else []
    )
    if not audits:
        raise NotFound(
            f"no contribution of {worker[:64]} in round {round_} was audited: the credits in the "
            "public record say by what chance each one was drawn"
        )
    audits = [row for row in audits if row.assignment_id == audits[-1].assignment_id]
    decided = [row for row in audits if row.phase == DECIDED]
    if not decided:
        raise TransientError("this contribution is being audited: ask again when it is decided")
    ids = [row.audit_id for row in decided]
    projections = _projections(session, ids)
    openings = _openings(session, ids)
    if not projections and not openings:
        raise NotFound(
            "what the worker showed in this audit is kept no more; its verdict is in the record"
        )
    file = service_pb2.AuditFile(
        verdicts=[_envelope(row.record) for row in decided if row.record is not None],
        projection_seed=decided[0].projection_seed,
        why=decided[0].why,
        opened_chunks=len(openings),
        tolerance=_tolerance(session),
    )
    _add_unit(session, decided[0], file)
    _add_draw(session, context, decided[0], file)
    results = _results(session, ids)
    file.audit_results.extend(_fitting(results, max_file_bytes - file.ByteSize()))
    file.projections.extend(_fitting(projections, max_file_bytes - file.ByteSize()))
    more_results = results[len(file.audit_results) :]
    more_projections = projections[len(file.projections) :]
    file.more_results, file.more_projections = len(more_results), len(more_projections)
    return Found(file, tuple(more_results), tuple(more_projections), tuple(openings))


def opened_chunk(session: Session, key: OpeningKey) -> wire.OpenedChunk:
    """One of the chunks that follow the file.

    Raises:
        NotFound: it was dropped meanwhile.
    """
    row = session.get(OpeningRow, key)
    if row is None:
        raise NotFound("this chunk was dropped a moment ago: ask again for what is kept")
    steps = range(0, len(row.proof), HASH_BYTES)
    return wire.OpenedChunk(
        chunk=row.chunk,
        encoded=row.encoded,
        proof=[row.proof[start : start + HASH_BYTES] for start in steps],
        member=row.member,
    )


def _fitting(records: Sequence[wire.Envelope], room_bytes: int) -> Iterator[wire.Envelope]:
    """The first ones, as many as there is room for: their order stays."""
    for record in records:
        room_bytes -= record.ByteSize() + _ENVELOPE_SLACK_BYTES
        if room_bytes < 0:
            return
        yield record


def _tolerance(session: Session) -> str:
    """The run's bounds as JSON; empty where there are none that this version can read."""
    try:
        table = load_table(session)
    except BadRecord as error:
        _log.error("tolerance_unreadable", error=str(error))
        return ""
    return "" if table is None else table.to_json()


def _envelope(data: bytes) -> wire.Envelope:
    return wire.Envelope.FromString(data)


def _projections(session: Session, ids: list[bytes]) -> list[wire.Envelope]:
    rows = session.scalars(
        select(ChallengeRow)
        .where(
            ChallengeRow.audit_id.in_(ids),
            ChallengeRow.kind == int(service_pb2.CHALLENGE_KIND_PROJECT),
            ChallengeRow.status == ANSWERED,
        )
        .order_by(ChallengeRow.first_chunk, ChallengeRow.asked_at_s)
    )
    return [_envelope(row.answer) for row in rows if row.answer is not None]


def _openings(session: Session, ids: list[bytes]) -> list[OpeningKey]:
    rows = session.execute(
        select(OpeningRow.audit_id, OpeningRow.member, OpeningRow.chunk)
        .where(OpeningRow.audit_id.in_(ids))
        .order_by(OpeningRow.chunk)
    )
    return [(row.audit_id, row.member, row.chunk) for row in rows]


def _results(session: Session, ids: list[bytes]) -> list[wire.Envelope]:
    query = select(AuditJobRow.result).where(AuditJobRow.audit_id.in_(ids))
    rows = session.scalars(query.order_by(AuditJobRow.created_at_s, AuditJobRow.ordinal))
    return [_envelope(data) for data in rows if data is not None]


def _add_unit(session: Session, audit: AuditRow, file: service_pb2.AuditFile) -> None:
    """What was assigned and contributed, and from which weights."""
    round_ = audit.round
    contribution = session.get(ContributionRow, audit.assignment_id)
    if contribution is not None:
        assignment = session.get_one(AssignmentRow, audit.assignment_id)
        file.assignment.ParseFromString(assignment.envelope)
        file.contribution.ParseFromString(contribution.envelope)
        file.chance_ppm = contribution.chance_ppm or 0
    else:
        probation = session.get_one(ProbationRow, audit.assignment_id)
        file.assignment.ParseFromString(probation.envelope)
        if probation.contribution is not None:
            file.contribution.ParseFromString(probation.contribution)
        round_ = probation.round
    row = session.get(RoundRow, round_)
    if row is not None:
        file.run_head.ParseFromString(row.head)


def _add_draw(
    session: Session, context: RunContext, audit: AuditRow, file: service_pb2.AuditFile
) -> None:
    """How it was drawn."""
    if not audit.group_id:
        return
    roster = session.scalars(select(RosterRow).where(RosterRow.group_id == audit.group_id)).one()
    file.roster.ParseFromString(roster.envelope)
    if roster.inclusion is not None:
        file.inclusion_set.ParseFromString(roster.inclusion)
    draw = session.get(DrawRow, audit.round)
    if draw is not None and draw.published:
        file.preimage = context.keys.draws.preimage(audit.round)
