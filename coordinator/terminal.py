"""What the coordinator's commands share: reading a run's database, logging, printing."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

import click

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from protocol.manifest import RunManifest

T = TypeVar("T")

_REFRESH_S = 1.0


class Read(Protocol):
    """Runs a query in a transaction of its own."""

    def __call__(self, query: Callable[[Session], T]) -> T: ...


@contextmanager
def reader(run_dir: Path) -> Iterator[tuple[Read, RunManifest]]:
    """A function that runs a query in a transaction, and the run's manifest."""
    from coordinator.config import RunFolder
    from coordinator.database import Database

    folder = RunFolder(run_dir)
    settings = folder.settings()
    manifest = folder.read_manifest()
    database = Database(folder.database_url(settings))
    database.require()

    def read(query: Callable[[Session], T]) -> T:
        with database.session() as session:
            return query(session)

    try:
        yield read, manifest
    finally:
        database.close()


def configure_logging(
    *, verbose: bool = False, quiet: bool = False, json_lines: bool = False
) -> None:
    """To stderr, so that a command's answer on stdout stays clean; JSON unless on a terminal."""
    import logging

    import structlog

    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    for_person = sys.stderr.isatty() and not json_lines
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if for_person else "iso")
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
    ]
    if for_person:
        shared += [stamp, structlog.dev.ConsoleRenderer()]
    else:
        shared += [
            stamp,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(_Lossy(sys.stderr)),
    )


class _Lossy(io.StringIO):
    """A stream that loses lines rather than raise: its disk may be the one that is full."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_rich(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def watch(look: Callable[[], Any]) -> None:
    from rich.live import Live

    try:
        with Live(look(), refresh_per_second=4) as live:
            while True:
                time.sleep(_REFRESH_S)
                live.update(look())
    except KeyboardInterrupt:
        return
