"""What is fetched ahead of the next unit: often right, never in anybody's way."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from coordinator import leases
from coordinator.database import Database
from coordinator.schema import IntervalRow
from protocol.dataset import DatasetManifest, SequenceReader, ShardInfo, Source
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker import prefetch as module
from worker.blob_fetch import BlobFetcher
from worker.config import Home
from worker.data_source import DataSource
from worker.disk import DiskQuota
from worker.last_uses import LastUses
from worker.limits import Limits
from worker.news import News
from worker.partial_blob import BLOCK_BYTES
from worker.prefetch import MOST_SHARDS, Prefetch, Rounds, Stretch, ahead
from worker.shards import BlobStore
from worker.sources import Source as BlobSource

LENGTH, BATCH = 8, 4


def shard(number: int, sequences: int) -> ShardInfo:
    sha256 = hashlib.sha256(content(number, sequences)).hexdigest()
    return ShardInfo(sha256=sha256, sequences=sequences, bytes=sequences * LENGTH * 2)


def content(number: int, sequences: int) -> bytes:
    return bytes([number]) * (sequences * LENGTH * 2)


def dataset(*sizes: int) -> DatasetManifest:
    source = Source(name="dice", licence="CC0", files=1, documents=1, bytes=1, sha256="0" * 64)
    return DatasetManifest(
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=1 << 16,
        eos_token_id=0,
        tokenizer_sha256="0" * 64,
        shuffle_seed=0,
        shards=tuple(shard(number, size) for number, size in enumerate(sizes)),
        validation=shard(255, 1),
        sources=(source,),
        licence="CC0",
        tokens=sum(sizes) * LENGTH,
    )


# ---- what is guessed


@pytest.mark.parametrize(
    ("start", "end", "round_length", "expected"),
    [
        (0, 5, 5, [0]),  # alone, within one shard
        (0, 10, 10, [1]),
        (5, 15, 10, [1, 2]),
        (0, 5, 20, [2, 3, 1, 0]),  # four rounds' worth of others in between: around there
        (70, 80, 10, [0]),  # the next epoch
        (75, 80, 15, [1, 2, 0]),
        (0, 80, 80, [0, 1, 2, 3]),  # all of it, each time
    ],
)
def test_the_likeliest_shards_come_first(
    start: int, end: int, round_length: int, expected: list[int]
) -> None:
    data = dataset(*[10] * 8)
    found = ahead(data, Stretch(start, end, round_length))
    assert [data.shards.index(one) for one in found] == expected


def test_where_the_next_unit_may_be_anywhere_nothing_is_guessed() -> None:
    data = dataset(*[10] * 80)
    assert ahead(data, Stretch(0, 5, 400)) == []
    assert ahead(data, Stretch(0, 5, 80)) != []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_shards_are_named_once(count: int) -> None:
    data = dataset(*[10] * count)
    for start in range(0, 10 * count, 3):
        for length in (3, 10, 50):
            found = ahead(data, Stretch(start, start + 3, length))
            assert len(found) == len(set(found)) <= min(count, MOST_SHARDS)


def test_the_length_of_a_round_is_learnt_from_signed_heads() -> None:
    rounds = Rounds(LENGTH)
    record = wire.Assignment(start_sequence=100, end_sequence=110)

    def head(settled: int, sequences: int) -> wire.RunHead:
        return wire.RunHead(settled_rounds=settled, merged_tokens=sequences * LENGTH)

    assert rounds.stretch(record, head(0, 0)) == Stretch(100, 110, 10)  # nothing is known yet
    assert rounds.stretch(record, head(1, 40)).round_length == 40
    assert rounds.stretch(record, head(1, 40)).round_length == 40
    assert rounds.stretch(record, head(3, 140)).round_length == 50  # one was not seen
    assert Rounds(LENGTH).stretch(record, head(5, 150)).round_length == 30  # after a restart


# ---- how often it is right


@dataclass
class Member:
    """One worker's cache of a few shards; the last used last."""

    steps: int
    rounds: Rounds = field(default_factory=lambda: Rounds(LENGTH))
    cache: list[str] = field(default_factory=list)

    def use(self, sha256: str) -> None:
        if sha256 in self.cache:
            self.cache.remove(sha256)
        self.cache = [*self.cache, sha256][-8:]


@dataclass
class Tally:
    units: int = 0
    found: int = 0
    fetched: int = 0


def simulate(
    steps: list[int],
    *,
    shard_steps: int,
    guesses: bool,
    seed: int = 1,
    partial: float = 0.0,
    absent: float = 0.0,
) -> Tally:
    """Thirty rounds of members that lease by the coordinator's own book, in another order each."""
    chance, tally = random.Random(seed), Tally()
    data = dataset(*[shard_steps * BATCH] * 64)
    reader = SequenceReader(data, Path)
    database = Database("sqlite://")
    IntervalRow.__table__.create(database.engine)
    members, merged, serial = [Member(count) for count in steps], 0, 0
    with Session(database.engine) as session:
        for round_ in range(30):
            present = [member for member in members if chance.random() >= absent]
            chance.shuffle(present)
            head = wire.RunHead(settled_rounds=round_, merged_tokens=merged * BATCH * LENGTH)
            open_leases = []
            for member in present:
                serial += 1
                key = serial.to_bytes(16, "big")
                lease = leases.take(session, key, member.steps, 64 * shard_steps)
                open_leases.append((key, lease))
                record = wire.Assignment(
                    start_sequence=lease.start * BATCH, end_sequence=lease.stop * BATCH
                )
                needed = reader.needed(record.start_sequence, record.end_sequence)
                if round_ >= 2:
                    tally.units += 1
                    tally.found += all(one.sha256 in member.cache for one in needed)
                for one in needed:
                    member.use(one.sha256)
                stretch = member.rounds.stretch(record, head)
                for one in ahead(data, stretch) if guesses else ():
                    tally.fetched += one.sha256 not in member.cache
                    member.use(one.sha256)
            for key, lease in open_leases:
                done = lease.steps
                if chance.random() < partial:
                    done = max(1, chance.randrange(lease.steps + 1))
                leases.consume(session, key, done)
                merged += done
            session.commit()
    database.close()
    return tally


MIXED = [5, 10, 20, 40, 80]


@pytest.mark.parametrize(
    ("steps", "shard_steps", "without", "with_", "unreliable"),
    [
        ([20], 20, 0.02, 1.0, False),
        ([20] * 4, 100, 0.4, 0.95, False),
        (MIXED, 100, 0.2, 0.95, False),
        (MIXED, 400, 0.75, 0.95, False),
        ([5, 8, 10, 15, 20, 30, 40, 80], 100, 0.25, 0.85, True),
    ],
)
def test_most_units_find_their_data_here(
    steps: list[int], shard_steps: int, without: float, with_: float, unreliable: bool
) -> None:
    """``unreliable``: a fifth of the units are cut short, a tenth of the members are away."""
    chances = {"partial": 0.2, "absent": 0.1} if unreliable else {}
    lazy = simulate(steps, shard_steps=shard_steps, guesses=False, **chances)
    eager = simulate(steps, shard_steps=shard_steps, guesses=True, **chances)
    assert lazy.found / lazy.units <= without
    assert eager.found / eager.units >= with_
    assert eager.fetched / eager.units <= MOST_SHARDS


def test_where_shards_are_small_and_members_many_little_is_fetched_in_vain() -> None:
    crowd = simulate([5, 8, 10, 15, 20, 30, 40, 80] * 2, shard_steps=20, guesses=True)
    assert crowd.fetched / crowd.units < 0.5


# ---- the task

SEQUENCES = 3 * BLOCK_BYTES // (2 * LENGTH)


class Feed:
    """One source of shards that gives a block each time it is told to, and counts."""

    def __init__(self, count: int) -> None:
        self.bad: list[str] = []
        self.blobs = {
            hashlib.sha256(content(number, SEQUENCES)).digest(): content(number, SEQUENCES)
            for number in range(count)
        }
        self.offsets: list[int] = []
        self.blocks = asyncio.Semaphore(0)
        self.news = News()
        self.given = 0  # blocks
        self.ended = 0  # streams

    async def of(self, _sha256: bytes, _state: bytes | None = None) -> list[BlobSource]:
        return [BlobSource("feed", self._pieces, organiser=True)]

    async def _pieces(self, sha256: bytes, offset: int) -> AsyncIterator[api.Piece]:
        self.offsets.append(offset)
        data = self.blobs[sha256]
        try:
            for start in range(offset, len(data), BLOCK_BYTES):
                await self.blocks.acquire()
                piece = data[start : start + BLOCK_BYTES]
                yield api.Piece(offset=start, total_bytes=len(data), data=piece)
                self.given += 1  # asked for the next: this one is kept
                self.news.tell()
        finally:
            self.ended += 1
            self.news.tell()

    def open(self) -> None:
        for _ in range(1000):
            self.blocks.release()

    def refused(self, *_: object) -> None:
        raise AssertionError("it was refused")

    convict = refused


class Rig:
    """A prefetcher over a real cache, with a dataset of eight shards of three blocks."""

    def __init__(self, folder: Path, disk_mib: int = 0) -> None:
        self.home = Home(folder)
        self.home.prepare()
        quota = DiskQuota(self.home.path, Limits(disk_mib=disk_mib, free_disk_mib=0))
        uses = LastUses(self.home.last_uses)
        self.store = BlobStore(self.home.blobs, self.home.scratch, quota, uses)
        self.feed = Feed(8)
        self.dataset = dataset(*[SEQUENCES] * 8)
        self.store.put(self.dataset.canonical())
        manifest: Any = SimpleNamespace(
            dataset_sha256=self.dataset.digest.hex(), sequence_length=LENGTH
        )
        fetcher = BlobFetcher(self.store, self.feed)  # type: ignore[arg-type]
        self.data = DataSource(manifest, fetcher, self.store)
        self.prefetch = Prefetch(self.data, LENGTH)
        self.installed = News()
        self._tell_of_files()

    def _tell_of_files(self) -> None:
        loop, install = asyncio.get_running_loop(), self.store.install

        def told(source: Path, sha256: bytes) -> None:
            install(source, sha256)
            loop.call_soon_threadsafe(self.installed.tell)

        self.store.install = told  # type: ignore[method-assign]

    def held(self) -> list[int]:
        return [n for n, one in enumerate(self.dataset.shards) if self.data.is_here(one.sha256)]

    @contextmanager
    def unit(self, number: int) -> Iterator[None]:
        """One of a whole shard, by the only member."""
        record = wire.Assignment(
            start_sequence=number * SEQUENCES, end_sequence=(number + 1) * SEQUENCES
        )
        head = wire.RunHead(settled_rounds=1, merged_tokens=SEQUENCES * LENGTH)
        self.prefetch._rounds = Rounds(LENGTH)
        with self.prefetch.during(record, head):
            yield

    async def until_held(self, *numbers: int) -> None:
        while self.held() != sorted(numbers):
            await self.installed.wait()

    async def until_given(self, blocks: int) -> None:
        while self.feed.given < blocks:
            await self.feed.news.wait()

    async def until_ended(self, streams: int) -> None:
        while self.feed.ended < streams:
            await self.feed.news.wait()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "home")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.prefetch.run())
        yield made
        running.cancel()


async def test_during_a_unit_the_next_shard_comes_and_then_no_other(rig: Rig) -> None:
    rig.feed.open()
    assert rig.held() == []
    with rig.unit(0):
        await rig.until_held(1)
    with rig.unit(1):
        await rig.until_held(1, 2)
    assert len(rig.feed.offsets) == 2
    shards = await rig.data.shards(2 * SEQUENCES, 3 * SEQUENCES)
    assert len(shards) == 1
    assert (rig.data.found, rig.data.fetched) == (1, 0)
    await rig.data.shards(5 * SEQUENCES, 6 * SEQUENCES)
    assert (rig.data.found, rig.data.fetched) == (1, 1)


async def test_with_the_units_last_step_it_stops_and_later_it_goes_on(rig: Rig) -> None:
    with rig.unit(0):
        rig.feed.blocks.release()
        await rig.until_given(1)  # the first is on the disk, the second is waited for
    await rig.until_ended(1)
    assert rig.held() == []
    rig.feed.open()
    with rig.unit(0):
        await rig.until_held(1)
    assert rig.feed.offsets == [0, BLOCK_BYTES]  # not from the beginning


async def test_a_word_of_the_governor_stops_it_at_once_and_lets_it_go_on(rig: Rig) -> None:
    with rig.unit(0):
        rig.feed.blocks.release()
        await rig.until_given(1)
        rig.prefetch.forbid("governor", True)
        rig.prefetch.forbid("network", True)
        rig.prefetch.forbid("governor", False)
        await rig.until_ended(1)
        assert rig.held() == []
        rig.feed.open()
        rig.prefetch.forbid("network", False)
        await rig.until_held(1)


async def test_it_heeds_a_verdict_that_changes(rig: Rig) -> None:
    rig.feed.open()
    news, works = News(), [False]
    heeding = asyncio.create_task(rig.prefetch.heed(lambda: works[0], news))
    await asyncio.sleep(0)
    with rig.unit(0):
        assert rig.prefetch._wanted() is None
        works[0] = True
        news.tell()
        await rig.until_held(1)
    heeding.cancel()


async def test_a_tight_network_leaves_nothing_for_guesses(rig: Rig) -> None:
    asked: list[int] = []

    def tight(size_bytes: int) -> bool:
        asked.append(size_bytes)
        return False

    rig.feed.open()
    prefetch = Prefetch(rig.data, LENGTH, tight)
    assert await prefetch._fetch_ahead(Stretch(0, SEQUENCES, SEQUENCES))
    assert asked == [rig.dataset.shards[1].bytes]
    assert rig.feed.offsets == []


async def test_no_more_than_a_bounded_number_of_bytes_is_guessed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 7 * BLOCK_BYTES)  # two shards
    rig.feed.open()
    # The next unit is expected four shards on.
    assert await rig.prefetch._fetch_ahead(Stretch(0, SEQUENCES, 4 * SEQUENCES))
    assert rig.held() == [4, 5]
    assert len(rig.feed.offsets) == rig.prefetch.fetched == 2


async def test_what_the_unit_reads_and_has_used_does_not_go_for_a_guess(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "home", disk_mib=7)  # two shards of three
    rig.feed.open()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(rig.prefetch.run())
        await rig.data.shards(0, SEQUENCES)
        with rig.unit(0):
            await rig.until_held(0, 1)
        await rig.data.shards(SEQUENCES, 2 * SEQUENCES)
        with rig.unit(1):
            await rig.until_held(1, 2)  # the shard of the last unit went for it
        await rig.data.shards(2 * SEQUENCES, 4 * SEQUENCES)  # two at once: no room to guess
        assert rig.held() == [2, 3]
        with rig.unit(3):
            asked = len(rig.feed.offsets)
            rig.prefetch.forbid("test", True)
        assert rig.held() == [2, 3]
        assert len(rig.feed.offsets) == asked
        running.cancel()


async def test_a_source_that_fails_ends_the_guessing_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()

    async def away(*_: object) -> Any:
        tried.set()
        return []  # nobody has it

    real = rig.feed.of
    monkeypatch.setattr(rig.feed, "of", away)
    with rig.unit(0):
        await tried.wait()
    monkeypatch.setattr(rig.feed, "of", real)
    rig.feed.open()
    with rig.unit(1):
        await rig.until_held(2)
