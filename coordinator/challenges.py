"""Opening chunks of merged contributions against their commitments.

After each settled round a few contributions are drawn at random; their workers are asked, with the
next heartbeat, to show some of their chunks with Merkle proofs. An answer is recorded as valid
or not and nothing else: it convicts nobody here (verification.md, "Unavailable is not guilty").
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import structlog
from sqlalchemy import select

from coordinator.evidence import keep_evidence
from coordinator.schema import ChallengeRow, ContributionRow
from coordinator.turn import Turn
from protocol import merkle
from protocol.envelope import Signed
from protocol.errors import BadDigest, BadRecord, Conflict, ProtocolError
from protocol.limits import MAX_RECORD_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_log = structlog.get_logger()
_random = secrets.SystemRandom()


def draw_challenges(turn: Turn, merged: Sequence[ContributionRow]) -> None:
    """Draw contributions and chunks, after all commitments are fixed."""
    options, layout = turn.context.options, turn.context.layout
    count = min(options.chunks_per_challenge, layout.count)
    # An answer is one signed record: chunks that would not fit into it cannot be asked for.
    codec = turn.context.manifest.update.codec
    count = min(count, MAX_RECORD_BYTES * 3 // 4 // layout.encoded_bytes(codec, 0))
    if count < 1:
        return
    for row in _random.sample(merged, min(options.challenges_per_round, len(merged))):
        turn.session.add(
            ChallengeRow(
                challenge_id=secrets.token_bytes(16),
                round=row.round,
                assignment_id=row.assignment_id,
                worker=row.worker,
                chunks=json.dumps(sorted(_random.sample(range(layout.count), count))),
                drawn_at_s=turn.now_s,
            )
        )


def open_challenges(turn: Turn, worker: str) -> list[service_pb2.Challenge]:
    """What a worker is asked and has not answered, for its next heartbeat.

    Newest first: old updates may be gone, and must not stand in the way of what can be shown.
    """
    rows = turn.session.scalars(
        select(ChallengeRow)
        .where(ChallengeRow.worker == worker, ChallengeRow.valid.is_(None))
        .order_by(ChallengeRow.drawn_at_s.desc())
        .limit(4)
    )
    return [
        service_pb2.Challenge(
            challenge_id=row.challenge_id,
            assignment_id=row.assignment_id,
            chunks=json.loads(row.chunks),
        )
        for row in rows
    ]


def accept_answer(
    turn: Turn, signed: Signed[wire.ChallengeAnswer]
) -> service_pb2.ChallengeReply | ProtocolError:
    """Check the opened chunks and record the result.

    Returns:
        The verdict, or the error to raise once evidence is committed.

    Raises:
        BadRecord: no such challenge for this worker.
    """
    record = signed.record
    row = turn.session.get(ChallengeRow, record.challenge_id)
    if row is None or row.worker != signed.signer or row.assignment_id != record.assignment_id:
        raise BadRecord("an answer to a challenge that this worker was not given")
    if row.valid is not None:
        if row.answer_digest == signed.digest:
            return service_pb2.ChallengeReply(valid=row.valid)
        assert row.answer is not None
        keep_evidence(turn.session, "challenge_answer", row.answer, signed, turn.now_s)
        return Conflict("another answer to this challenge is kept: both are evidence now")
    row.valid = _opens(turn, row, record)
    row.answer_digest = signed.digest
    row.answer = signed.envelope.SerializeToString()
    _log.info("challenge_answered", worker=row.worker, round=row.round, valid=row.valid)
    return service_pb2.ChallengeReply(valid=row.valid)


def _opens(turn: Turn, row: ChallengeRow, record: wire.ChallengeAnswer) -> bool:
    """Whether exactly the asked chunks were shown and each leads to the commitment."""
    contribution = turn.session.get_one(ContributionRow, row.assignment_id)
    layout, codec = turn.context.layout, turn.context.manifest.update.codec
    if [opened.chunk for opened in record.chunks] != json.loads(row.chunks):
        return False
    for opened in record.chunks:
        if len(opened.encoded) != layout.encoded_bytes(codec, opened.chunk):
            return False
        leaf = merkle.leaf_hash(opened.encoded)
        root = contribution.commitment_root
        try:
            merkle.verify_inclusion(leaf, opened.chunk, layout.count, list(opened.proof), root)
        except BadDigest:
            return False
    return True
