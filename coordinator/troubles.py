"""What keeps the server from its work: told when it begins and when it is over, not between.

A full disk or a database that is away fails every tick and every retry in the same way. The log
gets two lines for it. ``coordinator status`` reads a note that is written *in place*: the file has
its full size from the start, so it can be written on a disk that is full.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

DATABASE = "database"
"""The trouble of everything that reads or writes it."""

_NOTE_BYTES = 4096
_SENTENCE_CHARS = 300

_log = structlog.get_logger()


class Troubles:
    """The server's own; thread-safe."""

    def __init__(self, note: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """Touches nothing yet.

        Args:
            note: file for ``coordinator status``; None keeps none.
            clock: seconds since the epoch.
        """
        self._note, self._clock = note, clock
        self._lock = threading.Lock()
        self._failed_at_s: dict[str, float] = {}
        self._open: dict[str, dict[str, Any]] = {}

    def begin_anew(self) -> None:
        """Forget what an earlier process noted, and take the note's space while there is some."""
        with self._lock:
            self._write()

    def begin(self, doing: str, error: Exception) -> None:
        """Something failed, and will be tried again.

        Args:
            doing: what the server was doing; names the trouble.
            error: says what to do about it.
        """
        with self._lock:
            known = doing in self._open
            self._failed_at_s[doing] = self._clock()
            if known and self._open[doing]["sentence"] == str(error)[:_SENTENCE_CHARS]:
                return
            since_s = self._open[doing]["since_s"] if known else self._clock()
            sentence = str(error)[:_SENTENCE_CHARS]
            self._open[doing] = {"doing": doing, "since_s": since_s, "sentence": sentence}
            self._write()
        if not known:
            _log.error("trouble", doing=doing, error=str(error), next="it is tried again")

    def end(self, doing: str, *, quiet_s: float = 0.0) -> None:
        """It works (again), and did not fail for so long."""
        if doing not in self._open or self._clock() - self._failed_at_s[doing] < quiet_s:
            return
        with self._lock:
            trouble = self._open.pop(doing)
            self._write()
        _log.info("trouble_over", doing=doing, after_s=round(self._clock() - trouble["since_s"], 1))

    def _write(self) -> None:
        if self._note is None:
            return
        text = json.dumps(list(self._open.values()))[:_NOTE_BYTES].encode()
        try:
            descriptor = os.open(self._note, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, text.ljust(_NOTE_BYTES), 0)
            finally:
                os.close(descriptor)
        except OSError:
            return  # the log has it


def read_note(note: Path) -> list[dict[str, Any]]:
    """What a running server noted; nothing when there is no note, or it cannot be read."""
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
