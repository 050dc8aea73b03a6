"""Collecting the signed result chunks of a reduce.

Steps for each piece, cheapest first:

1. the record is signed by the reducer whose range the chunk is in, in the running attempt;
2. the bytes have exactly the chunk's encoded size, and hash to the signed digest;
3. they decode to finite values, so that a settle cannot fail later;
4. under ``clipped_mean`` a combined chunk is no longer than honest members' updates are: a
   reducer cannot ruin the model in one reduce, before any audit of it;
5. a second, different signed result for a chunk is evidence of equivocation; the first one counts.
   This holds for attempts that are over, too: members compare what they got, and may come later.

Whoever holds a piece may bring it: the signature decides, not the messenger.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import func, select

from coordinator.context import RunContext
from coordinator.evidence import keep_evidence
from coordinator.plausible import longest_result
from coordinator.round_state import Phase, ReducerDelivered, ResultsCame
from coordinator.schema import ResultRow, RosterRow
from coordinator.turn import Turn, current_roster
from protocol.combine import l2_norm
from protocol.envelope import Signed, open_envelope
from protocol.errors import BadDigest, BadRecord, BadSignature
from protocol.update import decode_chunk
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_log = structlog.get_logger()


@dataclass(frozen=True)
class CheckedPiece:
    """A piece that passed steps 1 to 3, but for the roster."""

    signed: Signed[wire.ResultChunk]
    encoded: bytes
    norm: float  # L2, decoded


async def bounded(
    pieces: AsyncIterator[service_pb2.ResultPiece], most: int
) -> AsyncIterator[service_pb2.ResultPiece]:
    """The pieces of one upload, one for each chunk of the vector at most.

    Raises:
        BadRecord: there are more.
    """
    taken = 0
    async for piece in pieces:
        taken += 1
        if taken > most:
            raise BadRecord("more results in one stream than the vector has chunks")
        yield piece


def check_piece(context: RunContext, piece: service_pb2.ResultPiece) -> CheckedPiece:
    """Check what needs no database; call it off the event loop.

    Raises:
        BadSignature, BadRecord, BadDigest: see the module's steps.
    """
    signed = open_envelope(piece.result, wire.ResultChunk)
    record = signed.record
    if record.reducer != signed.signer:
        raise BadSignature("a result chunk is signed by the reducer that it names")
    if record.chunk >= context.layout.count:
        raise BadRecord(f"chunk {record.chunk} is not one of {context.layout.count}")
    codec = context.manifest.update.codec
    expected_bytes = context.layout.encoded_bytes(codec, record.chunk)
    if len(piece.encoded) != expected_bytes:
        raise BadRecord(
            f"chunk {record.chunk} has {len(piece.encoded)} bytes, not {expected_bytes}"
        )
    if hashlib.sha256(piece.encoded).digest() != record.sha256:
        raise BadDigest(f"chunk {record.chunk} does not hash to what its reducer signed")
    values = decode_chunk(codec, piece.encoded, context.layout.chunk_size(record.chunk))
    return CheckedPiece(signed, piece.encoded, l2_norm(values))


def keep_pieces(turn: Turn, pieces: Sequence[CheckedPiece]) -> int:
    """Store checked pieces and let the round go on once a reducer has delivered all of its own.

    Returns:
        How many are held now that belong to the running reduce.

    Raises:
        BadRecord: a piece of a group or by a reducer that does not exist.
    """
    turn = turn.reducing
    roster_row = current_roster(turn.session, turn.machine)
    broadcasting = roster_row is not None and turn.machine.phase is Phase.BROADCAST
    longest = longest_result(turn, roster_row) if roster_row and broadcasting else None
    accepted = 0
    for piece in pieces:
        group_id = piece.signed.record.group_id
        if roster_row is None or group_id != roster_row.group_id:
            _keep_contradiction(turn, piece)
            continue  # of an attempt that is over: nobody's fault
        if turn.machine.phase is not Phase.BROADCAST:
            raise BadRecord("a result before its inclusion set is signed")
        if longest is not None and piece.norm > longest:
            raise BadRecord(
                f"chunk {piece.signed.record.chunk} has length {piece.norm:.3g}: clipped members "
                f"make none longer than {longest:.3g}"
            )
        accepted += _keep_piece(turn, roster_row, piece)
    if accepted and turn.machine.phase is Phase.BROADCAST:
        if turn.machine.rescue_until_s is not None:
            turn.apply(ResultsCame())
        _count_delivered(turn)
    return accepted


def _keep_contradiction(turn: Turn, piece: CheckedPiece) -> None:
    """A result of an attempt that is over counts for nothing, but it may convict its reducer."""
    roster_row = turn.session.scalars(
        select(RosterRow).where(RosterRow.group_id == piece.signed.record.group_id)
    ).one_or_none()
    if roster_row is None:
        raise BadRecord("a result of a group that does not exist")
    _check_range(roster_row, piece)
    _matches_known(turn, piece)


def _check_range(roster_row: RosterRow, piece: CheckedPiece) -> None:
    record = piece.signed.record
    roster = wire.Roster.FromString(wire.Envelope.FromString(roster_row.envelope).payload)
    if record.attempt != roster.attempt or not any(
        r.reducer == record.reducer and r.first_chunk <= record.chunk < r.end_chunk
        for r in roster.reducers
    ):
        raise BadRecord(f"chunk {record.chunk} is not in the range of {record.reducer}")


def _matches_known(turn: Turn, piece: CheckedPiece) -> bool | None:
    """Whether it is the result that is held; None when none is. Another one is evidence."""
    record = piece.signed.record
    known = turn.session.get(ResultRow, (record.group_id, record.chunk))
    if known is None:
        return None
    if known.sha256 == record.sha256:
        return True
    keep_evidence(turn.session, "result", known.envelope, piece.signed, turn.now_s)
    return False


def _keep_piece(turn: Turn, roster_row: RosterRow, piece: CheckedPiece) -> bool:
    _check_range(roster_row, piece)
    matches = _matches_known(turn, piece)
    if matches is not None:
        return matches
    record = piece.signed.record
    turn.session.add(
        ResultRow(
            group_id=record.group_id,
            chunk=record.chunk,
            reducer=record.reducer,
            sha256=record.sha256,
            envelope=piece.signed.envelope.SerializeToString(),
            encoded=piece.encoded,
        )
    )
    turn.session.flush()
    return True


def _count_delivered(turn: Turn) -> None:
    roster_row = current_roster(turn.session, turn.machine)
    assert roster_row is not None
    roster = wire.Roster.FromString(wire.Envelope.FromString(roster_row.envelope).payload)
    counted = turn.session.execute(
        select(ResultRow.reducer, func.count())
        .where(ResultRow.group_id == roster_row.group_id)
        .group_by(ResultRow.reducer)
    )
    held = {row[0]: row[1] for row in counted}
    for share in roster.reducers:
        whole = held.get(share.reducer, 0) == share.end_chunk - share.first_chunk
        if whole and share.reducer not in turn.machine.delivered:
            _log.info("reducer_delivered", round=turn.machine.number, reducer=share.reducer)
            turn.apply(ReducerDelivered(share.reducer))


def missing_chunks(turn: Turn) -> list[int]:
    """Chunks of the running reduce that are not held; empty unless it is in BROADCAST."""
    turn = turn.reducing
    roster_row = current_roster(turn.session, turn.machine)
    if roster_row is None or turn.machine.phase is not Phase.BROADCAST:
        return []
    held = set(
        turn.session.scalars(
            select(ResultRow.chunk).where(ResultRow.group_id == roster_row.group_id)
        )
    )
    return [chunk for chunk in range(turn.context.layout.count) if chunk not in held]


def held_chunks(turn: Turn, group_id: bytes) -> tuple[bytes, ...]:
    """All encoded result chunks of a group, in order."""
    rows = turn.session.scalars(
        select(ResultRow.encoded).where(ResultRow.group_id == group_id).order_by(ResultRow.chunk)
    ).all()
    return tuple(encoded for encoded in rows if encoded is not None)
