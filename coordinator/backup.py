"""``coordinator backup``: a run as it is at one moment, while it goes on.

Invariants:

* The database comes first, in one transaction; then every file that this picture of it names and
  that the coordinator itself would keep. One that was pruned in between calls for a new picture.
* A backup appears whole or not at all (:mod:`coordinator.backup_format`), readable by its owner
  only: it holds the run's keys. The root key is left out unless it is asked for.
* A backup into a folder copies only what that folder does not hold already.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import structlog
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from coordinator.audit import base_weights
from coordinator.audit.schema import AuditJobRow
from coordinator.audit.store import FileStore
from coordinator.backup_format import BackupList, FileEntry, Progress
from coordinator.backup_target import Target, open_target
from coordinator.checkpoints import MOMENTUM, WEIGHTS, SavedState
from coordinator.config import RunFolder
from coordinator.context import RunContext
from coordinator.crowd.pools import POOL_KEYS
from coordinator.key_files import CROWD_KEYS
from coordinator.keys import ANCHOR_KEY, PRIVATE_FILES, ROOT_KEY, KeyRing
from coordinator.opening import newest_state, running_round
from coordinator.serve import engine_options
from coordinator.settle import saved_state
from coordinator.snapshot import Snapshot, take_snapshot
from ledger import tree
from ledger.log import Log
from protocol.dataset import DatasetManifest, read_manifest
from protocol.errors import UsageError

STORE = "store"
_ELSEWHERE = (ROOT_KEY, ANCHOR_KEY, *CROWD_KEYS.values())
"""Files of keys that need not be in the folder."""

_ATTEMPTS = 5

_log = structlog.get_logger()


@dataclass(frozen=True)
class BackupResult:
    """What was made."""

    path: Path
    list: BackupList
    copied_bytes: int


@dataclass(frozen=True)
class _Picture:
    """What the list says of the run, and the blobs that go with it."""

    round: int
    settled_rounds: int
    log_size: int
    needed: tuple[str, ...]  # names in the blob store
    newest: tuple[str, ...]  # of them, those without which the run cannot go on


@dataclass
class _Run:
    """The run that is backed up."""

    folder: RunFolder
    context: RunContext
    database_url: str
    blobs_url: str
    entries: dict[str, FileEntry] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, folder: RunFolder, now_s: float) -> _Run:
        settings, manifest = folder.settings(), folder.read_manifest()
        dataset: DatasetManifest = read_manifest(folder.data)
        ring = KeyRing.load(
            folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s, checked=False
        )
        log = Log(manifest.origin, ring.log)
        context = RunContext(manifest, dataset, ring, log, engine_options(settings))
        return cls(folder, context, folder.database_url(settings), folder.blobs_url(settings))


def make_backup(
    run_dir: Path,
    out: Path,
    *,
    with_root_key: bool = False,
    with_data: bool = False,
    keep: int | None = None,
    progress: Progress = lambda done, total: None,
) -> BackupResult:
    """Back a run up, whether its coordinator runs or not.

    Args:
        run_dir: the run's folder.
        out: a ``.tar`` file to make, or a folder that takes any number of backups of one run.
        with_root_key: include the root key, if it lies in the folder.
        with_data: include the shards of the dataset.
        keep: of a folder: delete all but so many of the newest backups.
        progress: told how far the copying is.

    Raises:
        UsageError: what stands in the way; no half backup is left.
        TransientError: the database or the blob store is away.
    """
    now_s = time.time()
    run = _Run.open(RunFolder(run_dir), now_s)
    with _plain_errors(out), open_target(out, run.context.run_id.hex()) as target:
        with tempfile.TemporaryDirectory(dir=target.scratch, prefix=".part-") as scratch:
            picture = _copy_picture(run, target, Path(scratch), now_s, progress)
        _copy_folder(run, target, with_root_key=with_root_key, with_data=with_data)
        manifest = run.context.manifest
        files = BackupList(
            made_at_s=now_s,
            run_id=manifest.run_id.hex(),
            name=manifest.name,
            root=manifest.root,
            round=picture.round,
            settled_rounds=picture.settled_rounds,
            log_size=picture.log_size,
            lost=tuple(sorted(run.lost)),
            files=tuple(run.entries[path] for path in sorted(run.entries)),
        )
        path = target.finish(files, keep)
    return BackupResult(path, files, target.copied_bytes)


def _copy_picture(
    run: _Run, target: Target, scratch: Path, now_s: float, progress: Progress
) -> _Picture:
    """Database and blobs that belong together."""
    gone: set[str] = set()
    for _ in range(_ATTEMPTS):
        with take_snapshot(run.database_url, scratch) as snapshot:
            picture = _look(run, snapshot, now_s)
            missing = _copy_blobs(run, target, picture, progress)
            # What a second picture names too was not pruned in between: it is lost.
            if missing <= gone:
                with snapshot.file.open("rb") as file:
                    size = snapshot.file.stat().st_size
                    run.entries[snapshot.name] = target.add(snapshot.name, file, size)
                break
            gone = missing
    else:
        raise UsageError(
            "the run's states changed faster than they could be copied: give a faster disk, or "
            "try again while the run is paused ('barnraise coordinator pause')"
        )
    run.lost = missing
    lacking = missing & set(picture.newest)
    if lacking:
        raise UsageError(
            f"the run's newest state is not in its blob store ({min(lacking)}): there is nothing "
            "that could go on from such a backup"
        )
    return picture


def _look(run: _Run, snapshot: Snapshot, now_s: float) -> _Picture:
    session = snapshot.session
    try:
        newest = _state_names(saved_state(newest_state(session)))
        return _Picture(
            round=running_round(session).number,
            settled_rounds=newest_state(session).settled_rounds,
            log_size=tree.tree_size(session),
            needed=tuple(dict.fromkeys([*newest, *_named_blobs(run, session, now_s)])),
            newest=newest,
        )
    except (OperationalError, ProgrammingError) as error:
        raise UsageError(
            f"the database is of another version of barnraise ({error.orig}): back it up with "
            "that version, or serve the run once with this one"
        ) from error


def _named_blobs(run: _Run, session: Session, now_s: float) -> Iterator[str]:
    """Names of the files that the coordinator would not prune."""
    kept = base_weights.kept(session, run.context, now_s)
    for state in kept.states:
        yield from _state_names(state)
    for weights in kept.weights:
        yield f"{WEIGHTS}-{weights.hex()}.safetensors"
    for mean in kept.means:
        yield f"means/{mean.hex()}.mean"
    jobs = set(session.scalars(select(AuditJobRow.blob).where(AuditJobRow.blob != "")))
    for name in FileStore(run.blobs_url, "replays").names():
        if name.split("-")[0] in jobs:
            yield f"replays/{name}"


def _state_names(state: SavedState) -> tuple[str, str]:
    return (
        f"{WEIGHTS}-{state.weights_sha256.hex()}.safetensors",
        f"{MOMENTUM}-{state.momentum_sha256.hex()}.safetensors",
    )


def _copy_blobs(run: _Run, target: Target, picture: _Picture, progress: Progress) -> set[str]:
    """Copy what the picture needs; returns the names that are not there."""
    fs, root = fsspec.url_to_fs(run.blobs_url)
    fs.invalidate_cache()
    missing: set[str] = set()
    for number, name in enumerate(picture.needed):
        path = f"{STORE}/{name}"
        try:
            size = int(fs.size(f"{root.rstrip('/')}/{name}"))
            # What a name holds never changes: both kinds of name are digests.
            held = target.held(path, size)
            if held is None:
                with fs.open(f"{root.rstrip('/')}/{name}", "rb") as file:
                    held = target.add(path, file, size)
        except FileNotFoundError:
            missing.add(name)
        else:
            run.entries[path] = held
        progress(number + 1, len(picture.needed))
    return missing


def _copy_folder(run: _Run, target: Target, *, with_root_key: bool, with_data: bool) -> None:
    folder = run.folder
    names = ["run.toml", "manifest.json", "join-link.txt"]
    names += [f"keys/{name}" for name in PRIVATE_FILES if name != ROOT_KEY or with_root_key]
    names += [f"keys/{path.name}" for path in sorted(folder.keys.glob(POOL_KEYS))]
    names += ["data/dataset.json", "data/tokenizer.json"]
    dataset = run.context.dataset
    shards = (*dataset.shards, dataset.validation) if with_data else ()
    for name in (*names, *(f"data/shards/{shard.sha256}.bin" for shard in shards)):
        path = folder.path / name
        if not path.is_file() and name.removeprefix("keys/") in _ELSEWHERE:
            continue
        if not path.is_file():
            raise UsageError(f"{path} is missing: put it back before the run is backed up")
        size = path.stat().st_size
        held = target.held(name, size) if name.startswith("data/shards/") else None
        if held is None:
            with path.open("rb") as file:
                held = target.add(name, file, size)
        run.entries[name] = held


@contextmanager
def _plain_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free space there" if error.errno == errno.ENOSPC else "check the path"
        raise UsageError(
            f"cannot write the backup to {out}: {error.strerror or error} "
            f"({error.filename or 'disk'}); {advice} and try again: no half backup is left"
        ) from error
