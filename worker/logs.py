"""Logs of the commands that stay: for a person at a terminal, or JSON for a service."""

from __future__ import annotations

import sys
from typing import Any


def log_to_stderr(as_json: bool) -> None:
    import structlog

    # A person at a terminal has 80 columns; a log file needs the date.
    person = sys.stderr.isatty() and not as_json
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if person else "iso", utc=not person)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            stamp,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
