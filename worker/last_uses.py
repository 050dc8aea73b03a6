"""When blobs were last used, over restarts: in which order, not at what time.

Invariants:

* Access times of files are not asked: backups and searches touch them, and some disks keep none.
* Clocks are not asked either: a line is appended at each use, and the last line of a blob counts.
* Nothing depends on it but what goes first for want of room. A file that is lost, torn or cannot
  be written makes another order, and nothing else.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path

from worker.small_file import replace_text

_MOST_BYTES = 8 << 20
_SPARE_LINES = 256
_LINE = re.compile(rb"[0-9a-f]{64}")


class LastUses:
    """A file of digests, the last used last; without a path it forgets at the end."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._order: dict[bytes, int] = {}
        self._lines = 0
        self._now = 0
        self._lock = threading.Lock()
        self._read()

    def of(self, sha256: bytes) -> int:
        """The number of its last use; 0: never used."""
        with self._lock:
            return self._order.get(sha256, 0)

    def mark(self) -> int:
        """This moment: what is used from now on has a higher number."""
        with self._lock:
            self._now += 1
            return self._now

    def note(self, sha256: bytes) -> None:
        """It is used now; blocking."""
        with self._lock:
            if self._now and self._order.get(sha256) == self._now:
                return
            self._count(sha256)
            with suppress(OSError):
                self._write(sha256)

    def forget(self, sha256: bytes) -> None:
        """It is not here any more."""
        with self._lock:
            self._order.pop(sha256, None)

    def _count(self, sha256: bytes) -> None:
        self._now += 1
        self._order[sha256] = self._now

    def _read(self) -> None:
        with suppress(OSError):
            if self._path is None or self._path.stat().st_size > _MOST_BYTES:
                return
            for line in self._path.read_bytes().split(b"\n"):
                self._lines += 1
                if _LINE.fullmatch(line):
                    self._count(bytes.fromhex(line.decode()))

    def _write(self, sha256: bytes) -> None:
        if self._path is None:
            return
        if self._lines < 2 * len(self._order) + _SPARE_LINES:
            with self._path.open("a", encoding="ascii") as file:
                file.write(sha256.hex() + "\n")
            self._lines += 1
            return
        in_order = sorted(self._order, key=self._order.__getitem__)
        replace_text(self._path, "".join(f"{blob.hex()}\n" for blob in in_order))
        self._lines = len(in_order)
