"""Hostile frames, requests and DHT records against the handlers of a peer, in process.

Whatever a stranger or a member sends, a handler answers with frames of ours or raises one of the
protocol's errors, what it keeps is right, and honest members are served afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import P2PContext, PeerID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.combine import combine_chunk
from protocol.envelope import open_envelope, payload_type, pre_authentication_encoding, seal
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.trust import TrustStore, delegate
from protocol.update import ChunkLayout, EncodedUpdate, decode_chunk, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker import frames, round_service
from worker.allreduce import GroupReduce, Peer
from worker.dht_records import RunRecords, head_key, roster_key, weights_key
from worker.group import Group
from worker.messages import read_message
from worker.peer_blobs import BlobService
from worker.reducer import Inbox
from worker.round_service import GroupBook, RoundService

FUZZ = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
RUN, NOW_S = b"r" * 32, 1_800_000_000
ROUND_KEY, ME, ADA, EVE, STRANGER, ROOT = (Identity.from_seed(bytes([i]) * 32) for i in range(6))
LAYOUT = ChunkLayout(1000, 256)  # 4 chunks, all of them ours


def _update(sender: Identity) -> EncodedUpdate:
    values = np.random.default_rng(sender.seed[0]).standard_normal(LAYOUT.elements)
    vector = values.astype(np.float32)
    return encode_update(vector, LAYOUT, "int8", run_id=RUN, round_=1, worker=sender.peer_id)


UPDATES = {sender.peer_id: _update(sender) for sender in (ME, ADA, EVE)}
ROSTER = open_envelope(
    seal(
        wire.Roster(
            run_id=RUN,
            round=1,
            attempt=1,
            members=[
                wire.RosterMember(worker=name, weight=10, commitment_root=update.root)
                for name, update in UPDATES.items()
            ],
            reducers=[wire.ReducerRange(reducer=ME.peer_id, first_chunk=0, end_chunk=4)],
            codec="int8",
            combine="mean",
            vector_elements=LAYOUT.elements,
            chunk_elements=LAYOUT.chunk_elements,
            chunk_count=LAYOUT.count,
            gather_deadline_ms=1,
            broadcast_deadline_ms=2,
        ),
        ROUND_KEY,
    ),
    wire.Roster,
)
GROUP = Group.of(ROSTER)
GID = GROUP.group_id


def script(sender: Identity) -> list[frames.Frame]:
    """What an honest member sends."""
    update = UPDATES[sender.peer_id]
    statement = wire.GatherStatement(
        group_id=GID,
        attempt=1,
        sender=sender.peer_id,
        reducer=ME.peer_id,
        first_chunk=0,
        end_chunk=4,
        frames_sha256=hashlib.sha256(b"".join(update.chunks)).digest(),
    )
    chunks = (frames.chunk(GID, i, LAYOUT.chunk_size(i), update.chunks[i]) for i in range(4))
    return [
        *frames.leaves(GID, update.leaf_hashes),
        *chunks,
        frames.statement(GID, seal(statement, sender)),
    ]


def context(caller: Identity) -> P2PContext:
    return P2PContext(
        handle_name="fuzz",
        local_id=PeerID.from_base58(ME.peer_id),
        remote_id=PeerID.from_base58(caller.peer_id),
    )


async def _each(messages: list[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


async def answers(replies: AsyncIterator[Any]) -> list[Any]:
    """What a handler replies, until it ends or refuses in our words."""
    heard = []
    try:
        async for reply in replies:
            heard.append(reply)
    except ProtocolError as error:
        assert str(error)
    return heard


@st.composite
def hostile_frames(draw: st.DrawFn) -> list[frames.Frame]:
    """An honest script with some frames bent, doubled, left out, or of another's making."""
    sender = draw(st.sampled_from([EVE, ADA]))
    sent = [frames.Frame.FromString(frame.SerializeToString()) for frame in script(sender)]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(sent) - 1))
        frame, part = sent[at], sent[at].tensor_part
        match draw(st.integers(0, 8)):
            case 0:
                frame.group_id = draw(st.sampled_from([b"", b"x" * 20, GID + b"x", bytes(20)]))
            case 1:
                frame.code = draw(st.integers(-(2**31), 2**31 - 1))
            case 2:
                part.dtype = draw(st.sampled_from(["", "refused", "done", "\0", "x" * 5000]))
            case 3:
                part.buffer = draw(st.binary(max_size=80))
            case 4:
                part.chunks = draw(st.sampled_from([-1, 1, 99, 2**31 - 1]))
            case 5:
                part.size[:] = draw(st.lists(st.integers(0, 2**32 - 1), max_size=3))
            case 6:
                sent.insert(at, frame)
            case 7 if len(sent) > 1:
                del sent[at]
            case _:
                other = wire.Envelope(payload=draw(st.binary(max_size=40)), payload_type="?")
                part.buffer = other.SerializeToString()
    return sent


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


async def reducing() -> tuple[GroupReduce, RoundService]:
    """Our side of the group, served; nothing here dials anybody."""
    book = GroupBook()
    peer = Peer(None, ME, "gather", "broadcast", lambda: 10**6, lambda signer: None)  # type: ignore[arg-type]
    group = GroupReduce(GROUP, UPDATES[ME.peer_id], peer, on_close=lambda: None)
    book.add(group)
    return group, RoundService(book)


def test_hostile_streams_leave_the_reduce_as_it_should_be(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_service, "UNKNOWN_GROUP_WAIT_S", 0.001)
    group, service = runner.run(reducing())
    reducer = group.reducer
    assert reducer is not None

    @settings(FUZZ, max_examples=250)
    @given(hostile_frames(), st.sampled_from([EVE, EVE, STRANGER]))
    def gather(sent: list[frames.Frame], caller: Identity) -> None:
        eve = reducer.inboxes[EVE.peer_id] = Inbox()  # a refusal is final: begin anew
        replies = runner.run(answers(service.rpc_gather(_each(sent), context(caller))))
        assert {reply.tensor_part.dtype for reply in replies} <= {"ready", "done", "refused"}
        for index, chunk in eve.chunks.items():
            assert chunk == UPDATES[EVE.peer_id].chunks[index]
        assert eve.statement is None or (caller is EVE and len(eve.chunks) == LAYOUT.count)

    @settings(FUZZ, max_examples=150)
    @given(st.sampled_from([b"", GID, bytes(20)]), st.binary(max_size=40), st.integers(0, 9))
    def broadcast(group_id: bytes, buffer: bytes, code: int) -> None:
        request = frames.Frame(group_id=group_id, code=code)
        request.tensor_part.dtype, request.tensor_part.buffer = "wanted", buffer
        replies = runner.run(answers(service.rpc_broadcast(request, context(STRANGER))))
        assert {reply.tensor_part.dtype for reply in replies} <= {"refused"}

    gather()
    broadcast()
    assert not reducer.inboxes[ADA.peer_id].decided, "nobody spoke for ada"
    last = runner.run(answers(service.rpc_gather(_each(script(ADA)), context(ADA))))[-1]
    frames.parse_done(last, GID)
    _check_mean(runner, group)


def _check_mean(runner: asyncio.Runner, group: GroupReduce) -> None:
    """Ada and we are combined, to the byte."""
    reducer = group.reducer
    assert reducer is not None

    async def combine() -> list[api.ResultPiece]:
        await reducer.receive_own(UPDATES[ME.peer_id])
        record = wire.InclusionSet(
            run_id=RUN, round=1, attempt=1, group_id=GID, members=[ME.peer_id, ADA.peer_id]
        )
        inclusion = open_envelope(seal(record, ROUND_KEY), wire.InclusionSet)
        return [piece async for piece in reducer.combine(inclusion)]

    for chunk, piece in enumerate(runner.run(combine())):
        inputs = [
            decode_chunk("int8", UPDATES[who.peer_id].chunks[chunk], LAYOUT.chunk_size(chunk))
            for who in (ME, ADA)
        ]
        mean = combine_chunk("mean", inputs, [10, 10])
        got = decode_chunk("int8", piece.encoded, LAYOUT.chunk_size(chunk))
        assert np.abs(got - mean).max() <= 2 * np.abs(mean).max() / 127


def test_results_that_are_not_the_reducers_are_refused(runner: asyncio.Runner) -> None:
    group, _ = runner.run(reducing())

    @settings(FUZZ, max_examples=150)
    @given(
        st.sampled_from([ME, EVE, STRANGER]),
        st.builds(
            wire.ResultChunk,
            group_id=st.sampled_from([GID, b"", bytes(20)]),
            attempt=st.integers(0, 2),
            chunk=st.sampled_from([0, 3, 4, 2**32 - 1]),
            sha256=st.sampled_from([b"", bytes(32), hashlib.sha256(b"x").digest()]),
            reducer=st.sampled_from([ME.peer_id, EVE.peer_id, "", "\0"]),
        ),
        st.sampled_from([b"", b"x", bytes(264), b"\xff" * 258, b"\x7f" * 258]),
    )
    def offer(signer: Identity, record: wire.ResultChunk, encoded: bytes) -> None:
        piece = api.ResultPiece(result=seal(record, signer), encoded=encoded)
        with pytest.raises(ProtocolError):
            runner.run(group.add_piece(piece))

    offer()
    assert group.pieces == {}


def test_blobs_are_only_what_was_asked_for(runner: asyncio.Runner, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "blob").write_bytes(data)
    digest, small = hashlib.sha256(data).digest(), hashlib.sha256(b"small").digest()

    async def made() -> BlobService:
        service = BlobService(RUN)
        service.resolve = lambda sha256: tmp_path / "blob" if sha256 == digest else None
        service.small[small] = b"small"
        return service

    service = runner.run(made())
    held = {digest: data, small: b"small"}

    @settings(FUZZ, max_examples=80)
    @given(
        st.sampled_from([RUN, RUN, b"", bytes(32)]),
        st.sampled_from([digest, small, b"", b"../blob", bytes(100_000)]),
        st.sampled_from([0, 1, 4, 5, 6, len(data) - 1, len(data), 2**63, 2**64 - 1]),
    )
    def ask(run_id: bytes, sha256: bytes, offset: int) -> None:
        request = api.GetShardRequest(run_id=run_id, sha256=sha256, offset=offset)
        pieces = runner.run(answers(service.rpc_blob(request, context(STRANGER))))
        expected = held.get(sha256, b"")[offset:] if run_id == RUN else b""
        assert b"".join(piece.data for piece in pieces) == expected

    ask()


@settings(FUZZ, max_examples=300)
@given(st.binary(max_size=64))
def test_a_stream_of_any_bytes_is_read_or_refused(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        try:
            await read_message(reader, frames.Frame)
        except (ProtocolError, asyncio.IncompleteReadError) as error:
            assert str(error)

    asyncio.run(read())


# ---- the DHT ----

PACKED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=12)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
).map(lambda value: msgpack.packb(value, use_bin_type=True))
EDGES = st.sampled_from([0, 1, NOW_S, NOW_S * 1000, 2**53 + 1, 2**63, 2**64 - 1])


@st.composite
def dht_envelopes(draw: st.DrawFn) -> bytes:
    """Signed rubbish, or a record whose numbers are at the edges, by some key or other."""
    signer = draw(st.sampled_from([ROUND_KEY, ADA, STRANGER]))
    kind = draw(st.sampled_from([wire.RunHead, wire.Roster, wire.RosterHolder, wire.WeightHolder]))
    record = kind()
    for field in record.DESCRIPTOR.fields:
        if field.is_repeated or field.message_type is not None:
            continue
        if field.name == "run_id":
            record.run_id = draw(st.sampled_from([RUN, RUN, b""]))
        elif field.name in ("worker",):
            record.worker = draw(st.sampled_from([ADA.peer_id, "", "\0"]))
        elif field.type == field.TYPE_UINT64:
            setattr(record, field.name, draw(EDGES))
    if "admission" in record.DESCRIPTOR.fields_by_name and draw(st.booleans()):
        admission = wire.Admission(run_id=RUN, worker=ADA.peer_id, not_after_s=draw(EDGES))
        record.admission.CopyFrom(seal(admission, draw(st.sampled_from([ROUND_KEY, ADA]))))
    if draw(st.integers(0, 3)):
        return seal(record, signer).SerializeToString()
    payload, name = draw(st.binary(max_size=40)), payload_type(kind)
    signature = signer.sign(pre_authentication_encoding(name, payload))
    return wire.Envelope(
        payload=payload,
        payload_type=name,
        signatures=[wire.Signature(sig=signature, keyid=signer.peer_id)],
    ).SerializeToString()


@settings(FUZZ, max_examples=400)
@given(
    st.sampled_from([head_key(RUN), roster_key(RUN, 0, 0), weights_key(RUN, b"")]),
    PACKED | st.sampled_from([ROUND_KEY.peer_id, ADA.peer_id]).map(msgpack.packb) | st.binary(),
    PACKED
    | dht_envelopes().map(lambda data: msgpack.packb(data, use_bin_type=True))
    | st.binary(max_size=64),
    st.sampled_from([0.0, -1.0, float("inf"), float("nan"), NOW_S + 60.0, 1e300]),
)
def test_the_dht_validator_never_fails_and_lets_no_stranger_in(
    key: str, subkey: bytes, value: bytes, expires_s: float
) -> None:
    delegation = delegate(
        ROOT,
        run_id=RUN,
        purpose=wire.KEY_PURPOSE_ROUND,
        public_key=ROUND_KEY.public.raw,
        serial=1,
        not_before_s=0,
        not_after_s=2 * NOW_S,
    )
    trust = TrustStore(RUN, ROOT.peer_id)
    trust.add([delegation])
    rules = RunRecords(RUN, trust, lambda: float(NOW_S))
    record = DHTRecord(DHTID.generate(source=key).to_bytes(), subkey, value, expires_s)
    if rules.validate(record):
        envelope = wire.Envelope.FromString(msgpack.unpackb(value))
        assert envelope.signatures[0].keyid in (ROUND_KEY.peer_id, ADA.peer_id)
        assert NOW_S < expires_s < float("inf")


async def test_a_caller_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from worker import answering

    monkeypatch.setattr(answering, "STALL_S", 0.05)
    monkeypatch.setattr(answering, "LINGER_S", 0.05)
    served = asyncio.Event()

    async def echo(requests: AsyncIterator[Any], _: P2PContext) -> AsyncIterator[Any]:
        async for _request in requests:
            for _ in range(10_000):  # far more than anybody buffers
                yield frames.chunk(GID, 0, 1, bytes(1 << 16))

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering.answer_stream(reader, writer, echo, frames.Frame, context(EVE))
        writer.close()
        served.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    greetings: list[Callable[[asyncio.StreamWriter], None]] = [
        lambda writer: None,  # says nothing at all
        lambda writer: writer.write(b"\x00" + (100).to_bytes(8, "big")),  # breaks off
        lambda writer: writer.write(b"\x00" + (0).to_bytes(8, "big")),  # asks, and never reads
    ]
    async with server:
        for greet in greetings:
            served.clear()
            _, writer = await asyncio.open_connection(*address)
            greet(writer)
            async with asyncio.timeout(10):
                await served.wait()
            writer.transport.abort()
    assert served.is_set()
