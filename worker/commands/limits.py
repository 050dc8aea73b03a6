"""``limits``: what the owner allows, as it stands and as it shall be."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from protocol.errors import UsageError
from worker.commands.options import home_option, json_option, show
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, ask
from worker.limit_texts import limit_from_text, limit_name
from worker.settings import change_settings

_LOOK_S = 1.5  # the governor looks once a second


@click.command()
@click.argument("pairs", nargs=-1, metavar="[KEY VALUE]...")
@home_option
@click.option("--set", "sets", nargs=2, multiple=True, metavar="KEY VALUE", help="The same.")
@click.option("--reload", "reload_", is_flag=True, help="Have a worker that runs read its file.")
@json_option
def limits(
    pairs: tuple[str, ...],
    home: Home,
    sets: tuple[tuple[str, str], ...],
    reload_: bool,
    as_json: bool,
) -> None:
    """Show what this worker may use and what keeps it from working now, or change it.

    A worker that runs takes it at once. The file worker.toml is written anew: what you wrote in it
    as comments is lost. 0, or none, is no limit of yours.

    \b
    Examples:
      barnraise worker limits
      barnraise worker limits threads 4 busy_cpu_percent 25
      barnraise worker limits on_battery yes battery_percent 60
      barnraise worker limits schedule 'mon-fri 22:00-07:00, sat 00:00-24:00'
      barnraise worker limits --reload            after a change by hand of worker.toml
    """
    changes = dict(_changes(pairs) + _changes([text for pair in sets for text in pair]))
    config = WorkerConfig.load(home.config)
    if changes:
        config = change_settings(home, lambda now: now.with_limits(**changes))
    running = _tell_worker(home, must_run=reload_) if changes or reload_ else None
    status = running or _status(home)
    if running and running.get("because"):
        time.sleep(_LOOK_S)  # it may be that the change has ended that
        status = _status(home)
    facts = _facts(config, status)
    if changes and not as_json:
        when = "in force now" if running else "at the next start: no worker runs here"
        click.echo(f"Changed ({when}): {', '.join(changes)}\n")
    if as_json:
        show({**facts, "changed": list(changes)}, "", as_json=True)
        return
    _print(config, facts)


def _changes(words: Sequence[str]) -> list[tuple[str, Any]]:
    """(limit, value) of ``KEY VALUE ...`` or ``KEY=VALUE ...``."""
    changes, left = [], list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not equals:
            if not left:
                raise UsageError(f"limits: give a value too: barnraise worker limits {name} VALUE")
            value = left.pop(0)
        name = limit_name(name)
        changes.append((name, limit_from_text(name, value)))
    return changes


def _tell_worker(home: Home, *, must_run: bool) -> dict[str, Any] | None:
    """Have it read the file; its status, None when none runs and none has to."""
    try:
        status: dict[str, Any] = ask(home, "reload")["status"]
    except NotRunning:
        if must_run:
            raise
        return None
    return status


def _status(home: Home) -> dict[str, Any] | None:
    with suppress(UsageError):
        status: dict[str, Any] = ask(home, "status")["status"]
        return status
    return None


def _facts(config: WorkerConfig, status: dict[str, Any] | None) -> dict[str, Any]:
    because = str((status or {}).get("because") or "")
    return {
        "limits": asdict(config.limits),
        "confirmed": config.confirmed,
        "running": status is not None,
        "stopped_by": _stopped_by(config, because),
        "because": because or None,
        "reason": (status or {}).get("reason", "") if because else "",
        "until_s": (status or {}).get("until_s") if because else None,
    }


def _stopped_by(config: WorkerConfig, because: str) -> str | None:
    """The limit that a governor's word is about."""
    limits = config.limits
    return {
        "quota": "daily_mib",
        "schedule": "schedule",
        "battery": "battery_percent" if limits.on_battery else "on_battery",
        "disk": "free_disk_mib",
        "memory": "free_memory_mib",
        "hot": "gpu_temperature_c",
        "in_use": "idle_minutes",
        "busy": "busy_cpu_percent",
    }.get(because)


def _print(config: WorkerConfig, facts: dict[str, Any]) -> None:
    from worker.view import console, limits_view

    console(sys.stdout).print(limits_view(config.limits, facts, time.time()))
