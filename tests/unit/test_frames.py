"""Framing of the all-reduce: every parser takes its one frame and refuses the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hivemind.p2p import P2P
from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import seal
from protocol.errors import BadRecord, TransientError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service
from worker import frames
from worker.messages import read_message

GROUP = bytes(range(20))
ENVELOPE = seal(wire.GatherStatement(group_id=GROUP), Identity.from_seed(bytes(32)))


def test_leaf_hashes_are_split_and_counted() -> None:
    hashes = [bytes([i % 256]) * 32 for i in range(frames.LEAVES_PER_FRAME + 3)]
    first, second = frames.leaves(GROUP, hashes)
    assert first.ByteSize() < frames.MAX_FRAME_BYTES
    assert frames.parse_leaves(first, GROUP, len(hashes)) == hashes[: frames.LEAVES_PER_FRAME]
    assert frames.parse_leaves(second, GROUP, 3) == hashes[-3:]
    with pytest.raises(BadRecord, match="wrong number"):
        frames.parse_leaves(second, GROUP, 4)


def test_a_chunk_must_be_the_one_that_is_due() -> None:
    frame = frames.chunk(GROUP, 7, 4, b"abcd")
    assert frames.parse_chunk(frame, GROUP, 7, 4, 4) == b"abcd"
    for index, elements, size in ((6, 4, 4), (7, 5, 4), (7, 4, 5)):
        with pytest.raises(BadRecord):
            frames.parse_chunk(frame, GROUP, index, elements, size)


@pytest.mark.parametrize(
    "parse",
    [
        lambda frame: frames.parse_done(frame, GROUP),
        lambda frame: frames.parse_leaves(frame, GROUP, 1),
        lambda frame: frames.parse_ready(frame, GROUP, 0, 9),
        lambda frame: frames.parse_chunk(frame, GROUP, 0, 1, 1),
        lambda frame: frames.parse_statement(frame, GROUP),
        lambda frame: frames.parse_wanted(frame, GROUP, 9),
        lambda frame: frames.parse_result(frame, GROUP),
    ],
)
def test_wrong_kind_wrong_group_end_and_refusal(parse: Callable[[frames.Frame], object]) -> None:
    others = [frames.refused(GROUP, frames.PROTOCOL_VIOLATION, "x" * 9000)]
    with pytest.raises(frames.Refused) as refusal:
        parse(others[0])
    assert len(str(refusal.value)) == frames.MAX_REASON_BYTES
    with pytest.raises(TransientError):
        parse(frames.refused(GROUP, frames.CANCELLED, "later"))
    with pytest.raises(TransientError):
        parse(None)
    strange = frames.done(GROUP)
    strange.tensor_part.dtype = "strange"
    with pytest.raises(BadRecord, match="strange"):
        parse(strange)
    for frame in (
        frames.done(bytes(20)),
        frames.ready(bytes(20), 1),
        frames.chunk(bytes(20), 0, 1, b"a"),
        frames.statement(bytes(20), ENVELOPE),
        frames.wanted(bytes(20), [1]),
        frames.result(bytes(20), 0, service.ResultPiece()),
    ):
        with pytest.raises(BadRecord):
            parse(frame)


def test_ready_stays_within_the_range() -> None:
    assert frames.parse_ready(frames.ready(GROUP, 9), GROUP, 5, 9) == 9
    for outside in (4, 10):
        with pytest.raises(BadRecord):
            frames.parse_ready(frames.ready(GROUP, outside), GROUP, 5, 9)


@given(st.sets(st.integers(0, 99)))
def test_wanted_round_trip(chunks: set[int]) -> None:
    asked = sorted(chunks)
    assert frames.parse_wanted(frames.wanted(GROUP, asked), GROUP, 100) == asked


@pytest.mark.parametrize("chunks", [[1, 1], [2, 1], [100], list(range(101))])
def test_wanted_is_ascending_and_bounded(chunks: list[int]) -> None:
    with pytest.raises(BadRecord):
        frames.parse_wanted(frames.wanted(GROUP, chunks), GROUP, 100)


def test_statement_and_result_round_trip() -> None:
    assert frames.parse_statement(frames.statement(GROUP, ENVELOPE), GROUP) == ENVELOPE
    piece = service.ResultPiece(result=ENVELOPE, encoded=b"mean")
    assert frames.parse_result(frames.result(GROUP, 3, piece), GROUP) == piece
    broken = frames.result(GROUP, 3, piece)
    broken.tensor_part.buffer = b"\xff\xff"
    with pytest.raises(BadRecord):
        frames.parse_result(broken, GROUP)


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def wrap(marker: bytes, length: int, data: bytes = b"") -> bytes:
    return marker + length.to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER) + data


async def test_a_message_is_bounded_before_it_is_read() -> None:
    data = frames.done(GROUP).SerializeToString()
    message = wrap(P2P.MESSAGE_MARKER, len(data), data)
    assert await read_message(reader_of(message), frames.Frame) == frames.done(GROUP)
    huge = wrap(P2P.MESSAGE_MARKER, frames.MAX_FRAME_BYTES + 1)
    with pytest.raises(BadRecord, match="over the limit"):
        await read_message(reader_of(huge), frames.Frame)
    with pytest.raises(BadRecord, match="over the limit"):
        await read_message(reader_of(wrap(P2P.ERROR_MARKER, 1 << 40)), frames.Frame)
    with pytest.raises(BadRecord, match="out of frame"):
        await read_message(reader_of(wrap(b"\x07", 0)), frames.Frame)
    with pytest.raises(BadRecord, match="does not parse"):
        await read_message(reader_of(wrap(P2P.MESSAGE_MARKER, 2, b"\xff\xff")), frames.Frame)
    with pytest.raises(asyncio.IncompleteReadError):
        await read_message(reader_of(message[:-1]), frames.Frame)


async def test_the_end_and_the_error_of_the_other_side() -> None:
    assert await read_message(reader_of(wrap(P2P.ERROR_MARKER, 0)), frames.Frame) is None
    problem = b"\x0a\x04oops"  # RPCError.message
    with pytest.raises(TransientError, match="oops"):
        await read_message(reader_of(wrap(P2P.ERROR_MARKER, len(problem), problem)), frames.Frame)
