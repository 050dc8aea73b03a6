"""How much of the disk this worker takes: the owner's limits, and room for what comes.

Invariants:

* What counts is what lies in the home folder at this moment. Nothing is summed up in memory, so
  whatever a kill leaves is counted; a file that is being written counts as what it will be.
* Room is made before the first byte is written, for a size that a signed record tells or that we
  know ourselves; nothing is deleted for what would not fit even then.
* What is in use is never deleted for want of room: who holds files says which others it can spare.
* :attr:`Limits.free_disk_mib` of the file system stay free for others, whatever else is allowed.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import TransientError, UsageError
from worker.limits import Limits
from worker.sizes import size_text

_MIB = 1 << 20
_STEP_MIB = 100  # to which a proposed limit is rounded up
_SPARE = 1.2  # of what is needed: what a proposed limit allows


class NoRoom(TransientError):
    """The owner's limit, or the disk, has no room for this now."""

    reason = "NO_ROOM"


@dataclass(frozen=True)
class Expendable:
    """A file or folder that may go; ``delete`` leaves it if it is needed by now."""

    size_bytes: int
    delete: Callable[[], object]


Giver = Callable[[bool], Sequence[Expendable]]
"""``for a guess? -> what can be spared, the first to go first``; for a guess little is."""


class DiskQuota:
    """The bound on one home folder; methods block, call them from a thread."""

    def __init__(
        self, folder: Path, limits: Limits, free: Callable[[Path], int] | None = None
    ) -> None:
        """
        Args:
            folder: of which everything counts.
            limits: see :meth:`change`.
            free: bytes of the file system that are free.
        """
        self._folder = folder
        self._limits = limits
        self._free = free or (lambda path: shutil.disk_usage(path).free)
        self._coming: dict[Path, int] = {}  # what is being written -> its bytes when it is whole
        self._lock = threading.Lock()
        self.givers: list[Giver] = []  # asked in this order

    def change(self, limits: Limits) -> None:
        """Other limits from now on; never blocks. What is over them goes with :meth:`tidy`."""
        self._limits = limits

    def tidy(self) -> None:
        """Delete what is over the limits and can be spared.

        Raises:
            TransientError: the disk failed.
        """
        with self._lock:
            self._make_room(0, 0, guess=False)

    def require(self, least_bytes: int, what: str) -> None:
        """Insist that so much could be held, if nothing else were.

        Raises:
            UsageError: never, with this limit; says which would do.
        """
        if least_bytes > self._limit_bytes():
            raise UsageError(
                f"{what} needs {size_text(least_bytes)} of disk, your limit is "
                f"{size_text(self._limit_bytes())}: {_advice(least_bytes)}"
            )

    def reserve(self, path: Path, total_bytes: int, what: str, *, guess: bool = False) -> None:
        """Make room for a file that is about to be written, and keep it for it.

        Args:
            path: what of it is there already needs no more room. Temporary files beside it count
                as it: those that have its name in theirs. A folder counts as a whole.
            total_bytes: when it is complete.
            what: it is, for a person.
            guess: it may never be needed: little goes for it.

        Raises:
            NoRoom: nothing that could be spared makes enough; nothing was deleted.
            TransientError: the disk failed.
        """
        with self._lock:
            there, there_on_disk = self._there(path)
            counted = max(there, self._coming.get(path, 0))
            more = max(0, total_bytes - counted)
            more_on_disk = max(0, total_bytes - max(there_on_disk, self._coming.get(path, 0)))
            over, short = self._make_room(more, more_on_disk, guess=guess)
            if over > 0:
                used = self._used()
                raise NoRoom(
                    f"no room for {what} of {size_text(total_bytes)}: your limit is "
                    f"{size_text(self._limit_bytes())}, and {size_text(used)} of it is in use: "
                    f"{_advice(used + more)}"
                )
            if short > 0:
                raise NoRoom(
                    f"no room for {what} of {size_text(total_bytes)}: "
                    f"{size_text(self._free(self._folder))} of the disk is free, and "
                    f"{self._limits.free_disk_mib} MiB of it stay free for others "
                    "(free_disk_mib): free some disk"
                )
            self._coming[path] = max(total_bytes, self._coming.get(path, 0))

    def release(self, *paths: Path) -> None:
        """These are not being written any more: what they are is what they count."""
        with self._lock:
            for path in paths:
                self._coming.pop(path, None)

    def part(self) -> dict[str, Any]:
        """For the status: ``bytes``, ``files``, ``limit_bytes`` (0: none), ``free_bytes``."""
        with self._lock:
            sizes = [status.st_size for status in self._files()]
            return {
                "bytes": sum(sizes),
                "files": len(sizes),
                "limit_bytes": self._limits.disk_mib * _MIB,
                "free_bytes": self._free(self._folder),
            }

    # ---- under the lock ----------------------------------------------------------------

    def _make_room(self, more: int, more_on_disk: int, *, guess: bool) -> tuple[int, int]:
        """Delete what can be spared until so much more fits.

        Returns:
            Bytes over the limit, and short of free disk, that remain: nothing was deleted then,
            unless there was nothing more to come.
        """
        over, short = self._missing(more, more_on_disk)
        if over <= 0 and short <= 0:
            return 0, 0
        spare = [item for giver in self.givers for item in giver(guess)]
        if more and sum(item.size_bytes for item in spare) < max(over, short):
            return over, short
        for item in spare:
            try:
                with suppress(FileNotFoundError):  # somebody else was faster
                    item.delete()
            except OSError as error:
                raise TransientError(f"cannot make room: {error.strerror}") from error
            over, short = self._missing(more, more_on_disk)
            if over <= 0 and short <= 0:
                break
        return max(0, over), max(0, short)

    def _missing(self, more: int, more_on_disk: int) -> tuple[int, int]:
        over = self._used() + more - self._limit_bytes()
        promised = sum(max(0, total - self._there(path)[1]) for path, total in self._coming.items())
        free = self._free(self._folder) - promised - self._limits.free_disk_mib * _MIB
        return over, more_on_disk - free

    def _used(self) -> int:
        used = sum(status.st_size for status in self._files())
        for path, total in self._coming.items():
            used += max(0, total - self._there(path)[0])
        return used

    def _there(self, path: Path) -> tuple[int, int]:
        """Bytes of a file or folder, and how many of them the disk has given already."""
        files = list(_files_of(path.parent, having=path.name))
        on_disk = sum(min(status.st_size, status.st_blocks * 512) for status in files)
        return sum(status.st_size for status in files), on_disk

    def _files(self) -> Iterator[os.stat_result]:
        return _files_of(self._folder)

    def _limit_bytes(self) -> int:
        return self._limits.disk_mib * _MIB or 1 << 62


def _advice(needed_bytes: int) -> str:
    mib = -(-int(needed_bytes * _SPARE) // _MIB)
    proposed = -(-mib // _STEP_MIB) * _STEP_MIB
    return f"'barnraise worker limits disk_mib {proposed}' allows it"


def _files_of(folder: Path, having: str = "") -> Iterator[os.stat_result]:
    """Files below a folder; those that go meanwhile are none.

    Args:
        having: only what is in entries of the folder itself that have this in their name.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if having in entry.name]
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_of(Path(entry.path))
        else:
            with suppress(OSError):
                yield entry.stat(follow_symlinks=False)
