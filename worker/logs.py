"""Logs of the commands that stay: for a person at a terminal, or JSON for a service."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from worker.plain import plain


def log_to_stderr(as_json: bool = False, level: str | None = None) -> None:
    """Set structlog up: JSON if asked for, or if a service manager reads."""
    import structlog

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
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.format_exc_info if as_json else _harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level or "info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
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


def _harmless(_logger: Any, _method: str, event: Any) -> Any:
    """What a stranger said may be among it."""
    return {key: _shown(value) for key, value in event.items()}


def _shown(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not value.isprintable() else value
