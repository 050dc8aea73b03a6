"""Logs of the commands that stay: for a person at a terminal, or JSON for a service.

Invariant: whatever strangers make a worker say, its log grows by :data:`LINES_PER_S` and
:data:`MOST_VALUE_CHARS` at most, beside the first :data:`MOST_LINES_AT_ONCE`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from worker.clock import steady_s
from worker.plain import plain

LINES_PER_S = 5.0
MOST_LINES_AT_ONCE = 5000.0
MOST_VALUE_CHARS = 8000

_EVIDENCE = ("first", "second")  # whole records, of which little is told: worker.watch


def log_to_stderr(as_json: bool = False, level: str | None = None, member: str = "") -> None:
    """Set structlog up: JSON if asked for, or if a service manager reads.

    Args:
        as_json: asked for.
        level: the least that is logged.
        member: of the daemons that share this stream, named in each line.
    """
    import structlog

    if member:
        structlog.contextvars.bind_contextvars(member=member)

    as_json = as_json or read_by_service(os.environ, sys.stderr)
    # A person at a terminal has 80 columns; a log file needs the date.
    person = sys.stderr.isatty() and not as_json
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if person else "iso", utc=not person)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=person and not os.environ.get("NO_COLOR"))
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            stamp,
            _bounded,
            Pace(),
            structlog.processors.format_exc_info if as_json else _harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level or "info"),
        # Each line in one piece: several daemons may share the stream.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


def read_by_service(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Whether a service manager reads this stream, as systemd tells its children.

    A shell inherits ``INVOCATION_ID`` from the desktop that started its terminal: a terminal is
    never a service.
    """
    if stream.isatty():
        return False
    journal = environment.get("JOURNAL_STREAM", "")
    if journal:
        try:
            found = os.fstat(stream.fileno())
        except (OSError, ValueError):
            return False
        return journal == f"{found.st_dev}:{found.st_ino}"
    return bool(environment.get("INVOCATION_ID"))


@dataclass
class Pace:
    """Drops lines that come too fast, and says in the next one how many."""

    _spare: float = MOST_LINES_AT_ONCE
    _last_s: float = 0.0
    _dropped: int = 0

    def __call__(self, _logger: Any, _method: str, event: Any) -> Any:
        import structlog

        now_s = steady_s()
        self._spare += max(0.0, now_s - self._last_s) * LINES_PER_S
        self._spare, self._last_s = min(self._spare, MOST_LINES_AT_ONCE), now_s
        if self._spare < 1.0:
            self._dropped += 1
            raise structlog.DropEvent
        self._spare -= 1.0
        dropped, self._dropped = self._dropped, 0
        return {**event, "lines_left_out": dropped} if dropped else event


def _bounded(_logger: Any, _method: str, event: Any) -> Any:
    return {key: _short(value) if key not in _EVIDENCE else value for key, value in event.items()}


def _short(value: Any) -> Any:
    long = isinstance(value, str) and len(value) > MOST_VALUE_CHARS
    return value[: MOST_VALUE_CHARS - 1] + "…" if long else value


def _harmless(_logger: Any, _method: str, event: Any) -> Any:
    """What a stranger said may be among it."""
    return {key: _shown(value) for key, value in event.items()}


def _shown(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not value.isprintable() else value
