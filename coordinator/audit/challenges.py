"""What members are asked to show, and what they answer.

Steps for an answer, in order of rising cost; the caller has checked that its signer is who it says:

1. the challenge exists, its audit is open, and the signer is the one who was asked;
2. the same answer again gets the same reply; another one is a conflict, and both are kept;
3. shape: exactly the chunks that were asked for, each of exactly its encoded size, bound to the
   signature by their hashes; projections of exactly the range, all of them finite. What fails
   here is not kept at all;
4. each chunk is proven to be under the commitment of the member whose it is said to be.

Invariants:

* A chunk that is kept is proven: whoever brought it, the proof decides.
* An answer with a bad proof says nothing of the worker: it is REFUSED, and somebody else is asked.
* What answers can store is bounded by what was asked: a chunk of a member is kept once an audit.
* Silence is not final: while the audit is open, a late answer counts like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from coordinator.audit.schema import (
    ANSWERED,
    ASKED,
    DECIDED,
    PENDING,
    REFUSED,
    SILENT,
    AuditRow,
    ChallengeRow,
    OpeningRow,
    ProbationRow,
    ReducerAuditRow,
)
from coordinator.evidence import keep_evidence
from coordinator.opening import running_rounds
from coordinator.schema import ContributionRow
from coordinator.turn import Turn
from protocol import merkle
from protocol.envelope import Signed
from protocol.errors import BadDigest, BadRecord, Conflict, NotFound, ProtocolError, TooLate
from protocol.projection import unpack_projections
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

MAX_ANSWER_BYTES = 3 << 20
"""Encoded chunks of one answer: with proofs and signature well under a gRPC message."""

_PER_HEARTBEAT = 16
_CHALLENGE_ID_BYTES = 16
_REASON = re.compile(r"[a-z0-9_]{1,64}")

Member = tuple[str, int]
"""Whose chunk, and its number."""

_log = structlog.get_logger()


def ask(
    session: Session,
    *,
    audit_id: bytes,
    kind: service_pb2.ChallengeKind,
    asked: str,
    members: Sequence[str],
    now_s: float,
    group_id: bytes = b"",
    assignment_id: bytes = b"",
    first_chunk: int = 0,
    end_chunk: int = 0,
    chunks: Sequence[int] = (),
    projection_seed: bytes = b"",
) -> ChallengeRow:
    """Ask somebody to show something, with its next heartbeat; asking again changes nothing.

    Args:
        session: in a transaction.
        audit_id: of an audit or of a reducer audit.
        kind: what is to be shown.
        asked: PeerID of who is to answer.
        members: whose chunks.
        now_s: the coordinator's clock.
        group_id: where they were reduced; empty for a probation unit.
        assignment_id: of the member; empty for INPUTS.
        first_chunk: PROJECT: begin of the range.
        end_chunk: PROJECT: its end, exclusive.
        chunks: OPEN, INPUTS: their numbers.
        projection_seed: PROJECT: 32 bytes.
    """
    fields = [audit_id.hex(), int(kind), asked, list(members), first_chunk, end_chunk, list(chunks)]
    challenge_id = hashlib.sha256(json.dumps(fields).encode()).digest()[:_CHALLENGE_ID_BYTES]
    row = session.get(ChallengeRow, challenge_id)
    if row is None:
        row = ChallengeRow(
            challenge_id=challenge_id,
            audit_id=audit_id,
            kind=int(kind),
            asked=asked,
            members=json.dumps(list(members)),
            group_id=group_id,
            assignment_id=assignment_id,
            first_chunk=first_chunk,
            end_chunk=end_chunk,
            chunks=json.dumps(list(chunks)),
            projection_seed=projection_seed,
            status=ASKED,
            asked_at_s=now_s,
        )
        session.add(row)
        session.flush()
    return row


def who_is_asked(session: Session, workers: Collection[str]) -> set[str]:
    """Those of some workers that have something to show."""
    asked = select(ChallengeRow.asked).where(
        ChallengeRow.asked.in_(workers), ChallengeRow.status.in_((ASKED, SILENT))
    )
    return set(session.scalars(asked.distinct()))


def open_challenges(turn: Turn, worker: str) -> list[service_pb2.Challenge]:
    """What a worker is to be told with its heartbeat; bounded, what it let lie comes last."""
    rows = turn.session.scalars(
        select(ChallengeRow)
        .where(ChallengeRow.asked == worker, ChallengeRow.status.in_((ASKED, SILENT)))
        .order_by(ChallengeRow.status, ChallengeRow.asked_at_s, ChallengeRow.challenge_id)
        .limit(_PER_HEARTBEAT)
    )
    return [
        service_pb2.Challenge(
            challenge_id=row.challenge_id,
            kind=service_pb2.ChallengeKind.Name(row.kind),
            group_id=row.group_id,
            assignment_id=row.assignment_id,
            members=json.loads(row.members),
            first_chunk=row.first_chunk,
            end_chunk=row.end_chunk,
            chunks=json.loads(row.chunks),
            projection_seed=row.projection_seed,
        )
        for row in rows
    ]


def withdraw(session: Session, audit_id: bytes, keep: Iterable[bytes] = ()) -> None:
    """Take back what nobody has to answer any more.

    Args:
        session: in a transaction.
        audit_id: whose challenges.
        keep: ids of those that stay.
    """
    session.execute(
        delete(ChallengeRow).where(
            ChallengeRow.audit_id == audit_id,
            ChallengeRow.status.in_((ASKED, SILENT)),
            ChallengeRow.challenge_id.not_in(list(keep)),
        )
    )


def retain_from_round(session: Session) -> int:
    """The oldest round whose bytes an audit may still need; older ones can be dropped everywhere.

    Rounds with an open audit, and those whose credit is pending: when its donor is convicted of
    something else, all that is pending is audited.
    """
    oldest = [
        session.scalar(select(func.min(AuditRow.round)).where(AuditRow.phase != DECIDED)),
        session.scalar(
            select(func.min(ReducerAuditRow.round)).where(ReducerAuditRow.phase != DECIDED)
        ),
        session.scalar(
            select(func.min(ContributionRow.round)).where(ContributionRow.credit == PENDING)
        ),
        running_rounds(session)[0].number,
    ]
    return min(round_ for round_ in oldest if round_ is not None)


def accept_answer(
    turn: Turn,
    signed: Signed[wire.ChallengeAnswer],
    chunks: Sequence[wire.OpenedChunk],
) -> service_pb2.ChallengeReply | ProtocolError:
    """Keep an answer; see the module's steps.

    Args:
        turn: the caller's transaction.
        signed: verified, of this run.
        chunks: what came with it.

    Returns:
        The reply, or the error to raise once evidence is committed.

    Raises:
        NotFound: nobody asked this, or it is not needed any more.
        TooLate: the audit is over.
        BadRecord, BadDigest: it is not an answer to what was asked.
    """
    record = signed.record
    row = _asked_row(turn.session, signed)
    if row.answer is not None:
        if row.answer_digest == signed.digest:
            return service_pb2.ChallengeReply(valid=row.status == ANSWERED)
        keep_evidence(turn.session, "challenge", row.answer, signed, turn.now_s)
        return Conflict("another answer to this challenge is kept: both are evidence now")
    if _is_over(turn.session, row.audit_id):
        raise TooLate("the audit that asked this is over: drop the answer")
    if record.unavailable:
        _check_unavailable(record, chunks)
        valid = False
    elif row.kind == service_pb2.CHALLENGE_KIND_PROJECT:
        _check_projections(row, record, chunks)
        valid = True
    else:
        shown = _check_shape(turn, row, record, chunks)
        valid = _keep_proven(turn, row, shown)
    row.status = ANSWERED if valid else REFUSED
    row.answer, row.answer_digest = signed.envelope.SerializeToString(), signed.digest
    kind = service_pb2.ChallengeKind.Name(row.kind).rpartition("_")[2].lower()
    reason = record.unavailable or ("" if valid else "bad_proof")
    _log.info("challenge_answered", kind=kind, by=row.asked, valid=valid, reason=reason)
    return service_pb2.ChallengeReply(valid=valid)


def _asked_row(session: Session, signed: Signed[wire.ChallengeAnswer]) -> ChallengeRow:
    record = signed.record
    if len(record.challenge_id) != _CHALLENGE_ID_BYTES:
        raise BadRecord(f"a challenge's id has {_CHALLENGE_ID_BYTES} bytes")
    row = session.get(ChallengeRow, record.challenge_id)
    if row is None:
        raise NotFound("this is not asked, or not needed any more: drop the answer")
    if row.asked != signed.signer or record.worker != signed.signer:
        raise BadRecord("somebody else was asked this")
    return row


def _is_over(session: Session, audit_id: bytes) -> bool:
    row = session.get(AuditRow, audit_id) or session.get(ReducerAuditRow, audit_id)
    return row is None or row.phase == DECIDED


def _check_unavailable(record: wire.ChallengeAnswer, chunks: Sequence[object]) -> None:
    if not _REASON.fullmatch(record.unavailable):
        raise BadRecord("unavailable is a stable word of at most 64 characters")
    if chunks or record.chunk_sha256 or record.projections:
        raise BadRecord("an answer shows something or is unavailable, not both")


def _check_projections(
    row: ChallengeRow, record: wire.ChallengeAnswer, chunks: Sequence[object]
) -> None:
    if chunks or record.chunk_sha256:
        raise BadRecord("an answer with projections carries no chunks")
    unpack_projections(record.projections, row.end_chunk - row.first_chunk)


def _check_shape(
    turn: Turn,
    row: ChallengeRow,
    record: wire.ChallengeAnswer,
    chunks: Sequence[wire.OpenedChunk],
) -> Mapping[Member, wire.OpenedChunk]:
    """Step 3: the asked chunks by member and number."""
    if record.projections:
        raise BadRecord("an answer with chunks carries no projections")
    wanted = {
        (member, chunk) for member in json.loads(row.members) for chunk in json.loads(row.chunks)
    }
    shown = {(opened.member, opened.chunk): opened for opened in chunks}
    if len(chunks) != len(wanted) or shown.keys() != wanted:
        raise BadRecord(f"the answer has not exactly the {len(wanted)} chunks that were asked for")
    if len(record.chunk_sha256) != len(chunks):
        raise BadRecord("chunk_sha256 has one hash for each chunk, in order")
    layout, codec = turn.context.layout, turn.context.manifest.update.codec
    longest_proof = (layout.count - 1).bit_length()
    for opened, digest in zip(chunks, record.chunk_sha256, strict=True):
        expected = layout.encoded_bytes(codec, opened.chunk)
        if len(opened.encoded) != expected or len(opened.proof) > longest_proof:
            raise BadRecord(f"chunk {opened.chunk} has not {expected} bytes, or too long a proof")
        if hashlib.sha256(opened.encoded).digest() != digest:
            raise BadDigest(f"chunk {opened.chunk} does not hash to what was signed")
    return shown


def _keep_proven(turn: Turn, row: ChallengeRow, shown: Mapping[Member, wire.OpenedChunk]) -> bool:
    """Step 4: all of the chunks, or none."""
    roots = commitment_roots(turn.session, row)
    count = turn.context.layout.count
    for (member, chunk), opened in shown.items():
        leaf = merkle.leaf_hash(opened.encoded)
        try:
            merkle.verify_inclusion(leaf, chunk, count, opened.proof, roots.get(member, b""))
        except BadDigest:
            return False
    for (member, chunk), opened in shown.items():
        if turn.session.get(OpeningRow, (row.audit_id, member, chunk)) is None:
            turn.session.add(
                OpeningRow(
                    audit_id=row.audit_id,
                    member=member,
                    chunk=chunk,
                    encoded=opened.encoded,
                    proof=b"".join(opened.proof),
                )
            )
    turn.session.flush()
    return True


def commitment_roots(session: Session, row: ChallengeRow) -> dict[str, bytes]:
    """What the members of a challenge committed to, as their contributions say it."""
    if row.kind == service_pb2.CHALLENGE_KIND_INPUTS or not row.assignment_id:
        audit = session.get_one(ReducerAuditRow, row.audit_id)
        found = session.execute(
            select(ContributionRow.worker, ContributionRow.commitment_root).where(
                ContributionRow.round == audit.round,
                ContributionRow.worker.in_(json.loads(row.members)),
            )
        )
        return {row.worker: row.commitment_root for row in found}
    contribution = session.get(ContributionRow, row.assignment_id)
    if contribution is not None:
        return {contribution.worker: contribution.commitment_root}
    probation = session.get_one(ProbationRow, row.assignment_id)
    assert probation.contribution is not None, "audited before it was committed"
    payload = wire.Envelope.FromString(probation.contribution).payload
    return {probation.worker: wire.Contribution.FromString(payload).commitment_root}
