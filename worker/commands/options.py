"""What the worker's commands share: options, logs at rest, and how answers are printed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from worker.config import resolve_home

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

CHECKS_FAILED = 1
"""Exit code: the command ran, and what it looked at is not as it should be."""


def home_option(command: Command) -> Command:
    """``--home``."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda _context, _parameter, value: resolve_home(value, os.environ),
        help="Folder of this worker [default: $BARNRAISE_HOME or the user's data folder].",
    )(command)


def json_option(command: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def show(facts: object, text: str, *, as_json: bool) -> None:
    """Print an answer: for a program, or for a person."""
    click.echo(json.dumps(facts, indent=2) if as_json else text)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to its end what needs the network."""
    return asyncio.run(work)


def limit_threads(threads: int) -> None:
    """Before torch loads: spinning OpenMP threads make a busy machine several times slower."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def quiet_logs() -> None:
    """Commands that end at once answer on stdout; their parts log nothing but errors."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
