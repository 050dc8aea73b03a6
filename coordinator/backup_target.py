"""Where a backup is written: into a folder that shares files between backups, or one archive.

Invariants:

* Everything is written under a temporary name beside its place, flushed, and renamed; the list of a
  backup comes last. What a killed process left is removed by the next one.
* One process writes to a target at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import structlog

from coordinator.backup_format import (
    BACKUPS,
    BLOBS,
    COPY_BYTES,
    LIST_NAME,
    BackupList,
    FileEntry,
    list_backups,
    read_list,
)
from protocol.errors import UsageError

_TEMPORARY = ".part-"

_log = structlog.get_logger()


class Target(Protocol):
    """Takes files, then the list of them."""

    scratch: Path  # where temporary files may lie
    copied_bytes: int

    def held(self, path: str, size_bytes: int) -> FileEntry | None:
        """A file that is there already, by a path whose content never changes."""

    def add(self, path: str, file: BinaryIO, size_bytes: int) -> FileEntry: ...

    def finish(self, files: BackupList, keep: int | None) -> Path:
        """Make the backup visible; returns what to restore it by."""


@contextmanager
def open_target(out: Path, run_id: str) -> Iterator[Target]:
    """An archive for a path that ends in ``.tar``, else a folder.

    Raises:
        UsageError: something else is there, another run's backups, or another backup under way.
    """
    if out.suffix == ".tar" and not out.is_dir():
        with _archive(out) as archive:
            yield archive
    else:
        with _folder(out, run_id) as folder:
            yield folder


class _FolderTarget:
    def __init__(self, folder: Path) -> None:
        self.folder = self.scratch = folder
        self.copied_bytes = 0
        self._known: dict[str, FileEntry] = {}
        for name in list_backups(folder)[-1:]:
            files = read_list(folder / BACKUPS / name).files
            self._known = {entry.path: entry for entry in files}

    def held(self, path: str, size_bytes: int) -> FileEntry | None:
        entry = self._known.get(path)
        if entry is None or entry.bytes != size_bytes or not self._is_there(entry):
            return None
        return entry

    def add(self, path: str, file: BinaryIO, size_bytes: int) -> FileEntry:
        temporary = self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with _private(temporary) as target:
            digest, count = _copy(file, target)
        entry = FileEntry(path=path, sha256=digest, bytes=count)
        if self._is_there(entry):
            temporary.unlink()
        else:
            temporary.replace(self.folder / BLOBS / digest)
            self.copied_bytes += count
        self._known[path] = entry
        return entry

    def finish(self, files: BackupList, keep: int | None) -> Path:
        _flush(self.folder / BLOBS)
        temporary = self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with _private(temporary) as target:
            target.write(files.dump())
        path = self.folder / BACKUPS / _name_of(files.made_at_s)
        temporary.replace(path)
        _flush(self.folder / BACKUPS)
        self._forget(keep)
        return path

    def _is_there(self, entry: FileEntry) -> bool:
        path = self.folder / BLOBS / entry.sha256
        return path.is_file() and path.stat().st_size == entry.bytes

    def _forget(self, keep: int | None) -> None:
        """Delete old backups, and files that belong to none."""
        names = list_backups(self.folder)
        for name in names[:-keep] if keep else ():
            (self.folder / BACKUPS / name).unlink()
        try:
            lists = [read_list(self.folder / BACKUPS / n) for n in list_backups(self.folder)]
        except UsageError as error:
            _log.warning("old_files_stay", why=str(error))
            return
        used = {entry.sha256 for files in lists for entry in files.files}
        for blob in (self.folder / BLOBS).iterdir():
            if blob.name not in used:
                blob.unlink()


@contextmanager
def _folder(out: Path, run_id: str) -> Iterator[_FolderTarget]:
    if out.exists() and not (out.is_dir() and (_is_backup_folder(out) or not any(out.iterdir()))):
        raise UsageError(
            f"{out} is there already, and is no folder of backups: name an empty or new folder, or "
            "a file that ends in .tar"
        )
    for path in (out, out / BLOBS, out / BACKUPS):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    out.chmod(0o700)
    with _alone(out):
        for name in list_backups(out)[-1:]:
            if read_list(out / BACKUPS / name).run_id != run_id:
                raise UsageError(f"{out} holds backups of another run: give each a folder")
        for leftover in out.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield _FolderTarget(out)


def _is_backup_folder(out: Path) -> bool:
    return (out / BLOBS).is_dir() and (out / BACKUPS).is_dir()


class _ArchiveTarget:
    def __init__(self, out: Path, file: BinaryIO, scratch: Path) -> None:
        self.out, self.scratch = out, scratch
        self.copied_bytes = 0
        self._archive = tarfile.open(  # noqa: SIM115  closed by finish
            fileobj=file, mode="w", format=tarfile.USTAR_FORMAT
        )
        self._added: dict[str, FileEntry] = {}

    def held(self, path: str, size_bytes: int) -> FileEntry | None:
        return self._added.get(path)

    def add(self, path: str, file: BinaryIO, size_bytes: int) -> FileEntry:
        reader = _Hashing(file)
        self._archive.addfile(_info(path, size_bytes), reader)
        entry = FileEntry(path=path, sha256=reader.digest.hexdigest(), bytes=size_bytes)
        self._added[path] = entry
        self.copied_bytes += size_bytes
        return entry

    def finish(self, files: BackupList, keep: int | None) -> Path:
        if keep is not None:
            raise UsageError("--keep is for a folder of backups; an archive holds one")
        data = files.dump()
        self._archive.addfile(_info(LIST_NAME, len(data)), io.BytesIO(data))
        self._archive.close()
        return self.out


@contextmanager
def _archive(out: Path) -> Iterator[_ArchiveTarget]:
    if out.exists():
        raise UsageError(f"{out} exists already: a backup is never overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}{_TEMPORARY[:-1]}"
    scratch.mkdir(mode=0o700, exist_ok=True)
    with _alone(scratch):
        try:
            _empty(scratch)
            with _private(scratch / out.name) as file:
                yield _ArchiveTarget(out, file, scratch)
            (scratch / out.name).rename(out)
            _flush(out.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _empty(folder: Path) -> None:
    for leftover in folder.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


class _Hashing:
    """Hashes what is read through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _info(path: str, size_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size_bytes, 0o600, int(time.time())
    return info


def _copy(file: BinaryIO, target: BinaryIO) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    while chunk := file.read(COPY_BYTES):
        digest.update(chunk)
        target.write(chunk)
        count += len(chunk)
    return digest.hexdigest(), count


@contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    """A new file, for its owner only, durable at the end; none is left when it fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only one who writes there; the kernel lets go at the process's end."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another backup is being written to {folder}") from error
        yield
    finally:
        os.close(descriptor)


def _name_of(made_at_s: float) -> str:
    whole = time.strftime("%Y%m%dT%H%M%S", time.gmtime(made_at_s))
    return f"{whole}.{int(made_at_s * 1000) % 1000:03d}Z.json"


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
