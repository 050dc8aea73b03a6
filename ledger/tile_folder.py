"""A folder of the record's files that is whole at every moment.

Invariants:

* A file is written elsewhere and renamed into place: it is whole, or it is not there.
* What is not under the folder's head yet waits in ``incoming``. It goes to its place only when
  nothing is left to check, the checkpoint last. So whenever its writer dies, the folder verifies
  under its old head or its new one.
* One program writes at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ledger.authority import MAX_DELEGATIONS_BYTES, Delegations
from ledger.tiles import TILE_WIDTH, Tile, levels_of, tiles_of
from protocol.errors import UsageError
from protocol.notes import MAX_NOTE_BYTES, read_checkpoint

CHECKPOINT = "checkpoint"
DELEGATIONS = "delegations"
_INCOMING = "incoming"
_WRITING = ".writing"
_REFUSED = "refused"
_MOST_REFUSED = 1000
_MOST_REASON_CHARS = 8000
"""Anybody can make up heads; they shall not fill the disk."""


class TileFolder:
    """The files of one record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._staged: set[str] = set()  # by this program: nothing else is published

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one who writes; makes the folder. The kernel lets go at the process's end.

        Raises:
            UsageError: another program writes there, or nobody may.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UsageError(f"cannot write to {self.path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"another program is writing to {self.path}") from error
            self._staged.clear()
            yield
        finally:
            os.close(descriptor)

    def read(self, path: str, most_bytes: int) -> bytes | None:
        """A file's content, at most one byte more than ``most_bytes``; None where there is none."""
        try:
            with (self.path / path).open("rb") as file:
                return file.read(most_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def checkpoint(self) -> str | None:
        """The head that the folder holds."""
        data = self.read(CHECKPOINT, MAX_NOTE_BYTES)
        return None if data is None else data.decode(errors="replace")

    def delegations(self) -> Delegations | None:
        """Who may sign it.

        Raises:
            BadRecord: the file is damaged.
        """
        data = self.read(DELEGATIONS, MAX_DELEGATIONS_BYTES)
        return None if data is None else Delegations.parse(data)

    def replace(self, path: str, data: bytes) -> None:
        """Put a file in its place at once."""
        self._write(self.path / path, data)

    def remove(self, path: str) -> None:
        _remove(self.path / path)

    def stage(self, path: str, data: bytes) -> None:
        """Keep a file for :meth:`publish`."""
        self._write(self.path / _INCOMING / path, data)
        self._staged.add(path)

    def staged(self, path: str, most_bytes: int) -> bytes | None:
        """What :meth:`stage` kept, maybe before the program was started anew."""
        data = self.read(f"{_INCOMING}/{path}", most_bytes)
        if data is not None:
            self._staged.add(path)
        return data

    def drop_staged(self) -> None:
        """Forget what was not published."""
        self._staged.clear()
        shutil.rmtree(self.path / _INCOMING, ignore_errors=True)

    def publish(self, note: str, delegations: Delegations | None) -> None:
        """Put all staged files into place, then the head that they are under."""
        old = self.checkpoint()
        self._place_staged()
        if delegations is not None:
            # For a moment both heads are to verify, also if the old one's key was revoked since.
            held = self.delegations()
            before = delegations if held is None else delegations.before_revoking(held)
            self._replace_durably(DELEGATIONS, before.dump())
        self._replace_durably(CHECKPOINT, note.encode())
        if delegations is not None:
            self._replace_durably(DELEGATIONS, delegations.dump())
        self._sweep([note] if old is None else [old, note])

    def keep_refused(self, note: bytes, why: str) -> Path | None:
        """Keep a head that was refused, as evidence; None when there are too many already."""
        name = hashlib.sha256(note).hexdigest()[:32]
        path = self.path / _REFUSED / f"{name}.checkpoint"
        if path.exists():
            return path
        if path.parent.is_dir() and len(list(path.parent.iterdir())) >= 2 * _MOST_REFUSED:
            return None
        self._write(path.with_suffix(".reason"), f"{why[:_MOST_REASON_CHARS]}\n".encode())
        self._write(path, note)
        return path

    def _place_staged(self) -> None:
        places = {self.path / _INCOMING / path: self.path / path for path in sorted(self._staged)}
        for path in places:
            _flush(path)
        for path, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            _rename(path, place)
        for parent in dict.fromkeys(place.parent for place in places.values()):
            _flush(parent)
        self.drop_staged()

    def _replace_durably(self, path: str, data: bytes) -> None:
        if self.read(path, len(data)) == data:
            return
        self._write(self.path / path, data, durable=True)
        _flush(self.path)

    def _write(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        temporary = self.path / _WRITING
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(temporary, data)
        if durable:
            _flush(temporary)
        _rename(temporary, path)

    def _sweep(self, notes: list[str]) -> None:
        """Remove partial tiles that neither the head nor the one before it needs."""
        kept = set()
        for size in (read_checkpoint(note).size for note in notes):
            for level in (None, *levels_of(size)):
                kept |= {tile.path for tile in _partial(size, level)}
        for folder in (self.path / "tile").rglob("*.p"):
            for path in folder.iterdir():
                if str(path.relative_to(self.path)) not in kept:
                    _remove(path)
            if not any(folder.iterdir()):
                folder.rmdir()


def _partial(size: int, level: int | None) -> list[Tile]:
    return [tile for tile in tiles_of(size, level) if tile.width < TILE_WIDTH]


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _rename(path: Path, place: Path) -> None:
    path.replace(place)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
