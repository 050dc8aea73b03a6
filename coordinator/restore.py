"""``coordinator restore``: a run folder from a backup, on this or another machine.

A backup is older than the world: workers, mirrors and readers of the record may know rounds that it
does not. So a restored run goes on with numbers of rounds that were never used
(:mod:`coordinator.lost_rounds`), and the record says that it was restored (docs/adr/0022).

Invariants:

* Everything is made beside the new folder and renamed at the end; nothing that exists is replaced.
* Every file is checked before anything is made of it, and only files that a run has are written.
* The keys must be the run's: what they sign is believed by workers because of the root key alone.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import fsspec
import structlog
from sqlalchemy.orm import Session

from coordinator.backup_format import Backup, FileEntry, Progress, open_backup
from coordinator.config import RunFile, RunFolder, split_address
from coordinator.context import RunContext
from coordinator.database import Database
from coordinator.init import join_link, partial_folder, plain_errors, publish_link
from coordinator.keys import KeyRing
from coordinator.lost_rounds import Continuation, go_on, rounds_to_skip
from coordinator.opening import running_round
from coordinator.recovered_log import Recovered, recover
from coordinator.run_toml import set_server
from coordinator.schema import ControlRow
from coordinator.serve import engine_options
from coordinator.snapshot import PGDUMP, SQLITE, restore_dump
from ledger import tree
from ledger.authority import load_delegations, store_delegations
from ledger.log import Log
from ledger.sources import Source
from protocol.dataset import DatasetManifest, read_manifest, verify_folder
from protocol.errors import BadDigest, UsageError
from protocol.link import JoinLink
from protocol.manifest import RunManifest

_log = structlog.get_logger()


@dataclass(frozen=True)
class RestoreResult:
    """What was made."""

    folder: RunFolder
    link: JoinLink
    made_at_s: float
    continuation: Continuation
    recovered: Recovered | None  # None: no copy of the record was given
    has_data: bool
    has_root_key: bool


def restore(
    source: Path,
    run_dir: Path,
    *,
    public_address: str | None = None,
    database: str | None = None,
    data: Path | None = None,
    skip_rounds: int | None = None,
    record: Source | None = None,
    progress: Progress = lambda done, total: None,
    now_s: float | None = None,
) -> RestoreResult:
    """Make a run folder that goes on where a backup ends.

    Args:
        source: an archive, a folder of backups (its newest), or one list in such a folder.
        run_dir: the folder to make.
        public_address: where volunteers reach it from now on; default: as before.
        database: URL of another, empty database than the backup's run.toml names.
        data: the dataset's folder, when its shards are not in the backup.
        skip_rounds: numbers to leave out, instead of an estimate.
        record: a copy of the public record that may be newer than the backup.
        progress: told how far the copying is.
        now_s: POSIX time, for tests.

    Raises:
        UsageError: what stands in the way; nothing was made.
        BadDigest: the backup or the copy of the record is damaged.
        TransientError: the database, the blob store or the copy of the record is away.
    """
    now_s = time.time() if now_s is None else now_s
    if run_dir.exists():
        raise UsageError(
            f"{run_dir} exists already: a run is never overwritten; choose another with --run-dir"
        )
    if public_address is not None:
        split_address(public_address)
    with (
        open_backup(source) as backup,
        partial_folder(run_dir) as folder,
        plain_errors(run_dir),
    ):
        backup.verify(progress)  # all of it, before anything outside of the folder is touched
        scratch = folder.path / ".restore"
        scratch.mkdir(mode=0o700)
        run = _place(backup, folder, scratch, public_address, database)
        _place_data(folder, data)
        dump = next(name for name in (SQLITE, PGDUMP) if (scratch / name).is_file())
        restore_dump(dump, scratch / dump, run.database_url)
        shutil.rmtree(scratch)
        continuation, recovered = _go_on(run, backup, skip_rounds, record, now_s)
        link = join_link(run.file, run.context.manifest)
    _log.info("run_restored", folder=str(run_dir), next_round=continuation.next_round)
    return RestoreResult(
        folder=RunFolder(run_dir),
        link=link,
        made_at_s=backup.list.made_at_s,
        continuation=continuation,
        recovered=recovered,
        has_data=backup.list.has_data or data is not None,
        has_root_key=backup.list.has_root_key,
    )


@dataclass(frozen=True)
class _Run:
    folder: RunFolder
    file: RunFile
    context: RunContext
    database_url: str
    link: JoinLink


def _place(
    backup: Backup,
    folder: RunFolder,
    scratch: Path,
    public_address: str | None,
    database: str | None,
) -> _Run:
    """Write the backup's files to where they belong."""
    entries = {entry.path: entry for entry in backup.list.files}
    _require(backup, entries)
    folder.keys.mkdir(mode=0o700)
    folder.keys.chmod(0o700)
    for path, entry in entries.items():
        if not path.startswith("store/"):
            in_scratch = path in (SQLITE, PGDUMP)
            _write(backup, entry, (scratch if in_scratch else folder.path) / path)
    text = folder.run_file.read_text(encoding="utf-8")
    for name, value in (("public_address", public_address), ("database", database)):
        if value is not None:
            text = set_server(text, name, value)
    folder.run_file.write_text(text, encoding="utf-8")
    file = RunFile.load(folder.run_file)
    context = _context(backup, folder, file)
    _place_store(backup, folder.blobs_url(file.server), scratch)
    link = join_link(file, context.manifest)
    return _Run(folder, file, context, folder.database_url(file.server), link)


def _require(backup: Backup, entries: dict[str, FileEntry]) -> None:
    dumps = [name for name in (SQLITE, PGDUMP) if name in entries]
    needed = ("run.toml", "manifest.json", "join-link.txt", "data/dataset.json")
    lacking = [name for name in needed if name not in entries]
    if lacking or len(dumps) != 1:
        raise UsageError(
            f"{backup.where} is not a whole backup of a run: it lacks "
            f"{', '.join(lacking) or 'a database, or has two'}"
        )


def _write(backup: Backup, entry: FileEntry, path: Path) -> None:
    """Into the new folder, which nobody else writes to."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("xb") as file:
        path.chmod(0o600)
        backup.copy(entry, file)


def _context(backup: Backup, folder: RunFolder, file: RunFile) -> RunContext:
    """The run of the new folder, its parts checked against each other."""
    manifest: RunManifest = folder.read_manifest()
    if manifest.run_id.hex() != backup.list.run_id or manifest.root != backup.list.root:
        raise UsageError(f"{backup.where}: its manifest is of another run than its list says")
    dataset: DatasetManifest = read_manifest(folder.data)
    if dataset.digest.hex() != manifest.dataset_sha256:
        raise UsageError(f"{backup.where}: its dataset.json is of another dataset than the run's")
    ring = KeyRing.load(
        folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=0, checked=False
    )
    ring.trust()  # every delegation is the root's
    return RunContext(
        manifest, dataset, ring, Log(manifest.origin, ring.log), engine_options(file.server)
    )


def _place_store(backup: Backup, url: str, scratch: Path) -> None:
    """States, means and replays into the blob store; what it holds already is the same."""
    fs, root = fsspec.url_to_fs(url)
    for entry in backup.list.files:
        if not entry.path.startswith("store/"):
            continue
        target = f"{root.rstrip('/')}/{entry.path.removeprefix('store/')}"
        if fs.exists(target) and fs.size(target) == entry.bytes:
            continue
        file = scratch / "blob"
        _write(backup, entry, file)
        fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        fs.put_file(str(file), target)
        file.unlink()


def _place_data(folder: RunFolder, data: Path | None) -> None:
    """Point to the dataset's folder, if one was given."""
    if data is None:
        return
    dataset = read_manifest(data)
    if dataset.digest != read_manifest(folder.data).digest:
        raise UsageError(f"{data} holds another dataset than the run's")
    verify_folder(data, dataset)
    shutil.rmtree(folder.data)
    folder.data.symlink_to(data.resolve(), target_is_directory=True)


def _go_on(
    run: _Run, backup: Backup, skip_rounds: int | None, record: Source | None, now_s: float
) -> tuple[Continuation, Recovered | None]:
    context, recovered = run.context, None
    database = Database(run.database_url)
    try:
        database.upgrade()
        with database.session() as session:
            _check_database(session, context)
            store_delegations(session, context.keys.delegations, context.keys.revocations)
            log_size = tree.tree_size(session)
            number = running_round(session).number
            if record is not None:
                recovered = recover(context, session, record)
                _tell_keys(run, session)
            skip = skip_rounds
            if skip is None:
                left, since_s = context.keys.draws.rounds - number, now_s - backup.list.made_at_s
                skip = rounds_to_skip(session, since_s=since_s, left=left)
            if recovered is not None:
                skip = max(skip, recovered.last_round + 1 - number)
            continuation = go_on(context, session, skip=skip, log_size=log_size, now_s=now_s)
            publish_link(session, run.folder, run.link, now_s)
        with database.session() as session:
            context.log.sign_head(session)
    finally:
        database.close()
    return continuation, recovered


def _tell_keys(run: _Run, session: Session) -> None:
    """A key that was revoked since the backup must not be renewed: somebody else may have it."""
    known = load_delegations(session)
    assert known is not None, "those of the run's own keys were just stored"
    run.context.keys.told(run.folder.keys, known.delegations, known.revocations)


def _check_database(session: Session, context: RunContext) -> None:
    control = session.get(ControlRow, 1)
    if control is None or control.run_id != context.run_id:
        raise BadDigest("the backed up database is not of the run that the backup is of")
