"""Content-addressed cache of shards, weights and momentum.

Invariants:

* A file's name is its SHA-256. It gets that name from whoever has just hashed it, by an atomic
  rename.
* A file is hashed again at its first use in a process, when its size or time changed, and whenever
  it goes to the trainer: a disk may rot, a volunteer may edit. One that fails is dropped, and the
  caller fetches it again.
* For want of room the least recently used go first (:mod:`worker.disk`). A use is a
  :meth:`BlobStore.find` of ours, never a peer's download. What is pinned stays; whoever needs a
  file to stay pins it before looking for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import structlog

from protocol.digest import file_sha256
from protocol.errors import TransientError
from worker.disk import DiskQuota, Expendable, Giver
from worker.last_uses import LastUses

log = structlog.get_logger()

Stamp = tuple[int, int]
"""Bytes, and nanoseconds of the last change: of a file when it was hashed."""


class BlobStore:
    """A folder of blobs; methods block, call them from a thread."""

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        quota: DiskQuota | None = None,
        uses: LastUses | None = None,
    ) -> None:
        self.folder = folder
        self.scratch = scratch
        self._quota = quota
        self._uses = uses or LastUses()
        self._verified: dict[bytes, Stamp] = {}
        self._pins: dict[str, frozenset[bytes]] = {}
        self._since = 0  # last uses after this are too recent to go for a guess
        self._lock = threading.Lock()
        if quota is not None:
            quota.givers.append(self._expendable)

    def path(self, sha256: bytes) -> Path:
        """Where a blob lies or would lie; says nothing about whether it does."""
        return self.folder / f"{sha256.hex()}.bin"

    def partial(self, sha256: bytes) -> Path:
        """Where a download of it is collected, to be resumed."""
        return self.scratch / f"{sha256.hex()}.part"

    def find(self, sha256: bytes, *, anew: bool = False) -> Path | None:
        """The blob's file, verified; None when it is not here (any more).

        Args:
            anew: hash it also if its size and time are those of when it was last hashed: they say
                nothing of a disk that rots.
        """
        path = self.path(sha256)
        stamp = _stamp(path)
        if stamp is None:
            self._forget(sha256)
            return None
        if not anew and self._verified_as(sha256) == stamp:
            self._uses.note(sha256)
            return path
        try:
            whole = file_sha256(path) == sha256.hex()
        except OSError as error:  # a disk that cannot be read
            log.warning("cached file unreadable", sha256=sha256.hex(), problem=error.strerror)
            whole = False
        if not whole:
            log.warning("cached file damaged, dropped", sha256=sha256.hex())
            self.drop([sha256])
            return None
        self._note(sha256, stamp)
        self._uses.note(sha256)
        return path

    def known(self, sha256: bytes) -> Path | None:
        """As :meth:`find`, but never hashes: only what was verified in this process already and
        has the size and time that it had then."""
        path = self.path(sha256)
        stamp = _stamp(path)
        return path if stamp is not None and self._verified_as(sha256) == stamp else None

    def put(self, data: bytes) -> bytes:
        """Keep a small blob that is in memory.

        Raises:
            TransientError: the disk failed.
        """
        sha256 = hashlib.sha256(data).digest()
        temporary = self.scratch / f"{sha256.hex()}.new"
        self.reserve(temporary, len(data), "a small file of the run")
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise TransientError(f"cannot keep {temporary.name}: {error.strerror}") from error
        finally:
            self.release(temporary)
        self.install(temporary, sha256)
        return sha256

    def install(self, source: Path, sha256: bytes) -> None:
        """Move a file in under the SHA-256 that the caller has just computed of it.

        Raises:
            TransientError: the disk failed.
        """
        target = self.path(sha256)
        self.release(source)  # it is whole: from now on it counts by itself, wherever it is
        try:
            source.replace(target)
        except OSError as error:
            raise TransientError(f"cannot keep {source.name}: {error.strerror}") from error
        stamp = _stamp(target)
        if stamp is not None:
            self._note(sha256, stamp)
            self._uses.note(sha256)

    def drop(self, sha256s: Iterable[bytes]) -> None:
        """Delete blobs that nobody needs any more."""
        for sha256 in sha256s:
            self._forget(sha256)
            self.path(sha256).unlink(missing_ok=True)

    # ---- room --------------------------------------------------------------------------

    def pin(self, purpose: str, sha256s: Iterable[bytes]) -> None:
        """These stay, whatever room is wanted, until others are pinned for the same purpose."""
        with self._lock:
            self._pins[purpose] = frozenset(sha256s)

    def give_first(self, giver: Giver) -> None:
        """Let go of what another one can spare before any blob goes."""
        if self._quota is not None:
            self._quota.givers.insert(0, giver)

    def spare_recent(self) -> None:
        """What is used from now on does not go for a guess."""
        self._since = self._uses.mark()

    def reserve(self, path: Path, total_bytes: int, what: str, *, guess: bool = False) -> None:
        """See :meth:`worker.disk.DiskQuota.reserve`; without a quota there is room for all."""
        if self._quota is not None:
            self._quota.reserve(path, total_bytes, what, guess=guess)

    def release(self, *paths: Path) -> None:
        """See :meth:`worker.disk.DiskQuota.release`."""
        if self._quota is not None:
            self._quota.release(*paths)

    def _expendable(self, guess: bool) -> list[Expendable]:
        """What is not pinned, the least recently used first."""
        found: list[tuple[int, str, Expendable]] = []
        pinned = self._pinned()
        for path in self.folder.glob("*.bin"):
            sha256, stamp = _digest_of(path), _stamp(path)
            if sha256 is None or stamp is None or sha256 in pinned:
                continue
            used = self._uses.of(sha256)
            if not guess or used <= self._since:
                item = Expendable(stamp[0], partial(self._evict, sha256))
                found.append((used, path.name, item))
        return [item for _, _, item in sorted(found, key=lambda entry: entry[:2])]

    def _evict(self, sha256: bytes) -> None:
        with self._lock:  # nobody pins it meanwhile
            if any(sha256 in pins for pins in self._pins.values()):
                return
            self._verified.pop(sha256, None)
            self.path(sha256).unlink(missing_ok=True)
        self._uses.forget(sha256)
        log.info("cached file dropped for want of room", sha256=sha256.hex()[:16])

    def _pinned(self) -> frozenset[bytes]:
        with self._lock:
            return frozenset().union(*self._pins.values())

    def _verified_as(self, sha256: bytes) -> Stamp | None:
        with self._lock:
            return self._verified.get(sha256)

    def _note(self, sha256: bytes, stamp: Stamp) -> None:
        with self._lock:
            self._verified[sha256] = stamp

    def _forget(self, sha256: bytes) -> None:
        with self._lock:
            self._verified.pop(sha256, None)
        self._uses.forget(sha256)


def _digest_of(path: Path) -> bytes | None:
    """What the file's name says; None when it is no blob's."""
    try:
        return bytes.fromhex(path.stem)
    except ValueError:
        return None


def _stamp(path: Path) -> Stamp | None:
    """Size and time; None when there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns
