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
from worker.blob_fetch import BlobFetcher, Wanted
from worker.config import Home
from worker.data_source import DataSource
from worker.journal import Journal
from worker.session import Session
from worker.shards import BlobStore
from worker.sources import Sources
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
    fetcher = BlobFetcher(blobs, Sources(session))
    data = DataSource(manifest, fetcher, blobs)
    shards = await data.shards(0, 40)  # 32 sequences in a shard: both are needed
    assert len(shards) == 2
    for digest, path in shards.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    journal = Journal(home.journal)
    states = StateCache(manifest, fetcher, blobs, journal)
    weights = await states.file(head, "weights")
    assert hashlib.sha256(weights.read_bytes()).digest() == head.record.weights_sha256
    # Momentum is zero at first: made here, with the same bytes.
    assert (await states.file(head, "momentum")).stat().st_size == head.record.momentum_bytes
    journal.close()


async def test_data_that_rots_is_fetched_again_for_the_next_unit(
    session: Session, blobs: BlobStore
) -> None:
    manifest = session.greeting.manifest
    data = DataSource(manifest, BlobFetcher(blobs, Sources(session)), blobs)
    (name, path), *_ = (await data.shards(0, 4)).items()
    right = {path: path.read_bytes(), (dataset := await data.dataset_file()): dataset.read_bytes()}
    for damaged, bytes_ in right.items():
        damaged.write_bytes(bytes(len(bytes_)))
    assert data.has_changed([name])
    assert (await data.shards(0, 4))[name].read_bytes() == right[path]
    assert not data.has_changed([name])
    assert (await data.dataset_file()).read_bytes() == right[dataset]


@pytest.mark.parametrize("leftover", [b"not the beginning of it", bytes(2 << 20)])
async def test_leftovers_that_nobody_vouches_for_are_fetched_anew(
    session: Session, blobs: BlobStore, leftover: bytes
) -> None:
    head = session.greeting.run_head
    assert head is not None
    wanted = Wanted(head.record.weights_sha256, head.record.weights_bytes)
    partial = blobs.partial(wanted.sha256)
    partial.write_bytes(leftover)
    partial.with_suffix(".blocks.part").write_bytes(
        b'{"block": 0, "sha256": "00", "source": "x"}\n{"block": -1}\n{"block": 99999999, "sh\n\xff'
    )
    fetched = await BlobFetcher(blobs, Sources(session)).fetch(wanted)
    assert hashlib.sha256(fetched.path.read_bytes()).digest() == wanted.sha256
    assert list(blobs.scratch.iterdir()) == []


async def test_two_who_want_the_same_blob_fetch_it_once(session: Session, blobs: BlobStore) -> None:
    head = session.greeting.run_head
    assert head is not None
    wanted = Wanted(head.record.weights_sha256, head.record.weights_bytes)
    fetcher = BlobFetcher(blobs, Sources(session))
    first, second = await asyncio.gather(fetcher.fetch(wanted), fetcher.fetch(wanted))
    assert first.path == second.path
    assert [first.givers, second.givers] == [("coordinator",), ()]


class Liar:
    """A swarm whose only holder serves a file of the right size, or says so."""

    peer_id = "us"

    def __init__(self, served: bytes) -> None:
        self.served = served
        self.asked: list[bytes] = []

    async def weight_holders(self, _digest: bytes) -> list[str]:
        return ["liar"]

    async def blob_pieces(self, _peer: str, sha256: bytes, offset: int) -> AsyncIterator[api.Piece]:
        self.asked.append(sha256)
        total_bytes = len(self.served)
        yield api.Piece(offset=offset, total_bytes=total_bytes, data=self.served[offset:])


async def test_a_source_that_serves_other_bytes_is_passed_over(
    session: Session, blobs: BlobStore, home: Home
) -> None:
    head = session.greeting.run_head
    assert head is not None
    journal, sources = Journal(home.journal), Sources(session)
    liar = Liar(bytes(head.record.weights_bytes))
    sources.swarm = liar  # type: ignore[assignment]
    fetcher = BlobFetcher(blobs, sources)
    states = StateCache(session.greeting.manifest, fetcher, blobs, journal)
    path = await states.file(head, "weights")
    assert liar.asked == [head.record.weights_sha256]
    assert hashlib.sha256(path.read_bytes()).digest() == head.record.weights_sha256
    assert sources.bad == ["liar"]
    journal.close()


@pytest.mark.parametrize("size_bytes", [0, 10, 2 << 20], ids=["nothing", "short", "too long"])
async def test_a_manifest_of_which_no_size_is_known_is_bounded(
    session: Session, blobs: BlobStore, size_bytes: int
) -> None:
    sources, liar = Sources(session), Liar(bytes(size_bytes))
    sources.swarm = liar  # type: ignore[assignment]
    sources.head = lambda: session.greeting.run_head
    data = DataSource(session.greeting.manifest, BlobFetcher(blobs, sources), blobs)
    path = await data.dataset_file()
    sha256 = session.greeting.manifest.dataset_sha256
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert sources.bad == ["liar"]
    assert len(liar.asked) == 1


async def test_a_full_disk_keeps_what_was_here_and_the_download_goes_on(
    session: Session, blobs: BlobStore, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    head = session.greeting.run_head
    assert head is not None
    wanted = Wanted(head.record.weights_sha256, head.record.weights_bytes)
    fetcher = BlobFetcher(blobs, Sources(session))
    with full_disk(512), pytest.raises(TransientError, match="free some disk"):
        await fetcher.fetch(wanted)
    assert blobs.find(wanted.sha256) is None
    fetched = await fetcher.fetch(wanted)
    assert hashlib.sha256(fetched.path.read_bytes()).digest() == wanted.sha256


# ---- what is remembered of them


async def test_a_liar_is_asked_again_when_its_time_is_over_which_grows(session: Session) -> None:
    now_s = 0.0
    sources = Sources(session, clock_s=lambda: now_s)
    sources.swarm = Liar(b"")  # type: ignore[assignment]

    async def names() -> list[str]:
        return [source.name for source in await sources.of(SHA256, bytes(32))]

    assert await names() == ["liar", "coordinator"]
    for times in range(1, 4):
        sources.convict("liar", "it lied")
        assert await names() == ["coordinator"]
        now_s += 600.0 * 2 ** (times - 1)
        assert await names() == ["liar", "coordinator"]
    sources.refused("liar", SHA256)
    assert await names() == ["coordinator"]
    now_s += 3600
    assert await names() == ["liar", "coordinator"]


def test_what_is_remembered_of_liars_is_bounded_and_the_newest_are_reported(
    session: Session,
) -> None:
    sources = Sources(session)
    for number in range(1000):
        sources.convict(f"peer-{number}", "it lied")
        sources.refused(f"peer-{number}", SHA256)
    sources.convict("coordinator", "its disk rots")
    assert sources.bad == [f"peer-{number}" for number in range(984, 1000)]
    assert len(sources._liars) <= 256


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
