"""Content-addressed cache of shards, weights and momentum.

Invariants:

* A file's name is its SHA-256. It gets that name only after its bytes were hashed (or by
  the process that hashed them while writing), by an atomic rename.
* A file is hashed again at its first use in a process: a disk may rot, a volunteer may edit. One
  that fails is dropped, and the caller fetches it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import structlog

from protocol.digest import file_sha256
from protocol.errors import BadDigest, TransientError

log = structlog.get_logger()


class BlobStore:
    """A folder of blobs; methods block, call them from a thread."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch
        self._verified: dict[bytes, tuple[int, int]] = {}  # sha256 -> (bytes, mtime_ns)
        self._lock = threading.Lock()

    def path(self, sha256: bytes) -> Path:
        """Where a blob lies or would lie; says nothing about whether it does."""
        return self.folder / f"{sha256.hex()}.bin"

    def partial(self, sha256: bytes) -> Path:
        """Where a download of it is collected, to be resumed."""
        return self.scratch / f"{sha256.hex()}.part"

    def find(self, sha256: bytes) -> Path | None:
        """The blob's file, verified; None when it is not here (any more)."""
        path = self.path(sha256)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        stamp = (status.st_size, status.st_mtime_ns)
        with self._lock:
            if self._verified.get(sha256) == stamp:
                return path
        if file_sha256(path) != sha256.hex():
            log.warning("cached file damaged, dropped", sha256=sha256.hex())
            path.unlink(missing_ok=True)
            return None
        with self._lock:
            self._verified[sha256] = stamp
        return path

    def known(self, sha256: bytes) -> Path | None:
        """As :meth:`find`, but never hashes: only what was verified in this process already."""
        with self._lock:
            known = sha256 in self._verified
        path = self.path(sha256)
        return path if known and path.exists() else None

    def adopt(self, source: Path, sha256: bytes | None = None) -> bytes:
        """Move a finished file in under its digest.

        Args:
            source: on the same file system (the scratch folder).
            sha256: what it must hash to, where that is promised.

        Returns:
            The SHA-256.

        Raises:
            BadDigest: it hashes to something else; the file is gone.
            TransientError: the disk failed.
        """
        try:
            actual = bytes.fromhex(file_sha256(source))
            if sha256 is not None and actual != sha256:
                source.unlink()
                raise BadDigest(f"a file that should be {sha256.hex()[:16]} is another")
            target = self.path(actual)
            source.replace(target)
            status = target.stat()
        except OSError as error:
            raise TransientError(f"cannot keep {source.name}: {error.strerror}") from error
        with self._lock:
            self._verified[actual] = (status.st_size, status.st_mtime_ns)
        return actual

    def drop(self, sha256s: Iterable[bytes]) -> None:
        """Delete blobs that nobody needs any more."""
        for sha256 in sha256s:
            with self._lock:
                self._verified.pop(sha256, None)
            self.path(sha256).unlink(missing_ok=True)
