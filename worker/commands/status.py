"""``status``: what the worker does, once or for as long as one looks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from protocol.errors import UsageError
from worker.commands.options import home_option, json_option
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, ask

_LOOK_AGAIN_S = 1.0
# What differs at each look without anything having happened.
_MEASURED = ("eta_s", "deadline_in_s", "tokens_per_s", "steps_per_s", "parts")


@click.command()
@home_option
@click.option("--watch", is_flag=True, help="Keep showing it; Ctrl-C ends.")
@json_option
def status(home: Home, watch: bool, as_json: bool) -> None:
    """Show what the worker is doing, and why when it does nothing.

    Ends with 3 when no worker runs, and shows what its folder tells. With --watch --json there is
    a line for each change.

    \b
    Examples:
      barnraise worker status
      barnraise worker status --watch
      barnraise worker status --json | jq -r .reason
    """
    try:
        first = _ask(home)
    except NotRunning:
        _tell_last_known(home, as_json=as_json)
        raise
    if not watch:
        _show(first, as_json=as_json)
        return
    try:
        if as_json:
            _each_change(home, first, _without_measures, lambda now: click.echo(json.dumps(now)))
        elif sys.stdout.isatty():
            _live(home, first)
        else:
            _each_change(home, first, _headline, lambda now: click.echo(_stamped(now)))
    except KeyboardInterrupt:
        return


def _ask(home: Home) -> dict[str, Any]:
    found = ask(home, "status")["status"]
    config = _config(home)
    in_force = {} if config is None else {"limits": asdict(config.limits)}
    return {"running": True, **in_force, **found}


def _config(home: Home) -> WorkerConfig | None:
    try:
        return WorkerConfig.load(home.config)
    except UsageError:
        return None  # spoilt while the worker runs: what it does is the question here


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from worker.view import console, status_lines, status_view

    if sys.stdout.isatty():
        console(sys.stdout).print(status_view(found))
    else:
        click.echo("\n".join(status_lines(found)))


def _tell_last_known(home: Home, *, as_json: bool) -> None:
    from worker.last_known import last_known

    facts = last_known(home)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif facts["joined"]:
        from worker.view import last_known_lines

        click.echo("\n".join(last_known_lines(facts)))


def _next(home: Home) -> dict[str, Any] | None:
    """The status a moment later; None when the worker has ended."""
    time.sleep(_LOOK_AGAIN_S)
    try:
        return _ask(home)
    except NotRunning:
        return None


def _live(home: Home, first: dict[str, Any]) -> None:
    from rich.live import Live

    from worker.view import console, status_view

    shown = console(sys.stdout)
    with Live(status_view(first), console=shown, auto_refresh=False) as live:
        while (now := _next(home)) is not None:
            live.update(status_view(now), refresh=True)
    click.echo("The worker has ended.")


def _each_change(
    home: Home,
    first: dict[str, Any],
    essence: Callable[[dict[str, Any]], object],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    now: dict[str, Any] | None = first
    told: object = None
    while now is not None:
        if essence(now) != told:
            tell(now)
            told = essence(now)
        now = _next(home)


def _without_measures(found: dict[str, Any]) -> object:
    return {key: value for key, value in found.items() if key not in _MEASURED}


def _headline(found: dict[str, Any]) -> str:
    from worker.view import headline

    return headline(found, time.time())


def _stamped(found: dict[str, Any]) -> str:
    return f"{time.strftime('%H:%M:%S')} {_headline(found)}"
