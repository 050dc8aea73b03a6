"""``install-service`` and ``uninstall``: the worker as a service of one's account, and its end."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import click

from protocol.errors import ProtocolError, UsageError
from protocol.identity import Identity
from worker.commands.options import home_option, home_words, json_option, show
from worker.commands.steering import wait_until_ended
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, ask, is_held

_STOP_PATIENCE_S = 120.0


@click.command(name="install-service")
@home_option
@click.option("--print", "only_print", is_flag=True, help="Print it, and change nothing.")
@json_option
def install_service(home: Home, only_print: bool, as_json: bool) -> None:
    """Have this machine start the worker by itself: as a systemd user unit, or a launchd agent.

    Needs no root. 'barnraise worker uninstall' removes it.

    \b
    Examples:
      barnraise worker install-service
      barnraise worker install-service --print
    """
    from worker.service import manager

    config = WorkerConfig.load(home.config)
    service = manager(home, config, os.environ)
    if only_print:
        show({"file": str(service.file), "text": service.text()}, service.text(), as_json=as_json)
        return
    if not config.confirmed:
        raise UsageError(
            "nobody has agreed to the run yet: do so with 'barnraise worker resume"
            f"{home_words(home)}', then install the service"
        )
    if is_held(home) and not service.file.exists():
        raise UsageError(
            "a worker runs here already: end it with 'barnraise worker finish --wait"
            f"{home_words(home)}', then install the service"
        )
    notes = service.install()
    text = "\n".join([f"Started, and it will be from now on: {service.file}", *notes])
    show({"file": str(service.file), "notes": notes}, text, as_json=as_json)


@click.command()
@home_option
@click.option("--yes", is_flag=True, help="Remove the folder without being asked.")
@click.option("--keep-home", is_flag=True, help="Remove the service only.")
@click.option("--delete-key", is_flag=True, help="Remove the device's key too: for good.")
@json_option
def uninstall(home: Home, yes: bool, keep_home: bool, delete_key: bool, as_json: bool) -> None:
    """Leave: stop the worker, remove its service and, if you say so, its folder.

    The device's key stays unless you give --delete-key. To keep your receipts, first run
    'barnraise worker receipts --save FOLDER'.

    \b
    Examples:
      barnraise worker uninstall
      barnraise worker uninstall --yes --delete-key
    """
    from worker.service import manager

    worker = _name(home)
    service = manager(home, None, os.environ)
    had_service = service.file.exists()
    service.remove()
    with suppress(NotRunning):
        ask(home, "stop")
    wait_until_ended(home, _STOP_PATIENCE_S)
    removed = False
    if home.path.exists() and not keep_home and _agreed(home, yes=yes, delete_key=delete_key):
        _remove(home, delete_key=delete_key)
        removed = True
    left = sorted(str(path) for path in home.path.glob("*")) if home.path.exists() else []
    facts = {"worker": worker, "service_removed": had_service, "home_removed": removed}
    show({**facts, "left": left}, _farewell(home, worker, had_service, removed), as_json=as_json)


def _name(home: Home) -> str:
    try:
        return Identity.load(home.identity).peer_id
    except ProtocolError:
        return ""


def _agreed(home: Home, *, yes: bool, delete_key: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    what = "and its KEY, which nobody can make anew" if delete_key else "all but its key"
    return click.confirm(f"Remove what the worker keeps in {home.path}, {what}?", err=True)


def _remove(home: Home, *, delete_key: bool) -> None:
    """What a worker makes, and nothing else that may lie in the folder."""
    keep = set() if delete_key else {home.identity}
    names = [name for name, value in vars(Home).items() if isinstance(value, property)]
    ours: set[Path] = {getattr(home, name) for name in names}
    ours |= {home.journal.with_name(home.journal.name + end) for end in ("-wal", "-shm")}
    ours.add(home.config.with_suffix(".new"))
    for path in ours - keep:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: the key, or what is not ours
        home.path.rmdir()


def _farewell(home: Home, worker: str, had_service: bool, removed: bool) -> str:
    lines = ["The worker does not run."]
    if had_service:
        lines.append("Its service is removed.")
    if home.identity.exists():
        lines.append(f"Its key is in {home.identity}: delete it, or keep it to come back.")
    if home.path.exists() and not removed:
        lines.append(f"Its folder stays: {home.path}")
    if worker:
        lines.append(
            f"What stays in the public record under {worker}: what this device gave, and its\n"
            "credit. The display name can be erased: tell the organiser."
        )
    return "\n".join(lines)
