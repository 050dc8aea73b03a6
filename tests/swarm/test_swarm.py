"""Real peers in one loop: the DHT's records, blobs from peer to peer, groups, start and end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from hivemind.dht.routing import DHTID

from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    Conflict,
    PeerFault,
    TransientError,
    UsageError,
)
from protocol.identity import Identity
from protocol.trust import TrustStore, delegate
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service
from worker.dht_records import HEAD_LIFETIME_S, head_key
from worker.peer_blobs import MAX_UPLOADS, checked_data
from worker.streams import socket_directory
from worker.swarm import Swarm

pytestmark = [pytest.mark.swarm, pytest.mark.asyncio(loop_scope="module")]

LAYOUT = ChunkLayout(5000, 1024)


@dataclass
class Run:
    folder: Path
    root: Identity = field(default_factory=Identity.generate)
    round_key: Identity = field(default_factory=Identity.generate)
    run_id: bytes = field(default_factory=lambda: os.urandom(32))

    def trust(self) -> TrustStore:
        trust = TrustStore(self.run_id, self.root.peer_id)
        trust.add(
            [
                delegate(
                    self.root,
                    run_id=self.run_id,
                    purpose=wire.KEY_PURPOSE_ROUND,
                    public_key=self.round_key.public.raw,
                    serial=1,
                    not_before_s=0,
                    not_after_s=int(time.time()) + 86400,
                )
            ]
        )
        return trust

    async def join(self, identity: Identity, *, peers: list[str], client: bool = False) -> Swarm:
        path = self.folder / identity.peer_id
        if not path.exists():
            identity.save(path)
        return await Swarm.create(
            identity_path=path,
            identity=identity,
            run_id=self.run_id,
            trust=self.trust(),
            initial_peers=peers,
            client_mode=client,
        )

    def admission(self, worker: str) -> wire.Envelope:
        admission = wire.Admission(
            run_id=self.run_id, worker=worker, not_after_s=int(time.time()) + 3600
        )
        return seal(admission, self.round_key)

    def head(self, round_: int) -> wire.RunHead:
        now_ms = int(time.time() * 1000)
        return wire.RunHead(run_id=self.run_id, round=round_, issued_at_ms=now_ms)

    def roster(
        self, reducer: Swarm, members: dict[str, EncodedUpdate], **changes: int
    ) -> wire.Roster:
        now_ms = int(time.time() * 1000)
        fields = {"round": 1, "attempt": 1} | changes
        return wire.Roster(
            run_id=self.run_id,
            members=[
                wire.RosterMember(worker=name, weight=1, commitment_root=update.root)
                for name, update in members.items()
            ],
            reducers=[
                wire.ReducerRange(reducer=reducer.peer_id, first_chunk=0, end_chunk=LAYOUT.count)
            ],
            codec="int8",
            combine="mean",
            vector_elements=LAYOUT.elements,
            chunk_elements=LAYOUT.chunk_elements,
            chunk_count=LAYOUT.count,
            gather_deadline_ms=now_ms + 60_000,
            broadcast_deadline_ms=now_ms + 120_000,
            **fields,
        )

    def sign(self, record: wire.Roster) -> Signed[wire.Roster]:
        return open_envelope(seal(record, self.round_key), wire.Roster)

    def inclusion(self, roster: Signed[wire.Roster], names: list[str]) -> wire.InclusionSet:
        record = roster.record
        return wire.InclusionSet(
            run_id=self.run_id,
            round=record.round,
            attempt=record.attempt,
            group_id=roster.digest[:20],
            members=names,
        )

    def update(self, worker: str, seed: int = 0) -> EncodedUpdate:
        vector = np.random.default_rng(seed).standard_normal(LAYOUT.elements).astype(np.float32)
        return encode_update(vector, LAYOUT, "int8", run_id=self.run_id, round_=1, worker=worker)


@dataclass
class Pair:
    run: Run
    anchor: Swarm
    client: Swarm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    run = Run(tmp_path_factory.mktemp("keys"))
    anchor = await run.join(Identity.generate(), peers=[])
    client = await run.join(Identity.generate(), peers=await anchor.multiaddrs(), client=True)
    yield Pair(run, anchor, client)
    await client.shutdown()
    await anchor.shutdown()


# ---- the DHT


async def test_the_newest_head_is_found(pair: Pair) -> None:
    assert await pair.client.get_head() is None
    for round_ in (1, 2):
        envelope = seal(pair.run.head(round_), pair.run.round_key)
        assert await pair.anchor.publish_head(envelope)
        found = await pair.client.get_head()
        assert found is not None
        assert found.envelope == envelope


async def test_a_strangers_head_is_refused_on_both_sides(pair: Pair) -> None:
    stranger = Identity.generate()
    head = pair.run.head(99)
    envelope = seal(head, stranger)
    with pytest.raises(BadSignature):
        await pair.client.publish_head(envelope)
    # Past our own check, straight to the anchor, as a hostile program would.
    node = pair.client.membership.node
    assert node is not None
    expires_s = head.issued_at_ms / 1000 + HEAD_LIFETIME_S
    data = envelope.SerializeToString()
    stored = await node.protocol.call_store(
        pair.anchor.membership.p2p.daemon.peer_id,
        [DHTID.generate(source=head_key(pair.run.run_id))],
        [node.protocol.serializer.dumps(data)],
        expires_s,
        subkeys=[stranger.peer_id],
    )
    assert stored == [False]
    found = await pair.client.get_head()
    assert found is None or found.record.round != 99


async def test_rosters_small_large_and_two(pair: Pair) -> None:
    run, update = pair.run, pair.run.update("any")
    small = run.roster(pair.anchor, {pair.client.peer_id: update}, round=10)
    assert await pair.anchor.publish_roster(seal(small, run.round_key))
    found = await pair.client.get_roster(10, 1)
    assert found is not None
    assert found.record == small
    assert await pair.client.get_roster(10, 2) is None

    many = {Identity.generate().peer_id: update for _ in range(800)}
    large = run.roster(pair.anchor, many, round=11)
    envelope = seal(large, run.round_key)
    assert not await pair.anchor.publish_roster(envelope)  # without an admission
    assert await pair.anchor.publish_roster(envelope, run.admission(pair.anchor.peer_id))
    found = await pair.client.get_roster(11, 1)
    assert found is not None
    assert found.record == large

    small.members[0].weight += 1
    assert await pair.anchor.publish_roster(seal(small, run.round_key))
    with pytest.raises(Conflict):
        await pair.client.get_roster(10, 1)


async def test_weight_holders_are_the_admitted_ones(pair: Pair) -> None:
    digest = os.urandom(32)
    assert await pair.client.weight_holders(digest) == []
    admission = pair.run.admission(pair.anchor.peer_id)
    assert await pair.anchor.announce_weights(digest, admission)
    assert await pair.client.weight_holders(digest) == [pair.anchor.peer_id]
    assert await pair.anchor.weight_holders(digest) == []  # itself it knows
    with pytest.raises(BadSignature):
        await pair.client.announce_weights(digest, admission)


# ---- blobs


async def serve(pair: Pair, folder: Path, size_bytes: int) -> tuple[bytes, bytes]:
    data = os.urandom(size_bytes)
    digest = hashlib.sha256(data).digest()
    (folder / digest.hex()).write_bytes(data)

    def resolve(sha256: bytes) -> Path | None:
        path = folder / sha256.hex()
        return path if path.exists() else None

    pair.anchor.serve_blobs(resolve)
    return digest, data


async def fetch(pair: Pair, digest: bytes, total_bytes: int, offset: int = 0) -> bytes:
    holder = pair.anchor.peer_id
    pieces = pair.client.blob_pieces(holder, digest, offset)
    return b"".join([data async for data in checked_data(pieces, offset, total_bytes, holder)])


async def test_a_blob_arrives_from_any_byte_on(pair: Pair, tmp_path: Path) -> None:
    for size_bytes in (1, 3_000_001):
        digest, data = await serve(pair, tmp_path, size_bytes)
        assert await fetch(pair, digest, size_bytes) == data
    assert await fetch(pair, digest, size_bytes, offset=1_234_567) == data[1_234_567:]


async def test_a_caller_that_has_enough_hangs_up_and_gives_its_place_free(
    pair: Pair, tmp_path: Path
) -> None:
    digest, data = await serve(pair, tmp_path, 30_000_000)
    for _ in range(2 * MAX_UPLOADS):
        pieces = pair.client.blob_pieces(pair.anchor.peer_id, digest, 0)
        async with aclosing(checked_data(pieces, 0, len(data), "anchor")) as parts:
            assert data.startswith(await anext(parts))


async def test_a_peer_that_says_another_size_or_does_not_hold_it(
    pair: Pair, tmp_path: Path
) -> None:
    digest, data = await serve(pair, tmp_path, 1_500_000)
    with pytest.raises(TransientError, match="does not hold"):
        await fetch(pair, bytes(32), 10)
    with pytest.raises(BadRecord):
        await fetch(pair, digest, len(data) - 1)
    with pytest.raises(TransientError, match="cannot open"):
        stranger = pair.client.blob_pieces(Identity.generate().peer_id, digest, 0)
        await anext(stranger)


# ---- groups


async def test_a_sender_may_come_before_the_reducer_knows_the_roster(pair: Pair) -> None:
    run, member = pair.run, pair.client.peer_id
    update = run.update(member)
    roster = run.sign(run.roster(pair.anchor, {member: update}, round=20))
    sending = pair.client.open_group(roster, update)
    assert (sending.is_member, sending.is_reducer) == (True, False)
    async with asyncio.TaskGroup() as tasks:
        gathering = tasks.create_task(sending.gather())
        reducing = pair.anchor.open_group(roster, None)
        assert (reducing.is_member, reducing.is_reducer) == (False, True)
    assert gathering.result() == []
    assert [r async for r in sending.reports()] == []
    (report,) = [r async for r in reducing.reports()]
    assert open_envelope(report, wire.ReducerReport).record.outcomes[0].complete

    record = run.inclusion(roster, [member])
    forged = open_envelope(seal(record, Identity.generate()), wire.InclusionSet)
    with pytest.raises(BadSignature):
        await sending.finish(forged)
    inclusion = open_envelope(seal(record, run.round_key), wire.InclusionSet)
    async with asyncio.TaskGroup() as tasks:
        ends = [tasks.create_task(group.finish(inclusion)) for group in (sending, reducing)]
    first, second = (end.result() for end in ends)
    assert first.mean_update.tobytes() == second.mean_update.tobytes()
    assert first.pieces == second.pieces
    record.members[:] = []
    with pytest.raises(BadRecord):
        await sending.finish(open_envelope(seal(record, run.round_key), wire.InclusionSet))

    # A result counts only as its reducer signed it, and only one.
    piece = first.pieces[0]
    await sending.add_piece(piece)
    with pytest.raises(BadSignature):
        await sending.add_piece(resigned(piece, Identity.generate()))
    anchor_key = pair.anchor._identity
    with pytest.raises(BadRecord):
        await sending.add_piece(resigned(piece, anchor_key, group_id=bytes(20)))
    with pytest.raises(BadRecord):
        await sending.add_piece(resigned(piece, anchor_key, chunk=99))
    with pytest.raises(Conflict):
        await sending.add_piece(resigned(piece, anchor_key, sha256=bytes(32)))
    (proof,) = sending.equivocations
    assert proof.first == piece.result
    assert open_envelope(proof.second, wire.ResultChunk, signer=anchor_key.peer_id)
    del sending.pieces[0]
    with pytest.raises(BadDigest):
        await sending.add_piece(service.ResultPiece(result=piece.result, encoded=b"\0" * 1032))
    with pytest.raises(BadRecord):
        await sending.add_piece(service.ResultPiece(result=piece.result, encoded=b"short"))
    for group in (sending, reducing):
        group.close()
        group.close()


def resigned(
    piece: service.ResultPiece, signer: Identity, **changes: object
) -> service.ResultPiece:
    record = open_envelope(piece.result, wire.ResultChunk).record
    for name, value in changes.items():
        setattr(record, name, value)
    return service.ResultPiece(result=seal(record, signer), encoded=piece.encoded)


async def test_rosters_that_may_not_be_opened(pair: Pair) -> None:
    run, member = pair.run, pair.client.peer_id
    update = run.update(member)
    record = run.roster(pair.anchor, {member: update}, round=30)
    with pytest.raises(BadSignature):
        pair.client.open_group(open_envelope(seal(record, run.root), wire.Roster), update)
    group = pair.client.open_group(run.sign(record), update)
    group.close()
    record.members[0].weight = 2
    with pytest.raises(Conflict):
        pair.client.open_group(run.sign(record), update)
    record.run_id = bytes(32)
    with pytest.raises(PeerFault):
        pair.client.open_group(run.sign(record), update)


async def test_an_unreachable_reducer_is_recorded_not_raised(pair: Pair) -> None:
    run, member = pair.run, pair.client.peer_id
    update = run.update(member)
    record = run.roster(pair.anchor, {member: update}, round=40)
    record.reducers[0].reducer = Identity.generate().peer_id
    record.gather_deadline_ms = int(time.time() * 1000) + 700
    group = pair.client.open_group(run.sign(record), update)
    (failure,) = await group.gather()
    assert failure.reducer == record.reducers[0].reducer
    assert "deadline passed" in failure.reason
    group.close()


# ---- start and end


def daemons() -> set[int]:
    children = psutil.Process().children()
    return {child.pid for child in children if child.name() == "p2pd"}


async def test_nothing_is_left_after_shutdown(pair: Pair) -> None:
    before, identity = daemons(), Identity.generate()
    sockets = socket_directory(identity.peer_id)
    (sockets / "left-by-a-crash.sock").touch()
    swarm = await pair.run.join(identity, peers=await pair.anchor.multiaddrs())
    assert len(daemons() - before) == 1
    assert sockets.stat().st_mode & 0o077 == 0
    assert not (sockets / "left-by-a-crash.sock").exists()
    await swarm.shutdown()
    await swarm.shutdown()
    assert daemons() == before
    assert not sockets.exists()


async def test_a_start_that_fails_says_what_to_do_and_leaves_nothing(pair: Pair) -> None:
    before, identity = daemons(), Identity.generate()
    nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"
    with pytest.raises(TransientError, match="anchors"):
        await pair.run.join(identity, peers=[nobody])
    with pytest.raises(UsageError, match="multiaddr"):
        await pair.run.join(identity, peers=["anchor.example.org"])
    other = Identity.generate()
    (pair.run.folder / other.peer_id).write_bytes(identity.libp2p_bytes())
    with pytest.raises(UsageError, match="not the key"):
        await pair.run.join(other, peers=[])
    assert daemons() == before
    assert not (Path("/tmp") / f"barnraise-{identity.peer_id[-20:]}").exists()


async def test_a_cancelled_start_leaves_nothing(pair: Pair) -> None:
    before, identity = daemons(), Identity.generate()
    joining = asyncio.ensure_future(pair.run.join(identity, peers=[]))
    while not daemons() - before:  # noqa: ASYNC110  # the daemon's start raises no event here
        await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert daemons() == before
