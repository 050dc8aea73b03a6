"""Downloads by the worker's own session from a real server, and what a bad source can do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from protocol.download import PieceSource, download
from protocol.errors import BadDigest, BadRecord, TransientError
from protocol.limits import MAX_PIECE_BYTES
from protocol.wire import service_pb2 as api
from worker.config import Home
from worker.data_source import DataSource
from worker.journal import Journal
from worker.session import Session
from worker.shards import BlobStore
from worker.state_cache import StateCache

DATA = bytes(range(256)) * 64
SHA256 = hashlib.sha256(DATA).digest()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    place = Home(tmp_path / "home")
    place.prepare()
    return place


@pytest.fixture
def blobs(home: Home) -> BlobStore:
    return BlobStore(home.blobs, home.scratch)


def pieces(data: bytes, *, shift: int = 0, total: int | None = None) -> PieceSource:
    """A source that serves ``data`` from the offset asked for, plus a lie."""

    async def source(offset: int) -> AsyncIterator[api.Piece]:
        for start in range(offset, len(data), 1000):
            yield api.Piece(
                offset=start + shift,
                data=data[start : start + 1000],
                total_bytes=len(data) if total is None else total,
            )

    return source


# ---- from the real server


async def test_data_and_weights_of_a_run_by_digest(
    session: Session, blobs: BlobStore, home: Home
) -> None:
    manifest, head = session.greeting.manifest, session.greeting.run_head
    assert head is not None
    data = DataSource(manifest, session, blobs)
    shards = await data.shards(0, 40)  # 32 sequences in a shard: both are needed
    assert len(shards) == 2
    for digest, path in shards.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    journal = Journal(home.journal)
    states = StateCache(manifest, session, blobs, journal)
    weights = await states.file(head, "weights")
    assert hashlib.sha256(weights.read_bytes()).digest() == head.record.weights_sha256
    # Momentum is zero at first: made here, with the same bytes.
    assert (await states.file(head, "momentum")).stat().st_size == head.record.momentum_bytes
    journal.close()


async def test_a_broken_download_goes_on_where_it_stopped(
    session: Session, blobs: BlobStore
) -> None:
    sha256 = bytes.fromhex(session.greeting.manifest.dataset_sha256)
    whole = blobs.scratch / "whole"
    await session.download_blob(sha256, whole, total_bytes=None, limit_bytes=1 << 20)
    part = blobs.partial(sha256)
    part.write_bytes(whole.read_bytes()[:100])
    await session.download_blob(sha256, part, total_bytes=None, limit_bytes=1 << 20)
    assert part.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("leftover", [b"not the beginning of it", bytes(2 << 20)])
async def test_damaged_leftovers_are_thrown_away_and_fetched_anew(
    session: Session, blobs: BlobStore, leftover: bytes
) -> None:
    sha256 = bytes.fromhex(session.greeting.manifest.dataset_sha256)
    blobs.partial(sha256).write_bytes(leftover)
    data = DataSource(session.greeting.manifest, session, blobs)
    path = await data.dataset_file()
    assert hashlib.sha256(path.read_bytes()).digest() == sha256
    assert not blobs.partial(sha256).exists()


async def test_a_source_that_serves_other_bytes_is_passed_over(
    session: Session, blobs: BlobStore, home: Home
) -> None:
    class Liar:
        """A swarm whose only holder serves a file of the right size."""

        peer_id = "us"

        async def weight_holders(self, _digest: bytes) -> list[str]:
            return ["liar"]

        async def fetch_blob(
            self, _peer: str, sha256: bytes, total_bytes: int, target: Path
        ) -> None:
            asked.append(sha256)
            await asyncio.to_thread(target.write_bytes, bytes(total_bytes))

    asked: list[bytes] = []
    head = session.greeting.run_head
    assert head is not None
    journal = Journal(home.journal)
    states = StateCache(session.greeting.manifest, session, blobs, journal)
    states.swarm = Liar()  # type: ignore[assignment]
    path = await states.file(head, "weights")
    assert asked == [head.record.weights_sha256]
    assert hashlib.sha256(path.read_bytes()).digest() == head.record.weights_sha256
    journal.close()


# ---- from a bad one


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (pieces(DATA, shift=1), "out of place"),
        (pieces(DATA + b"more"), "more than"),
        (pieces(DATA, total=1 << 40), "more than"),
    ],
    ids=["ahead", "longer", "promises more"],
)
async def test_pieces_out_of_bounds_are_refused(
    source: PieceSource, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(BadRecord, match=problem):
        await download(source, sha256=SHA256, total_bytes=len(DATA), target=tmp_path / "x")


async def test_a_piece_over_the_limit_is_refused(tmp_path: Path) -> None:
    big = bytes(MAX_PIECE_BYTES + 1)

    async def source(_offset: int) -> AsyncIterator[api.Piece]:
        yield api.Piece(offset=0, data=big, total_bytes=len(big))

    with pytest.raises(BadRecord):
        await download(source, sha256=SHA256, total_bytes=len(big), target=tmp_path / "x")


async def test_wrong_bytes_are_deleted(tmp_path: Path) -> None:
    other = bytes(len(DATA))
    with pytest.raises(BadDigest):
        await download(pieces(other), sha256=SHA256, total_bytes=len(DATA), target=tmp_path / "x")
    assert not (tmp_path / "x").exists()


# ---- onto a full disk


async def test_a_full_disk_keeps_what_came_and_says_so(
    full_disk: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    target = tmp_path / "x"
    with full_disk(4096), pytest.raises(TransientError, match="free some disk"):
        await download(pieces(DATA), sha256=SHA256, total_bytes=len(DATA), target=target)
    kept = target.stat().st_size
    assert 0 < kept <= 4096
    begun_at = []

    async def source(offset: int) -> AsyncIterator[api.Piece]:
        begun_at.append(offset)
        async for piece in pieces(DATA)(offset):
            yield piece

    await download(source, sha256=SHA256, total_bytes=len(DATA), target=target)
    assert begun_at == [kept]
    assert target.read_bytes() == DATA
