from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from coordinator import backup as backup_module
from coordinator.audit.schema import BlockRow
from coordinator.backup import make_backup
from coordinator.backup_format import list_backups, open_backup
from coordinator.config import RunFolder
from coordinator.keys import KeyRing
from coordinator.lost_rounds import MARGIN_ROUNDS
from coordinator.restore import restore
from coordinator.schema import RoundRow, WorkerRow
from coordinator.snapshot import Snapshot, take_snapshot
from ledger.export import export_tiles
from ledger.records import RestoreLeaf, parse_leaf
from ledger.sources import DatabaseSource, directory_source
from ledger.verify import verify
from protocol.errors import BadDigest, BadRecord, TooLate, UsageError
from protocol.identity import Identity
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire

TRAIN_SEQUENCES = 1024


@pytest.fixture(scope="module")
def new_run(run_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as ``init`` makes it."""
    folder = tmp_path_factory.mktemp("new")
    run_rig.make_dataset(folder / "data", train=TRAIN_SEQUENCES)
    run_rig.make_run(folder / "data", folder / "run")
    return folder


@pytest.fixture
def place(new_run: Path, tmp_path: Path) -> Path:
    """A folder with ``data`` and a fresh ``run``."""
    shutil.copytree(new_run, tmp_path / "place", symlinks=True)
    place = tmp_path / "place"
    (place / "run" / "data").unlink()
    (place / "run" / "data").symlink_to(place / "data")
    return place


@pytest.fixture
async def play(engine_rig: ModuleType) -> AsyncIterator[Callable[[Path], Any]]:
    """``await play(folder)``: an engine on a run folder, and two members."""
    rigs = []

    async def begin(folder: Path) -> Any:
        manifest = RunFolder(folder).read_manifest()
        engine_rig._KEYS[manifest.run_id] = KeyRing.load(
            folder / "keys", run_id=manifest.run_id, root_id=manifest.root, now_s=time.time()
        )
        rig = engine_rig.Rig(folder, manifest, sequences=TRAIN_SEQUENCES, now_s=time.time())
        await rig.boot()
        rigs.append(rig)
        with rig.database.session() as session:
            known = session.get(WorkerRow, Identity.from_seed((1).to_bytes(32, "big")).peer_id)
        if known is None:
            rig.pair = [rig.enrol(1, public=True), rig.enrol(2)]
        else:
            seeds = [seed.to_bytes(32, "big") for seed in (1, 2)]
            rig.pair = [engine_rig.Member(rig, Identity.from_seed(seed)) for seed in seeds]
            rig.members = {member.name: member for member in rig.pair}
        return rig

    yield begin
    for rig in rigs:
        rig.database.close()


async def back_up(place: Path, **options: Any) -> Any:
    options = {"out": place / "backups", **options}
    return await asyncio.to_thread(make_backup, place / "run", options.pop("out"), **options)


async def bring_back(place: Path, **options: Any) -> Any:
    options = {"source": place / "backups", "data": place / "data", **options}
    source = options.pop("source")
    return await asyncio.to_thread(restore, source, place / "again", **options)


async def test_a_run_goes_on_from_a_backup_that_was_made_in_mid_round(
    place: Path, play: Callable[[Path], Any]
) -> None:
    rig = await play(place / "run")
    await rig.play_round(*rig.pair)
    for member in rig.pair:
        await member.lease()
    await back_up(place)
    # What happens after it is lost.
    for member in rig.pair:
        member.train()
        await member.commit()
    await rig.gather()
    await rig.submit(rig.results())
    assert await rig.engine.settle()
    await rig.engine.evaluate()
    lost_head = rig.head()
    assert (lost_head.round, lost_head.settled_rounds) == (2, 2)
    await rig.pair[0].lease()
    rig.pair[0].train()
    late = [rig.pair[0].contribution(), rig.pair[1].contribution()]

    made = await bring_back(place)
    again = await play(place / "again")
    head = again.head()
    assert head.round == made.continuation.next_round > lost_head.round
    assert head.settled_rounds == 1
    for member, contribution in zip(rig.pair, late, strict=True):
        with pytest.raises(TooLate, match="restored from a backup"):
            await again.engine.commit(member.sign(contribution))
    with pytest.raises(TooLate, match="restored from a backup"):
        report = wire.Report(
            run_id=again.run_id, round=1, attempt=1, worker=rig.pair[0].name, state_digest=bytes(32)
        )
        await again.engine.report(rig.pair[0].sign(report))
    # Had too few numbers been skipped, a device would know a later one.
    with capture_logs() as said:
        for round_ in (head.round, head.round + 1, head.round + 2):
            await again.pair[0].beat(round=round_)
    assert [line["its_round"] for line in said if line["event"] == "device_ahead"] == [
        head.round + 1
    ]
    await again.play_round(*again.pair)
    await again.play_round(*again.pair)
    board = again.board()
    assert list(board.rounds) == [0, head.round, head.round + 1]
    assert board.merged_tokens == again.head().merged_tokens
    ((_, leaf),) = board.restores
    assert (leaf.next_round, leaf.state_digest) == (head.round, head.state_digest.hex())


async def test_a_copy_of_the_record_brings_back_what_the_backup_lacks(
    place: Path, play: Callable[[Path], Any]
) -> None:
    rig = await play(place / "run")
    await rig.play_round(*rig.pair)
    await back_up(place)
    await rig.play_round(*rig.pair)
    blocked = Identity.generate().peer_id
    rig.block(blocked, "asked to stop, and did not")
    await rig.play_round(*rig.pair)
    lost_head = await rig.database.run(rig.log.sign_head)
    with rig.database.session() as session:
        size = export_tiles(session, place / "tiles")
    earned = rig.board().donors[rig.pair[0].name].tally

    made = await bring_back(place, record=directory_source(place / "tiles"))
    assert made.recovered is not None
    assert made.recovered.last_round == 2
    assert made.continuation.log_size == size
    assert made.recovered.leaves > 0
    again = await play(place / "again")
    assert again.head().round == made.continuation.next_round > 3
    await again.play_round(*again.pair)
    await again.play_round(*again.pair)
    await again.database.run(again.log.sign_head)
    board = again.board()
    # Credit of the lost rounds stands, final: nobody can audit it any more.
    tally = board.donors[rig.pair[0].name].tally
    assert tally.contributions == earned.contributions + 2
    credits = board.accounts.credits.values()
    final = {credit.leaf.round for credit in credits if credit.status == "final"}
    assert final == {1, 2}
    assert board.merged_tokens == again.head().merged_tokens < board.total.tokens
    assert board.awaited_draws == 3  # of the round before the backup, and of the two since
    with again.database.session() as session:
        assert session.get(BlockRow, blocked) is not None
        report = verify(DatabaseSource(session), root=rig.manifest.root, old_checkpoint=lost_head)
    assert report.old_size == size


async def test_a_copy_that_does_not_continue_the_backup_is_refused(
    place: Path, play: Callable[[Path], Any]
) -> None:
    rig = await play(place / "run")
    with rig.database.session() as session:
        export_tiles(session, place / "older")
    await rig.play_round(*rig.pair)
    await back_up(place)
    await rig.play_round(*rig.pair)
    with rig.database.session() as session:
        export_tiles(session, place / "tiles")
    made = await bring_back(place, record=directory_source(place / "older"))
    assert made.recovered is not None
    assert made.recovered.leaves == 0
    # What was restored without a copy is another history than the copy's.
    again = await play(place / "again")
    await again.play_round(*again.pair)
    await asyncio.to_thread(make_backup, place / "again", place / "other")
    shutil.rmtree(place / "again")
    with pytest.raises(UsageError, match="another history"):
        await bring_back(place, source=place / "other", record=directory_source(place / "tiles"))
    entries = next((place / "tiles" / "tile" / "entries").rglob("*.p/*"))
    entries.write_bytes(entries.read_bytes().replace(b'"settled"', b'"skipped"'))
    with pytest.raises((UsageError, BadRecord)):
        await bring_back(place, record=directory_source(place / "tiles"))
    assert not (place / "again").exists()


async def test_a_restored_run_is_not_served_by_numbers_that_may_have_been_used(
    place: Path, play: Callable[[Path], Any]
) -> None:
    rig = await play(place / "run")
    await rig.play_round(*rig.pair)
    with rig.database.session() as session:
        ended = update(RoundRow).where(RoundRow.ended_at_s.is_not(None))
        session.execute(ended.values(opened_at_s=RoundRow.ended_at_s - 10.0))
    await back_up(place)
    later_s = time.time() + 3600.0
    made = await bring_back(place, now_s=later_s)
    # The fastest round took ten seconds; they may have been twice as fast since.
    fewest = made.continuation.lost_round + 3600 // 5 + MARGIN_ROUNDS
    assert fewest < made.continuation.next_round < fewest + 60
    shutil.rmtree(place / "again")
    made = await bring_back(place, skip_rounds=5)
    assert made.continuation.next_round == 1 + 1 + 5
    shutil.rmtree(place / "again")
    with pytest.raises(UsageError, match="--skip-rounds"):
        await bring_back(place, now_s=later_s + 10 * 365 * 24 * 3600)
    with pytest.raises(UsageError, match="the run's draws end with round"):
        await bring_back(place, skip_rounds=1 << 18)
    assert not (place / "again").exists()


async def test_a_further_backup_copies_what_is_new_and_old_ones_go(
    place: Path, play: Callable[[Path], Any]
) -> None:
    rig = await play(place / "run")
    await rig.play_round(*rig.pair)
    first = await back_up(place)
    assert first.copied_bytes == first.list.total_bytes
    second = await back_up(place, keep=2)
    states = [e for e in second.list.files if e.path.startswith("store/")]
    assert states
    assert second.copied_bytes < first.copied_bytes - sum(entry.bytes for entry in states) + 1
    await rig.play_round(*rig.pair)
    third = await back_up(place, keep=2)
    assert list_backups(place / "backups") == [second.path.name, third.path.name]
    used = {entry.sha256 for made in (second, third) for entry in made.list.files}
    assert {path.name for path in (place / "backups" / "blobs").iterdir()} == used
    with open_backup(second.path) as found:
        found.verify()


async def test_a_state_that_is_pruned_meanwhile_calls_for_a_new_picture(
    place: Path, play: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await play(place / "run")
    await rig.play_round(*rig.pair)
    loop, pictures = asyncio.get_running_loop(), []

    async def rounds() -> None:
        for _ in range(rig.options.kept_checkpoints + 1):
            await rig.play_round(*rig.pair)

    @contextmanager
    def while_rounds_go_on(url: str, scratch: Path) -> Iterator[Snapshot]:
        with take_snapshot(url, scratch) as snapshot:
            pictures.append(snapshot.name)
            if len(pictures) == 1:
                asyncio.run_coroutine_threadsafe(rounds(), loop).result()
            yield snapshot

    monkeypatch.setattr(backup_module, "take_snapshot", while_rounds_go_on)
    made = await back_up(place)
    assert len(pictures) == 2
    assert made.list.lost == ()
    assert made.list.settled_rounds == rig.options.kept_checkpoints + 2
    await bring_back(place)
    await play(place / "again")  # it starts: the newest state is there


def test_only_the_owner_reads_a_backup_and_the_root_key_stays_out(place: Path) -> None:
    made = make_backup(place / "run", place / "backups")
    assert not made.list.has_root_key
    folders = [place / "backups", place / "backups" / "blobs", place / "backups" / "backups"]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    files = [path for path in (place / "backups").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    archive = place / "all.tar"
    assert make_backup(place / "run", archive, with_root_key=True).list.has_root_key
    assert archive.stat().st_mode & 0o777 == 0o600
    restore(archive, place / "again", data=place / "data")
    keys = place / "again" / "keys"
    assert keys.stat().st_mode & 0o777 == 0o700
    assert (keys / "root.key").read_bytes() == (place / "run" / "keys" / "root.key").read_bytes()


def test_an_archive_with_data_needs_nothing_else(place: Path) -> None:
    make_backup(place / "run", place / "all.tar", with_data=True)
    shutil.rmtree(place / "data")
    made = restore(place / "all.tar", place / "again", public_address="new.example.org:7444")
    assert made.has_data
    assert made.link.address == "new.example.org:7444"
    again = RunFolder(place / "again")
    assert again.settings().public_address == "new.example.org:7444"
    assert again.join_link.read_text().strip() == str(made.link)
    old = RunFolder(place / "run").run_file.read_text()
    assert again.run_file.read_text() == old.replace("127.0.0.1:7443", "new.example.org:7444")


def rewritten(source: Path, target: Path, change: Callable[[tarfile.TarInfo, bytes], Any]) -> Path:
    """A copy of an archive; ``change`` gives the (info, data) pairs to write for each member."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            for info, data in change(member, file.read()):
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return target


def listing(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(data)
    change(document)
    return json.dumps(document).encode()


def _flip(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name.startswith("store/weights"):
        data = bytes([data[0] ^ 1]) + data[1:]
    yield info, data


def _cut(info: tarfile.TarInfo, data: bytes) -> Any:
    yield info, data[:-1] if info.name == "database.sqlite" else data


def _link(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name == "run.toml":
        link = tarfile.TarInfo("keys/root.key")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        yield link, b""
    yield info, data


def _escape(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name == "run.toml":
        yield tarfile.TarInfo("../../escaped"), b"gotcha"
    if info.name == "backup.json":
        entry = {"path": "../../escaped", "sha256": "0" * 64, "bytes": 6}
        data = listing(data, lambda document: document["files"].append(entry))
    yield info, data


def _stranger(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name == "run.toml":
        yield tarfile.TarInfo("keys/other.key"), b"x"
    yield info, data


def _twice(info: tarfile.TarInfo, data: bytes) -> Any:
    yield info, data
    if info.name == "run.toml":
        yield info, b"# another\n"


def _no_list(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name != "backup.json":
        yield info, data


def _other_run(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name == "backup.json":
        data = listing(data, lambda document: document.update(run_id="0" * 64))
    yield info, data


def _later(info: tarfile.TarInfo, data: bytes) -> Any:
    if info.name == "backup.json":
        data = listing(data, lambda document: document.update(format="barnraise-backup/2"))
    yield info, data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_flip, "is not what was backed up"),
        (_cut, "another size"),
        (_link, "is a link"),
        (_escape, "not the path of a file that a backup holds"),
        (_stranger, "which its list does not name"),
        (_twice, "there twice"),
        (_no_list, "no backup"),
        (_other_run, "another run"),
        (_later, "another version"),
    ],
)
def test_what_is_no_whole_backup_of_a_run_leaves_nothing(
    place: Path, change: Callable[[tarfile.TarInfo, bytes], Any], says: str
) -> None:
    make_backup(place / "run", place / "good.tar")
    bad = rewritten(place / "good.tar", place / "bad.tar", change)
    before = sorted(path for path in place.parent.rglob("*"))
    with pytest.raises((UsageError, BadDigest), match=says):
        restore(bad, place / "again", data=place / "data")
    assert sorted(path for path in place.parent.rglob("*")) == before


def test_an_archive_that_ends_early_is_refused(place: Path) -> None:
    make_backup(place / "run", place / "good.tar")
    data = (place / "good.tar").read_bytes()
    for size in (0, 100, 5000, len(data) // 2):
        (place / "bad.tar").write_bytes(data[:size])
        with pytest.raises((UsageError, BadDigest)):
            restore(place / "bad.tar", place / "again")
        assert not (place / "again").exists()


def test_a_folder_whose_file_is_a_link_is_refused(place: Path) -> None:
    made = make_backup(place / "run", place / "backups")
    entry = next(entry for entry in made.list.files if entry.path == "run.toml")
    blob = place / "backups" / "blobs" / entry.sha256
    blob.rename(place / "elsewhere")
    blob.symlink_to(place / "elsewhere")
    with pytest.raises(UsageError, match="cannot be read"):
        restore(place / "backups", place / "again")
    assert not (place / "again").exists()


def test_nothing_is_overwritten(place: Path) -> None:
    make_backup(place / "run", place / "all.tar")
    with pytest.raises(UsageError, match="never overwritten"):
        make_backup(place / "run", place / "all.tar")
    with pytest.raises(UsageError, match="never overwritten"):
        restore(place / "all.tar", place / "run")
    with pytest.raises(UsageError, match="no folder of backups"):
        make_backup(place / "run", place / "data")


def test_a_folder_takes_the_backups_of_one_run(place: Path, run_rig: ModuleType) -> None:
    make_backup(place / "run", place / "backups")
    run_rig.make_run(place / "data", place / "other")
    with pytest.raises(UsageError, match="another run"):
        make_backup(place / "other", place / "backups")


def test_the_record_says_that_the_run_was_restored(place: Path) -> None:
    made = make_backup(place / "run", place / "backups")
    restored = restore(place / "backups", place / "again", data=place / "data")
    from coordinator.database import Database
    from ledger.log import latest_head, read_leaves

    database = Database(f"sqlite:///{place}/again/coordinator.db")
    try:
        with database.session() as session:
            head = latest_head(session)
            assert head is not None
            leaves = [parse_leaf(data) for data in read_leaves(session, 0, head.tree_size)]
    finally:
        database.close()
    assert isinstance(leaves[-1], RestoreLeaf)
    assert leaves[-1].log_size == made.list.log_size == len(leaves) - 1
    assert leaves[-1].next_round == restored.continuation.next_round


def test_a_database_that_cannot_be_dumped_says_what_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = place / "run" / "run.toml"
    address = 'database = "postgresql+psycopg://nobody@127.0.0.1:1/none"'
    toml.write_text(toml.read_text() + address + "\n")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="pg_dump is needed"):
        make_backup(place / "run", place / "backups")
    assert list_backups(place / "backups") == []


def test_rotated_keys_are_in_the_backup(place: Path) -> None:
    keys = place / "run" / "keys"
    manifest = RunFolder(place / "run").read_manifest()
    now_s = int(time.time())
    ring = KeyRing.load(keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s)
    purposes = [wire.KEY_PURPOSE_ROUND, wire.KEY_PURPOSE_LOG]
    ring.rotated(keys, purposes, now_s=now_s, valid_s=1000, since_s=now_s)
    make_backup(place / "run", place / "backups")
    restore(place / "backups", place / "again", data=place / "data")
    again = KeyRing.load(
        place / "again" / "keys", run_id=manifest.run_id, root_id=manifest.root, now_s=now_s
    )
    assert again.round.peer_id != ring.round.peer_id
    store = TrustStore(manifest.run_id, manifest.root)
    store.add(again.delegations)
    store.require_signer(wire.KEY_PURPOSE_ROUND, ring.round.peer_id, now_s)  # what it signed holds
