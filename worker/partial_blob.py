"""A blob on its way here: which of its blocks have come, and from whom.

Invariants:

* Two files in the scratch folder: ``<sha256>.part`` has the bytes, each at its place;
  ``<sha256>.blocks.part`` has a line of JSON for each block that came, the last one of a block
  counts. A line is written after its block, so a kill between the two costs that one block.
* A block counts only while the bytes on the disk have the SHA-256 with which they came. Whatever a
  kill, a power cut or an editor did to them costs that block alone, and nobody is blamed for it.
* Methods block, call them from a thread; a block is written by one thread at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.digest import file_sha256

BLOCK_BYTES = 1 << 20
"""What is fetched, noted and lost as one."""

_MAX_NOTE_BYTES = 256
_KEPT_PARTIALS = 4


@dataclass(frozen=True)
class Given:
    """What came for a block, and from whom."""

    sha256: bytes
    source: str


class PartialBlob:
    """See the module; :meth:`open` first."""

    def __init__(self, path: Path, total_bytes: int) -> None:
        """``path`` ends in ``.part``; the size is the one that a signed record names."""
        self.path = path
        self.total_bytes = total_bytes
        self.count = -(-total_bytes // BLOCK_BYTES)
        self.given: dict[int, Given] = {}
        self._notes = path.with_suffix(".blocks.part")

    def open(self) -> None:
        """Take up what an earlier attempt left, after hashing it."""
        self.given = self._read_notes()
        with self.path.open("ab") as file:
            file.truncate(min(file.tell(), self.total_bytes))
        self.drop_rotten()

    def length(self, block: int) -> int:
        """Bytes of a block; the last one may be short."""
        return min(BLOCK_BYTES, self.total_bytes - block * BLOCK_BYTES)

    def keep(self, block: int, data: bytes, source: str) -> None:
        """Write a block down, then note it."""
        with self.path.open("r+b") as file:
            file.seek(block * BLOCK_BYTES)
            file.write(data)
        given = Given(hashlib.sha256(data).digest(), source)
        note = {"block": block, "sha256": given.sha256.hex(), "source": source}
        with self._notes.open("ab") as notes:
            notes.write(json.dumps(note).encode() + b"\n")
        self.given[block] = given

    def forget(self, sources: Collection[str]) -> None:
        """What these gave does not count any more."""
        self.given = {b: given for b, given in self.given.items() if given.source not in sources}

    def clear(self) -> None:
        """Begin from nothing."""
        self.given = {}
        self._notes.unlink(missing_ok=True)

    def drop_rotten(self) -> bool:
        """Let go of the blocks that are not on the disk as they came; whether there were any."""
        with self.path.open("rb") as file:
            rotten = [block for block in self.given if not self._is_whole(file.fileno(), block)]
        for block in rotten:
            del self.given[block]
        return bool(rotten)

    def sha256(self) -> bytes:
        """Of all that is here."""
        return bytes.fromhex(file_sha256(self.path))

    def finish(self) -> None:
        """The bytes are complete and right: make them durable, and end the notes."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self._notes.unlink(missing_ok=True)

    def _is_whole(self, descriptor: int, block: int) -> bool:
        data = os.pread(descriptor, self.length(block), block * BLOCK_BYTES)
        return hashlib.sha256(data).digest() == self.given[block].sha256

    def _read_notes(self) -> dict[int, Given]:
        given = {}
        with suppress(FileNotFoundError), self._notes.open("rb") as notes:
            while line := notes.readline(_MAX_NOTE_BYTES):
                with suppress(ValueError, KeyError, TypeError):  # torn by a kill: it says nothing
                    note = json.loads(line)
                    if 0 <= note["block"] < self.count:
                        sha256 = bytes.fromhex(note["sha256"])
                        given[int(note["block"])] = Given(sha256, str(note["source"]))
        return given


def tidy_partials(scratch: Path, in_use: Collection[Path]) -> None:
    """Delete what was begun and never finished, but for the newest few and those in use."""
    for path, _ in idle_partials(scratch, in_use)[:-_KEPT_PARTIALS]:
        drop_partial(path)


def idle_partials(scratch: Path, in_use: Collection[Path]) -> list[tuple[Path, int]]:
    """What was begun and is not in use, with its bytes, the oldest first."""
    found = []
    for path in scratch.glob("*.part"):
        if path not in in_use and not path.name.endswith(".blocks.part"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size_bytes) for _, path, size_bytes in sorted(found)]


def drop_partial(path: Path) -> None:
    """Delete a download and its notes."""
    path.unlink(missing_ok=True)
    path.with_suffix(".blocks.part").unlink(missing_ok=True)
