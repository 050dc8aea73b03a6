"""Named files of the audits on any fsspec file system: replays, and means of settled rounds.

Invariants:

* A file appears under its name whole or not at all: it is written under a temporary name, flushed
  and renamed (remote stores put whole objects).
* What a name holds never changes: putting it again is harmless.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from protocol.errors import NotFound, TransientError

_TEMPORARY = ".part-"


class FileStore:
    """A folder of one run's blob store. Every method blocks: call it off the event loop."""

    def __init__(self, url: str, folder: str) -> None:
        """Open the folder, and make it if it is local.

        Args:
            url: the run's blob store, an fsspec URL or a local path.
            folder: name of the folder in it.

        Raises:
            TransientError: the store cannot be reached or written.
        """
        self._fs, root = fsspec.url_to_fs(url)
        self._root = f"{root.rstrip('/')}/{folder}"
        protocols = (
            (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        )
        self._local = Path(self._root) if "file" in protocols else None
        with self._explained("open"):
            self._fs.makedirs(self._root, exist_ok=True)

    def put(self, name: str, parts: Sequence[bytes]) -> None:
        """Store the parts, one after the other, as one file; on return it is durable.

        Raises:
            TransientError: the store refused (disk full, network): nothing is half-written.
        """
        with self._explained("write"):
            if self._local is None:
                self._fs.pipe_file(self._path(name), b"".join(parts))
                return
            temporary = self._local / f"{_TEMPORARY}{secrets.token_hex(8)}"
            try:
                with temporary.open("wb") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._local / name)
                _flush_folder(self._local)
            finally:
                temporary.unlink(missing_ok=True)

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None when there is none.

        Raises:
            TransientError: the store cannot be read.
        """
        with self._explained("read"):
            try:
                return int(self._fs.size(self._path(name)))
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file.

        Raises:
            NotFound: there is no such file (any more).
            TransientError: the store cannot be read.
        """
        with self._explained("read"):
            try:
                data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
                return data
            except FileNotFoundError as error:
                raise NotFound(f"{name} is kept no more") from error

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is fine.

        Raises:
            TransientError: the store refused.
        """
        with self._explained("write"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def sweep(self, older_than_s: float) -> None:
        """Remove what killed processes left half-written, once nobody can be writing it.

        Raises:
            TransientError: the store refused.
        """
        if self._local is None:
            return
        with self._explained("write"):
            for leftover in self._local.glob(f"{_TEMPORARY}*"):
                with suppress(FileNotFoundError):
                    if time.time() - leftover.stat().st_mtime > older_than_s:
                        leftover.unlink()

    def names(self) -> Iterator[str]:
        """Names of all files that are whole.

        Raises:
            TransientError: the store cannot be read.
        """
        with self._explained("read"):
            self._fs.invalidate_cache(self._root)
            try:
                paths = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:  # object stores have no empty folders
                return
        for path in paths:
            name = path.rsplit("/", 1)[-1]
            if not name.startswith(_TEMPORARY):
                yield name

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransientError(
                f"cannot {doing} the store {self._root}: {error.strerror or error}; free space or "
                "restore access: the same step is tried again"
            ) from error


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
