"""What all of a donor's commands share: options, the open desk, and how answers are printed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from protocol.errors import UsageError
from worker.config import Home, resolve_home
from worker.donor.desk import Desk, Outcome, Refused, open_desk
from worker.donor.home import DonorHome, resolve_donor_home

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

HELP = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Place:
    """Where a command works."""

    home: DonorHome
    worker: Home
    link: str | None = None

    def at_desk(
        self, work: Callable[[Desk], Awaitable[Result]], *, own_key: bool = False
    ) -> Result:
        """Do something with the run's coordinator; see :func:`worker.donor.desk.open_desk`."""
        _quiet_logs()

        async def session() -> Result:
            async with open_desk(self.home, self.worker, self.link, own_key=own_key) as desk:
                try:
                    return await work(desk)
                finally:
                    _tell_earlier(desk)

        return asyncio.run(session())


def home_option(command: Command) -> Command:
    """``--home``."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda _context, _parameter, value: resolve_donor_home(value, os.environ),
        help="Folder of the donor [default: $BARNRAISE_DONOR_HOME or the user's data folder].",
    )(command)


def worker_home_option(command: Command) -> Command:
    """``--worker-home``."""
    return click.option(
        "--worker-home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda _context, _parameter, value: resolve_home(value, os.environ),
        help="Folder of this machine's worker, which says the run [default: as for 'worker'].",
    )(command)


def json_option(command: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def yes_option(command: Command) -> Command:
    """``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def run_options(command: Command) -> Command:
    """``--home``, ``--worker-home``, ``--link`` and ``--json``."""
    link = click.option("--link", help="Join link of the run, where this machine has not joined.")
    return home_option(worker_home_option(link(json_option(command))))


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone.

    Raises:
        UsageError: the answer is no.
    """
    if not yes and not click.confirm(question, err=True):
        raise UsageError("nothing was signed")


def show(outcome: Outcome, text: str, *, as_json: bool, **more: object) -> None:
    """Say what was done, and where the record has it."""
    if as_json:
        shown = {
            "act": outcome.kind,
            "leaf": outcome.leaf,
            "url": outcome.url,
            "message": outcome.said,
        }
        click.echo(json.dumps({**shown, **more}, indent=2))
        return
    click.echo(text)
    if outcome.leaf is not None:
        click.echo(f"In the public record: leaf {outcome.leaf}  {outcome.url}".rstrip())
    if outcome.said:
        click.echo(outcome.said)


def earlier_text(outcome: Outcome | Refused) -> str:
    """What became of an act that an interrupted command had left."""
    if isinstance(outcome, Refused):
        return str(outcome)
    where = "" if outcome.leaf is None else f": leaf {outcome.leaf}  {outcome.url}"
    return f"the {outcome.kind} was handed in{where}".rstrip()


def _tell_earlier(desk: Desk) -> None:
    for outcome in desk.earlier:
        click.echo(f"From an earlier command: {earlier_text(outcome)}", err=True)


def _quiet_logs() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
