"""``pause``, ``resume``, ``finish``, ``stop``: words to the worker that runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from protocol.errors import UsageError
from worker.commands.options import home_option, home_words, json_option, show
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, ask, is_held
from worker.durations import duration_s, moment_text, span_text
from worker.limit_texts import in_words
from worker.settings import change_settings

Command = TypeVar("Command", bound=Callable[..., Any])

_ASK_AGAIN_S = 0.1
_STOP_PATIENCE_S = 120.0


def wait_option(command: Command) -> Command:
    """``--wait``."""
    return click.option("--wait", is_flag=True, help="Return when the worker has ended.")(command)


@click.command()
@home_option
@click.option("--for", "for_", metavar="TIME", help="For so long: 90s, 30m, 2h, 1d.")
@json_option
def pause(home: Home, for_: str | None, as_json: bool) -> None:
    """Use nothing of this machine until 'resume', or for a time. What was trained is kept.

    \b
    Examples:
      barnraise worker pause
      barnraise worker pause --for 2h
    """
    seconds = duration_s(for_) if for_ is not None else None
    status = ask(home, "pause", **({} if seconds is None else {"for_s": seconds}))["status"]
    if seconds is None:
        text = f"Paused. To go on: barnraise worker resume{home_words(home)}"
    else:
        now_s = time.time()
        until = moment_text(now_s + seconds, now_s)
        text = f"Paused until {until} (for {span_text(seconds)})."
    show(status, text, as_json=as_json)


@click.command()
@home_option
@json_option
def resume(home: Home, as_json: bool) -> None:
    """Work again after 'pause'; after a 'join' that nobody agreed to, this agrees.

    \b
    Example:
      barnraise worker resume
    """
    agreed = home.config.exists() and not WorkerConfig.load(home.config).confirmed
    if agreed:
        config = change_settings(home, lambda now: replace(now, confirmed=True))
        words = "\n".join(f"  {subject:<10} {text}" for subject, text in in_words(config.limits))
        click.echo(f"Agreed: this machine gives\n{words}", err=as_json)
    try:
        if agreed:
            ask(home, "reload")
        status = ask(home, "resume")["status"]
    except NotRunning:
        if not agreed:
            raise
        text = f"Start with: barnraise worker run{home_words(home)}"
        show({"confirmed": True, "running": False}, text, as_json=as_json)
        return
    show(status, "Resumed.", as_json=as_json)


@click.command()
@home_option
@wait_option
@json_option
def finish(home: Home, wait: bool, as_json: bool) -> None:
    """End after the unit under way and its reduce.

    \b
    Examples:
      barnraise worker finish
      barnraise worker finish --wait && poweroff
    """
    status = ask(home, "finish")["status"]
    if wait:
        wait_until_ended(home)
    show(status, "It has ended." if wait else "It will end after this unit.", as_json=as_json)


@click.command()
@home_option
@wait_option
@json_option
def stop(home: Home, wait: bool, as_json: bool) -> None:
    """End now; what was trained is kept.

    \b
    Example:
      barnraise worker stop --wait
    """
    status = ask(home, "stop")["status"]
    if wait:
        wait_until_ended(home, _STOP_PATIENCE_S)
    show(status, "It has ended." if wait else "It is stopping.", as_json=as_json)


def wait_until_ended(home: Home, patience_s: float | None = None) -> None:
    """Wait until no worker holds this folder.

    Raises:
        UsageError: one still does after that time.
    """
    deadline_s = None if patience_s is None else time.monotonic() + patience_s
    while is_held(home):
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise UsageError(f"the worker in {home.path} has not ended yet: look at its log")
        time.sleep(_ASK_AGAIN_S)
