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

from worker.config import Home, resolve_home
from worker.limit_texts import LIMITS

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


def log_options(command: Command) -> Command:
    """``--json-logs`` and ``--log-level``."""
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="Least that is logged [default: info].",
    )
    json_logs = click.option(
        "--json-logs", is_flag=True, help="Log lines as JSON; a service does so by itself."
    )
    return json_logs(level(command))


def limit_options(command: Command) -> Command:
    """An option for each limit; the command gets them by their names, None where not given."""
    for name, limit in reversed(LIMITS.items()):
        command = _limit_option(name, limit.type, limit.metadata)(command)
    return command


def _limit_option(name: str, kind: Any, about: Any) -> Callable[[Command], Command]:
    flag, says = "--" + name.replace("_", "-"), about["says"][0].upper() + about["says"][1:] + "."
    if kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=says)
    if kind == "int":
        bounds = click.IntRange(about["least"], about["most"])
        return click.option(flag, name, type=bounds, metavar="N", help=says)
    return click.option(flag, name, multiple=True, metavar="PERIOD", help=says + " Repeatable.")


def given_limits(limits: dict[str, Any]) -> dict[str, Any]:
    """Of what :func:`limit_options` gave, what was typed."""
    return {name: value for name, value in limits.items() if value not in (None, ())}


def home_words(home: Home) -> str:
    """The ``--home`` that a next command needs, with a space before it; empty if it needs none."""
    return "" if home == resolve_home(None, os.environ) else f" --home {home.path}"


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
