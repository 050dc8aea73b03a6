"""Framing of the verified all-reduce on hivemind's ``averaging_pb2.AveragingData``.

Invariants: a frame is bounded before it is parsed (:data:`MAX_FRAME_BYTES`); each parser takes
the one frame that may come next and refuses everything else; numbers are never taken from a
frame where the roster already fixes them.

Bytes on a stream (hivemind's own stream framing, both directions)::

    0x00 | length, 8 bytes big-endian | AveragingData       one message
    0x01 | length, 8 bytes big-endian | RPCError            length 0: end of this direction;
                                                            else the other side failed, and why

Fields used in every frame: ``group_id`` (20 bytes) and ``tensor_part.dtype`` = the frame's kind.
``peer_id`` and ``weight`` stay empty: the transport authenticates the peer, the roster gives its
weight.

GATHER, handler ``<run id hex>::RoundService.rpc_gather``; S = sender, R = reducer::

    S  leaves     code BEGIN_ALLREDUCE     buffer: RFC 6962 leaf hashes of ALL chunks of the
                                           vector in order, 32 bytes each, at most 2^15 in a
                                           frame, as many frames as chunk_count needs
    R  ready      code BEGIN_ALLREDUCE     chunks: the first chunk of the range still wanted (a
                                           stream that broke is resumed); = range end if none
    S  chunk      code PART_FOR_AVERAGING  buffer: encoded chunk; chunks: its index; size: [its
                                           elements]; ascending, without gap, to the end
    S  statement  code PART_FOR_AVERAGING  buffer: Envelope of the signed GatherStatement
    R  done       code ACCEPTED            this sender is complete at this reducer
    R  refused    an error code            at any time, then the end; buffer: why, UTF-8.
                                           BAD_GROUP_ID: unknown group, or not in it;
                                           PROTOCOL_VIOLATION: final for this group;
                                           CANCELLED: the phase is over, a newer stream of the
                                           same sender took its place, or these bytes were not
                                           as promised: send again

BROADCAST, handler ``<run id hex>::RoundService.rpc_broadcast``; M = any peer, R = who serves::

    M  wanted     code AVERAGED_PART       buffer: chunk indexes, 4 bytes big-endian each,
                                           ascending; then the end of its direction
    R  result     code AVERAGED_PART       chunks: index; buffer: barnraise.v1.ResultPiece
                                           (signed ResultChunk and the encoded bytes)

R answers with the wanted chunks in the order asked. It waits for those that it reduces itself
until they are combined, passes over those that it neither reduces nor holds, then ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

from google.protobuf.message import DecodeError
from hivemind.proto import averaging_pb2, runtime_pb2

from protocol.envelope import parse_envelope
from protocol.errors import BadRecord, PeerFault, TransientError
from protocol.limits import MAX_CHUNK_ELEMENTS
from protocol.merkle import HASH_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service

Frame: TypeAlias = averaging_pb2.AveragingData

MAX_FRAME_BYTES = 2 << 20
"""One frame: the largest is a result of 2^18 float32 (1 MiB) with its envelope."""

LEAVES_PER_FRAME = 1 << 15
"""1 MiB of leaf hashes in a frame."""

MAX_WANTED_CHUNKS = MAX_CHUNK_ELEMENTS
"""Chunks asked for in one stream: 1 MiB of indexes; more are asked for in further streams."""

MAX_REASON_BYTES = 512

LEAVES, READY, CHUNK, STATEMENT = "leaves", "ready", "chunk", "statement"
DONE, REFUSED, WANTED, RESULT = "done", "refused", "wanted", "result"

BAD_GROUP_ID: int = averaging_pb2.BAD_GROUP_ID
PROTOCOL_VIOLATION: int = averaging_pb2.PROTOCOL_VIOLATION
CANCELLED: int = averaging_pb2.CANCELLED

_CODES = {
    LEAVES: averaging_pb2.BEGIN_ALLREDUCE,
    READY: averaging_pb2.BEGIN_ALLREDUCE,
    CHUNK: averaging_pb2.PART_FOR_AVERAGING,
    STATEMENT: averaging_pb2.PART_FOR_AVERAGING,
    DONE: averaging_pb2.ACCEPTED,
    WANTED: averaging_pb2.AVERAGED_PART,
    RESULT: averaging_pb2.AVERAGED_PART,
}


class Refused(PeerFault):
    """The reducer says that this sender broke the protocol; final for this group."""

    reason = "REFUSED"


def _frame(
    kind: str, group_id: bytes, *, buffer: bytes = b"", chunks: int = 0, size: Sequence[int] = ()
) -> Frame:
    part = runtime_pb2.Tensor(buffer=buffer, dtype=kind, chunks=chunks, size=size)
    return Frame(code=_CODES[kind], group_id=group_id, tensor_part=part)


def leaves(group_id: bytes, leaf_hashes: Sequence[bytes]) -> Iterator[Frame]:
    """The leaf hashes of all chunks, in as many frames as they need."""
    for start in range(0, len(leaf_hashes), LEAVES_PER_FRAME):
        part = b"".join(leaf_hashes[start : start + LEAVES_PER_FRAME])
        yield _frame(LEAVES, group_id, buffer=part)


def ready(group_id: bytes, next_chunk: int) -> Frame:
    return _frame(READY, group_id, chunks=next_chunk)


def chunk(group_id: bytes, index: int, elements: int, encoded: bytes) -> Frame:
    return _frame(CHUNK, group_id, buffer=encoded, chunks=index, size=[elements])


def statement(group_id: bytes, envelope: wire.Envelope) -> Frame:
    return _frame(STATEMENT, group_id, buffer=envelope.SerializeToString())


def done(group_id: bytes) -> Frame:
    return _frame(DONE, group_id)


def refused(group_id: bytes, code: int, why: str) -> Frame:
    buffer = why.encode()[:MAX_REASON_BYTES]
    part = runtime_pb2.Tensor(buffer=buffer, dtype=REFUSED)
    return Frame(code=code, group_id=group_id, tensor_part=part)


def wanted(group_id: bytes, chunks: Sequence[int]) -> Frame:
    return _frame(WANTED, group_id, buffer=struct.pack(f">{len(chunks)}I", *chunks))


def result(group_id: bytes, index: int, piece: service.ResultPiece) -> Frame:
    return _frame(RESULT, group_id, buffer=piece.SerializeToString(), chunks=index)


def expect(frame: Frame | None, kind: str, group_id: bytes) -> bytes:
    """Insist on the kind of frame that may come now.

    Returns:
        Its buffer.

    Raises:
        TransientError: the stream ended, or the other side called it off.
        Refused: the other side refused us for good.
        BadRecord: another frame, or of another group.
    """
    if frame is None:
        raise TransientError(f"the stream ended where a {kind} frame was due")
    if frame.tensor_part.dtype == REFUSED:
        why = frame.tensor_part.buffer[:MAX_REASON_BYTES].decode(errors="replace")
        raise Refused(why) if frame.code == PROTOCOL_VIOLATION else TransientError(why)
    if frame.group_id != group_id:
        raise BadRecord(f"a {kind} frame of another group")
    if frame.tensor_part.dtype != kind or frame.code != _CODES[kind]:
        raise BadRecord(f"expected a {kind} frame, got {frame.tensor_part.dtype[:20]!r}")
    return bytes(frame.tensor_part.buffer)


def parse_leaves(frame: Frame | None, group_id: bytes, due: int) -> list[bytes]:
    """One frame of leaf hashes, when ``due`` are still to come."""
    data = expect(frame, LEAVES, group_id)
    if len(data) != HASH_BYTES * min(due, LEAVES_PER_FRAME):
        raise BadRecord("a frame with the wrong number of leaf hashes")
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def parse_ready(frame: Frame | None, group_id: bytes, first: int, end: int) -> int:
    expect(frame, READY, group_id)
    next_chunk = int(frame.tensor_part.chunks)  # type: ignore[union-attr]
    if not first <= next_chunk <= end:
        raise BadRecord(f"asked for chunk {next_chunk}, outside of [{first}, {end}]")
    return next_chunk


def parse_chunk(
    frame: Frame | None, group_id: bytes, index: int, elements: int, encoded_bytes: int
) -> bytes:
    """Chunk ``index``, of exactly the size that the roster gives it."""
    data = expect(frame, CHUNK, group_id)
    part = frame.tensor_part  # type: ignore[union-attr]
    if part.chunks != index or list(part.size) != [elements]:
        raise BadRecord(f"expected chunk {index}, got {part.chunks}")
    if len(data) != encoded_bytes:
        raise BadRecord(f"chunk {index} has {len(data)} bytes where {encoded_bytes} are due")
    return data


def parse_statement(frame: Frame | None, group_id: bytes) -> wire.Envelope:
    return parse_envelope(expect(frame, STATEMENT, group_id))


def parse_done(frame: Frame | None, group_id: bytes) -> None:
    expect(frame, DONE, group_id)


def parse_wanted(frame: Frame | None, group_id: bytes, chunk_count: int) -> list[int]:
    data = expect(frame, WANTED, group_id)
    if len(data) % 4 or len(data) > 4 * min(chunk_count, MAX_WANTED_CHUNKS):
        raise BadRecord("asked for more chunks than there are")
    indexes = list(struct.unpack(f">{len(data) // 4}I", data))
    if any(a >= b for a, b in pairwise([*indexes, chunk_count])):
        raise BadRecord("chunks must be asked for in ascending order")
    return indexes


def parse_result(frame: Frame | None, group_id: bytes) -> service.ResultPiece:
    data = expect(frame, RESULT, group_id)
    try:
        return service.ResultPiece.FromString(data)
    except DecodeError as error:
        raise BadRecord("not a result piece") from error
