"""What the owner allows of the disk is kept, by real files, and what is in use stays."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import TransientError, UsageError
from protocol.wire import service_pb2 as api
from worker.blob_fetch import BlobFetcher, Wanted
from worker.cache_status import require_room
from worker.config import Home
from worker.disk import DiskQuota, NoRoom
from worker.last_uses import LastUses
from worker.limits import Limits
from worker.partial_blob import BLOCK_BYTES, PartialBlob
from worker.retained import Retained
from worker.running import clear_folder
from worker.shards import BlobStore
from worker.sources import Source
from worker.unit_room import UnitRoom, least_bytes, snapshot_bytes, update_bytes

MIB = 1 << 20
QUARTER = MIB // 4


@pytest.fixture
def home(tmp_path: Path) -> Home:
    place = Home(tmp_path / "home")
    place.prepare()
    return place


def limits(disk_mib: int = 0, free_disk_mib: int = 0) -> Limits:
    return Limits(disk_mib=disk_mib, free_disk_mib=free_disk_mib)


def open_store(home: Home, disk_mib: int = 0, **options: Any) -> tuple[BlobStore, DiskQuota]:
    quota = DiskQuota(home.path, limits(disk_mib), **options)
    return BlobStore(home.blobs, home.scratch, quota, LastUses(home.last_uses)), quota


def blob(number: int, size: int = QUARTER) -> bytes:
    return bytes([number]) * size


def name(number: int, size: int = QUARTER) -> bytes:
    return hashlib.sha256(blob(number, size)).digest()


def held(store: BlobStore, *numbers: int) -> list[int]:
    return [number for number in numbers if store.path(name(number)).exists()]


def taken(home: Home) -> int:
    return sum(path.lstat().st_size for path in home.path.rglob("*") if path.is_file())


# ---- who goes


def test_the_least_recently_used_goes_first(home: Home) -> None:
    store, _ = open_store(home, 1)
    for number in range(3):
        store.put(blob(number))
    assert store.find(name(0)) is not None
    store.put(blob(3))
    assert held(store, 0, 1, 2, 3) == [0, 2, 3]
    assert taken(home) <= MIB


def test_the_order_survives_a_restart_and_what_others_do_to_access_times(home: Home) -> None:
    store, _ = open_store(home, 1)
    for number in range(3):
        store.put(blob(number))
    assert store.find(name(0)) is not None
    for number, at_s in ((0, 1), (1, 2_000_000_000), (2, 2_000_000_000)):
        os.utime(store.path(name(number)), (at_s, at_s))
    store, _ = open_store(home, 1)
    store.put(blob(3))
    assert held(store, 0, 1, 2, 3) == [0, 2, 3]


@pytest.mark.parametrize("damage", [b"", b"\xff\n" * 3, b"abc", b"g" * 64 + b"\n", b"0" * 200])
def test_a_damaged_list_of_uses_makes_another_order_and_nothing_else(
    home: Home, damage: bytes
) -> None:
    store, _ = open_store(home, 1)
    store.put(blob(0))
    with home.last_uses.open("ab") as file:
        file.write(damage)
    store, _ = open_store(home, 1)
    for number in range(1, 6):
        store.put(blob(number))
    assert held(store, 0, 1, 2, 3, 4, 5)[-1] == 5
    assert taken(home) <= MIB


def test_the_list_of_uses_stays_short(home: Home) -> None:
    uses = LastUses(home.last_uses)
    for turn in range(2000):
        uses.note(name(turn % 3, 1))
    assert home.last_uses.stat().st_size < 40_000
    again = LastUses(home.last_uses)
    assert sorted(range(3), key=lambda number: again.of(name(number, 1))) == [2, 0, 1]


def test_what_is_pinned_stays_and_a_refusal_deletes_nothing(home: Home) -> None:
    store, _ = open_store(home, 1)
    for number in range(3):
        store.put(blob(number))
    store.pin("unit", [name(0), name(1)])
    with pytest.raises(NoRoom, match=r"worker limits disk_mib \d+' allows it"):
        store.put(blob(9, 3 * QUARTER))
    assert held(store, 0, 1, 2) == [0, 1, 2]
    store.pin("unit", [name(2)])
    store.put(blob(9, 2 * QUARTER))
    assert held(store, 0, 1, 2) == [2]


def test_a_guess_never_costs_what_was_used_since_the_unit_began(home: Home) -> None:
    store, _ = open_store(home, 1)
    for number in range(2):
        store.put(blob(number))
    store.spare_recent()
    assert store.find(name(1)) is not None
    store.reserve(home.scratch / "a.part", 2 * QUARTER, "a guess", guess=True)
    assert held(store, 0, 1) == [1]
    with pytest.raises(NoRoom):
        store.reserve(home.scratch / "b.part", 2 * QUARTER, "a guess", guess=True)
    assert held(store, 1) == [1]


def test_a_peer_that_keeps_downloading_a_file_does_not_keep_it_here(home: Home) -> None:
    store, _ = open_store(home, 1)
    for number in range(3):
        store.put(blob(number))
    for _ in range(10):
        assert store.known(name(0)) is not None
    store.put(blob(3))
    assert held(store, 0) == []


def test_who_is_served_from_a_file_that_goes_gets_all_of_it(home: Home) -> None:
    store, _ = open_store(home, 1)
    store.put(blob(0))
    path = store.known(name(0))
    assert path is not None
    with path.open("rb") as file:
        for number in range(1, 5):
            store.put(blob(number))
        assert held(store, 0) == []
        assert file.read() == blob(0)
    assert store.known(name(0)) is None


# ---- what counts


def test_whatever_a_kill_leaves_is_counted(home: Home) -> None:
    for folder, file in [
        (home.scratch, "ab.part"),
        (home.scratch, "weights.new"),
        (home.unit, "cd"),
        (home.unit, "cd.new"),
        (home.updates, "x.update"),
        (home.answers, "ef"),
    ]:
        (folder / file).write_bytes(bytes(1000))
    (home.inputs / "7-ab.part").mkdir()
    (home.inputs / "7-ab.part" / "0000").write_bytes(bytes(1000))
    _, quota = open_store(home, 1)
    part = quota.part()
    assert part["bytes"] == taken(home) == 7000
    assert (part["files"], part["limit_bytes"]) == (7, MIB)
    with pytest.raises(NoRoom):
        quota.reserve(home.scratch / "more", MIB - 6000, "more")
    quota.reserve(home.scratch / "more", MIB - 7000, "more")


def test_a_file_on_its_way_counts_as_what_it_will_be_with_the_one_beside_it(home: Home) -> None:
    _, quota = open_store(home, 1)
    path = home.scratch / "weights.new"
    quota.reserve(path, 3 * QUARTER, "weights")
    for file in (path, home.scratch / ".writing-weights.new-xyz"):
        file.write_bytes(bytes(QUARTER))  # within what is kept for it
    with pytest.raises(NoRoom):
        quota.reserve(home.scratch / "other", QUARTER + 1, "other")
    quota.reserve(home.scratch / "other", QUARTER, "other")
    quota.release(path, home.scratch / "other")
    quota.reserve(home.scratch / "third", 2 * QUARTER, "third")


def test_two_threads_do_not_promise_the_same_room_twice(home: Home) -> None:
    _, quota = open_store(home, 1)
    gate, kept = threading.Barrier(8), []

    def want(number: int) -> None:
        gate.wait()
        try:
            quota.reserve(home.scratch / f"file-{number}-", QUARTER, "a part")
        except NoRoom:
            return
        kept.append(number)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 4


def test_disk_that_stays_free_for_others_is_left_to_them(home: Home) -> None:
    free = {"bytes": 3 * MIB}
    quota = DiskQuota(home.path, limits(free_disk_mib=1), lambda _: free["bytes"])
    store = BlobStore(home.blobs, home.scratch, quota)
    quota.reserve(home.scratch / "one", MIB, "a part")
    with pytest.raises(NoRoom, match="1 MiB of it stay free for others"):
        quota.reserve(home.scratch / "two", MIB + 1, "a part")  # the first is still to be written
    quota.release(home.scratch / "one")
    store.put(blob(1))
    free["bytes"] = MIB - 1
    with pytest.raises(NoRoom):
        quota.reserve(home.scratch / "two", 2 * QUARTER, "a part")
    assert held(store, 1) == [1]  # it would not have been enough


def test_a_smaller_limit_counts_at_once(home: Home) -> None:
    store, quota = open_store(home, 2)
    for number in range(6):
        store.put(blob(number))
    store.pin("unit", [name(0)])
    quota.change(limits(1))
    quota.tidy()
    assert held(store, *range(6)) == [0, 4, 5]
    assert taken(home) <= MIB
    quota.change(limits(2))
    store.put(blob(7, MIB))
    assert len(held(store, 0, 4, 5)) == 3


def test_what_can_never_fit_says_which_limit_would_do(home: Home) -> None:
    _, quota = open_store(home, 1000)
    quota.require(1000 * MIB, "a unit of this run")
    with pytest.raises(
        UsageError,
        match=r"a unit of this run needs 2\.0 GiB of disk, your limit is 1000\.0 MiB: "
        r"'barnraise worker limits disk_mib 2500' allows it",
    ):
        quota.require(2_100_000_000, "a unit of this run")


# ---- evidence


def test_evidence_goes_last_and_never_that_of_the_round_under_way(home: Home) -> None:
    store, quota = open_store(home, 1)
    retained = Retained(home.updates, home.inputs, quota=quota)
    for round_ in (4, 5, 6):
        path = home.updates / f"{round_:010d}-{round_:032x}-{'0' * 64}.update"
        path.write_bytes(bytes(QUARTER))
    retained.current_round = 6
    store.put(blob(0, QUARTER - 4096))
    quota.reserve(home.scratch / "a", 2 * QUARTER - 4096, "a part")
    assert held(store, 0) == []
    assert [int(path.name[:10]) for path in sorted(home.updates.iterdir())] == [5, 6]
    with pytest.raises(NoRoom):
        quota.reserve(home.scratch / "b", 2 * QUARTER, "a part")
    quota.reserve(home.scratch / "b", QUARTER, "a part")
    assert [int(path.name[:10]) for path in home.updates.iterdir()] == [6]


# ---- a unit


HEAD: Any = SimpleNamespace(weights_bytes=400_000, momentum_bytes=400_000)


def run_manifest(codec: str = "int8", lag_rounds: int = 0) -> Any:
    update = SimpleNamespace(codec=codec, chunk_elements=1024)
    return SimpleNamespace(update=update, lag_rounds=lag_rounds)


def test_a_unit_without_room_for_snapshots_is_trained_without_them(home: Home) -> None:
    _, quota = open_store(home, 1)
    room = UnitRoom(quota, run_manifest())
    output, snapshot = home.scratch / "a.encoding", home.unit / "a"
    assert not room.take(output, snapshot, HEAD)
    with pytest.raises(NoRoom):
        quota.reserve(home.scratch / "b", MIB, "a part")
    room.leave()
    quota.reserve(home.scratch / "b", MIB, "a part")
    quota.release(home.scratch / "b")
    quota.change(limits(8))
    assert room.take(output, snapshot, HEAD)
    assert quota._used() >= 2 * snapshot_bytes(HEAD)


def test_a_unit_without_room_for_its_update_is_not_begun(home: Home) -> None:
    _, quota = open_store(home, 1)
    quota.reserve(home.scratch / "b", MIB - 1000, "a part")
    with pytest.raises(NoRoom, match="the update of a unit"):
        UnitRoom(quota, run_manifest()).take(home.scratch / "a", home.unit / "a", HEAD)


async def test_a_run_that_cannot_fit_is_named_before_anything_is_fetched(home: Home) -> None:
    _, quota = open_store(home, 1)
    dataset = SimpleNamespace(shards=[SimpleNamespace(bytes=b) for b in (1000, 3000, 2000)])
    expected = 4 * 400_000 + 5000 + update_bytes(HEAD, run_manifest()) + MIB
    assert least_bytes(HEAD, dataset, run_manifest()) == expected  # type: ignore[arg-type]
    overlapped = least_bytes(HEAD, dataset, run_manifest(lag_rounds=1))  # type: ignore[arg-type]
    assert overlapped == expected + update_bytes(HEAD, run_manifest()), "one is reduced meanwhile"

    async def known() -> Any:
        return dataset

    node: Any = SimpleNamespace(
        disk=quota,
        data=SimpleNamespace(dataset=known),
        session=SimpleNamespace(greeting=SimpleNamespace(manifest=run_manifest())),
    )
    with pytest.raises(UsageError, match="disk_mib 100' allows it"):
        await require_room(node, HEAD)
    quota.change(limits(100))
    await require_room(node, HEAD)


# ---- downloads


class Feed:
    """One source that gives what is asked for, and counts."""

    def __init__(self, *blobs: bytes) -> None:
        self.bad: list[str] = []
        self.asked = 0
        self._blobs = {hashlib.sha256(data).digest(): data for data in blobs}

    async def of(self, sha256: bytes, _state: bytes | None = None) -> list[Source]:
        return [Source("feed", self._pieces, organiser=True)]

    async def _pieces(self, sha256: bytes, offset: int) -> Any:
        self.asked += 1
        data = self._blobs[sha256]
        for start in range(offset, len(data), BLOCK_BYTES):
            piece = data[start : start + BLOCK_BYTES]
            yield api.Piece(offset=start, total_bytes=len(data), data=piece)

    def refused(self, *_: object) -> None:
        raise AssertionError("it was refused")

    convict = refused


async def test_room_is_made_before_the_first_byte_is_asked_for(home: Home) -> None:
    store, _ = open_store(home, 3)
    old, new = blob(1, 2 * MIB), blob(2, 2 * MIB)
    store.put(old)
    feed = Feed(new)
    fetcher = BlobFetcher(store, feed)  # type: ignore[arg-type]
    sha256 = hashlib.sha256(new).digest()
    with pytest.raises(NoRoom, match=r"a shard of 4\.0 MiB"):
        await fetcher.fetch(Wanted(sha256, 4 * MIB, "a shard"))
    assert feed.asked == 0
    assert store.find(hashlib.sha256(old).digest()) is not None
    fetched = await fetcher.fetch(Wanted(sha256, len(new), "a shard"))
    assert fetched.path.read_bytes() == new
    assert store.find(hashlib.sha256(old).digest()) is None
    assert taken(home) <= 3 * MIB


async def test_a_download_that_goes_on_needs_room_for_the_rest_only(home: Home) -> None:
    store, _ = open_store(home, 3)
    data = blob(5, 2 * MIB)
    sha256 = hashlib.sha256(data).digest()
    begun = PartialBlob(store.partial(sha256), len(data))
    begun.open()
    begun.keep(0, data[:BLOCK_BYTES], "feed")
    store.put(blob(6, MIB - 4096))  # a whole second download beside the half would not fit
    feed = Feed(data)
    fetched = await BlobFetcher(store, feed).fetch(Wanted(sha256, len(data)))  # type: ignore[arg-type]
    assert fetched.path.read_bytes() == data
    assert store.find(hashlib.sha256(blob(6, MIB - 4096)).digest()) is not None


async def test_a_download_of_another_blob_that_was_given_up_goes_before_any_blob(
    home: Home,
) -> None:
    store, _ = open_store(home, 3)
    store.put(blob(1, MIB // 2))
    idle = PartialBlob(store.partial(name(3)), 2 * MIB)
    idle.open()
    idle.keep(0, bytes(BLOCK_BYTES), "feed")
    new = blob(2, 2 * MIB)
    fetcher = BlobFetcher(store, Feed(new))  # type: ignore[arg-type]
    await fetcher.fetch(Wanted(hashlib.sha256(new).digest(), len(new)))
    assert store.find(name(1, MIB // 2)) is not None
    assert not store.partial(name(3)).exists()
    assert list(home.scratch.iterdir()) == []


async def test_a_file_that_ends_up_over_a_full_disk_is_a_passing_failure(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, quota = open_store(home, 3)
    data = blob(5, 2 * MIB)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartialBlob, "keep", full)
    fetcher = BlobFetcher(store, Feed(data))  # type: ignore[arg-type]
    with pytest.raises(TransientError, match="free some disk, the download will go on"):
        await fetcher.fetch(Wanted(hashlib.sha256(data).digest(), len(data)))
    assert quota._coming == {}
    monkeypatch.undo()
    await fetcher.fetch(Wanted(hashlib.sha256(data).digest(), len(data)))


# ---- the real thing


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"this test mounts a small disk, as root: {made.stderr}"
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_small_disk_the_cache_leaves_what_stays_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        home = Home(disk / "home")
        home.prepare()
        quota = DiskQuota(home.path, limits(free_disk_mib=4))
        store = BlobStore(home.blobs, home.scratch, quota, LastUses(home.last_uses))
        for number in range(40):
            store.put(blob(number))
            assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize >= 4 * MIB
        kept = held(store, *range(40))
        assert kept == list(range(40 - len(kept), 40))
        assert 12 <= len(kept) <= 16
        (disk / "of somebody else").write_bytes(bytes(2 * MIB))
        with pytest.raises(NoRoom):
            store.put(blob(50, 3 * MIB))
        store.put(blob(51))
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize >= 4 * MIB


KILLED = """
import os, signal
from pathlib import Path
from worker.config import Home
from worker.disk import DiskQuota
from worker.last_uses import LastUses
from worker.limits import Limits
from worker.shards import BlobStore
home = Home(Path({home!r}))
home.prepare()
quota = DiskQuota(home.path, Limits(disk_mib=1, free_disk_mib=0))
store = BlobStore(home.blobs, home.scratch, quota, LastUses(home.last_uses))
numbers = iter(range(1 << 30))
def strike(*_):
    if next(numbers) == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
for where, what in ((Path, "replace"), (Path, "unlink"), (Path, "write_bytes")):
    def wrapped(self, *arguments, real=getattr(where, what), **options):
        strike()
        done = real(self, *arguments, **options)
        strike()
        return done
    setattr(where, what, wrapped)
for number in range(6):
    store.put(bytes([number]) * {quarter})
print("through")
"""


@pytest.mark.timeout(300)
def test_a_kill_at_any_step_leaves_nothing_uncounted_and_the_limit_kept(tmp_path: Path) -> None:
    """Six blobs of a quarter of the limit: every write, rename and deletion is a place to die."""
    nth = 0
    while True:
        home = Home(tmp_path / f"home-{nth}")
        program = KILLED.format(home=str(home.path), nth=nth, quarter=QUARTER)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert taken(home) <= MIB
        store, quota = open_store(home, 1)
        assert quota.part()["bytes"] == taken(home)
        clear_folder(home)
        for number in range(10, 16):  # and it goes on
            store.put(blob(number))
            assert taken(home) <= MIB
        if done.stdout.endswith("through\n"):
            break
        assert done.returncode == -9, done.stderr
        nth += 3
    assert nth >= 18
