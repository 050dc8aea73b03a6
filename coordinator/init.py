"""``coordinator init``: a run folder from a ``run.toml`` and a dataset. All or nothing.

Invariants:

* Everything is made in a folder beside the final one and renamed at the end: a failure (full
  disk, bad model) leaves nothing behind, and an existing run is never touched.
* The run's first leaf, the initial state and the delegations are in the database, under a signed
  head, before anybody can see the folder.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from coordinator.bootstrap import load_or_create
from coordinator.checkpoints import CheckpointStore, Vector
from coordinator.config import RunFile, RunFolder, split_address
from coordinator.context import RunContext
from coordinator.database import Database
from coordinator.keys import KeyRing
from coordinator.plan import build_manifest
from coordinator.schema import ControlRow
from ledger.authority import store_delegations
from ledger.log import Log
from ledger.schema import RunPage
from protocol.dataset import DatasetManifest, read_manifest, verify_folder
from protocol.errors import BadDigest, BadRecord, TransientError, UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.manifest import InitWeights, RunManifest
from protocol.model import initial_weights, parameter_spec
from protocol.state import describe, read_vector, write_vector

_DAY_S = 24 * 3600
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104

_log = structlog.get_logger()


@dataclass(frozen=True)
class InitResult:
    """What was made."""

    folder: RunFolder
    link: JoinLink
    manifest: RunManifest
    parameters: int
    local_only: bool  # the link names this machine's loopback address


def init_run(
    file: RunFile,
    text: str,
    data: Path,
    run_dir: Path,
    *,
    base: Path,
    copy_data: bool = False,
    now_s: int | None = None,
) -> InitResult:
    """Make a run folder.

    Args:
        file: the parsed ``run.toml``.
        text: its text; the folder keeps it as it is, comments included.
        data: a dataset folder made by ``barnraise data build``.
        run_dir: the folder to make.
        base: folder that paths in ``file`` are relative to.
        copy_data: copy the dataset instead of pointing to it.
        now_s: POSIX time, for tests.

    Raises:
        UsageError: what is wrong with the input, or the folder exists.
        BadDigest: a file of the dataset is missing or damaged.
    """
    now_s = int(time.time()) if now_s is None else now_s
    if run_dir.exists():
        raise UsageError(
            f"{run_dir} exists already: a run is never overwritten; choose another with --run-dir"
        )
    dataset = read_manifest(data)
    verify_folder(data, dataset)
    root = Identity.generate()
    with partial_folder(run_dir) as folder, plain_errors(run_dir):
        weights, manifest = _weights_and_manifest(file, dataset, root, base)
        ring = KeyRing.create(
            folder.keys,
            root,
            run_id=manifest.run_id,
            now_s=now_s,
            valid_s=file.server.delegations_valid_days * _DAY_S,
        )
        link = join_link(file, manifest)
        folder.manifest.write_bytes(manifest.canonical())
        folder.run_file.write_text(text, encoding="utf-8")
        _place_data(data, folder.data, copy_data)
        _fill_database(folder, file, manifest, dataset, ring, link, weights, now_s)
    _log.info("run_created", run_id=manifest.run_id.hex(), folder=str(run_dir))
    return InitResult(
        RunFolder(run_dir), link, manifest, len(weights), link.host in ("127.0.0.1", "::1")
    )


def join_link(file: RunFile, manifest: RunManifest, listen: str | None = None) -> JoinLink:
    """The link that volunteers get; a wildcard address without a public one becomes loopback."""
    address = file.server.public_address or listen or file.server.listen
    host, port = split_address(address)
    if host in _WILDCARDS:
        host = "127.0.0.1"
    return JoinLink(host, port, manifest.run_id, manifest.root)


def publish_link(
    session: Session, folder: RunFolder, link: JoinLink, now_s: float, *, notes: str | None = None
) -> bool:
    """Show this link to volunteers: in the folder's file and on the campaign page.

    Args:
        session: of the run's database.
        folder: the run's.
        link: with the address at which the run is reached from now on.
        now_s: POSIX time.
        notes: the organiser's public words; None leaves those that are there.

    Returns:
        Whether it is another link than before.
    """
    page = session.get(RunPage, link.run_id.hex())
    if page is None:
        page = RunPage(run_id=link.run_id.hex(), notes=notes or "")
        session.add(page)
    changed = page.join_link != str(link)
    if changed:
        page.join_link, page.updated_at_s = str(link), int(now_s)
        session.flush()
        folder.join_link.write_text(f"{link}\n")
    return changed


def _weights_and_manifest(
    file: RunFile, dataset: DatasetManifest, root: Identity, base: Path
) -> tuple[Vector, RunManifest]:
    # The specification of the model is the expensive check, and independent of the start.
    manifest = build_manifest(file, dataset, root.peer_id, base=base)
    spec = parameter_spec(manifest.model_config_json)
    if file.init.weights is None:
        return initial_weights(manifest), manifest
    path = base / file.init.weights
    try:
        weights = read_vector(path, spec)
    except BadRecord as error:
        raise UsageError(f"[init] weights do not fit the model: {error}") from error
    except OSError as error:
        raise UsageError(f"[init] weights: cannot read {path}: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="barnraise-init-") as scratch:
        written = write_vector(Path(scratch) / "weights.safetensors", weights, spec)
    # The digest of our own canonical file, whose bytes depend on the values alone.
    started = manifest.model_copy(update={"init": InitWeights(weights_sha256=written.sha256.hex())})
    return weights, started


def _fill_database(
    folder: RunFolder,
    file: RunFile,
    manifest: RunManifest,
    dataset: DatasetManifest,
    ring: KeyRing,
    link: JoinLink,
    weights: Vector,
    now_s: int,
) -> None:
    store = CheckpointStore(folder.blobs_url(file.server), manifest)
    if isinstance(manifest.init, InitWeights):
        _save_start(store, manifest, weights)
    log = Log(manifest.origin, ring.log)
    database = Database(folder.database_url(file.server))
    try:
        database.upgrade()
        with database.session() as session:
            _refuse_used(session)
            publish_link(session, folder, link, now_s, notes=manifest.description)
            store_delegations(session, ring.delegations, ring.revocations)
        # State, run leaf and first round, exactly as the engine would make them.
        asyncio.run(
            load_or_create(RunContext(manifest, dataset, ring, log), database, store, float(now_s))
        )
        with database.session() as session:
            log.sign_head(session)
    finally:
        database.close()


def _save_start(store: CheckpointStore, manifest: RunManifest, weights: Vector) -> None:
    """Put the given weights where the first state is looked for."""
    momentum = np.zeros_like(weights)
    chunk_elements = manifest.update.chunk_elements
    descriptor = describe(
        weights, momentum, round_=0, merged_tokens=0, chunk_elements=chunk_elements
    )
    store.save(weights, momentum, descriptor)


def _refuse_used(session: Session) -> None:
    if session.get(ControlRow, 1) is not None:
        raise UsageError("the database in [server] database holds another run: give an empty one")


def _place_data(data: Path, target: Path, copy: bool) -> None:
    if copy:
        shutil.copytree(data, target)
    else:
        target.symlink_to(data.resolve(), target_is_directory=True)


@contextmanager
def partial_folder(run_dir: Path) -> Iterator[RunFolder]:
    """A folder beside ``run_dir`` that becomes it if all goes well, and nothing otherwise."""
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{run_dir.name}.", dir=run_dir.parent))
    except OSError as error:
        raise UsageError(f"cannot make {run_dir}: {error.strerror}") from error
    try:
        yield RunFolder(partial)
        partial.rename(run_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def plain_errors(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except BadDigest as error:
        raise UsageError(f"the data are damaged: {error}") from error
    except TransientError as error:
        raise UsageError(f"cannot make {run_dir}: {error}") from error
    except DBAPIError as error:
        raise UsageError(f"cannot use the database: {error.orig}; nothing was kept") from error
    except OSError as error:
        advice = "free space on that disk" if error.errno == errno.ENOSPC else "check the path"
        raise UsageError(
            f"cannot make {run_dir}: {error.strerror}; {advice} and try again: nothing was kept"
        ) from error
