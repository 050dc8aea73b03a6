"""``status``: what the worker does, once or for as long as one looks."""

from __future__ import annotations

import json
from typing import Any

import click

from worker.commands.options import home_option, json_option
from worker.config import Home


@click.command()
@home_option
@click.option("--watch", is_flag=True, help="Keep showing it; Ctrl-C ends.")
@json_option
def status(home: Home, watch: bool, as_json: bool) -> None:
    """Show what the worker is doing, and why when it does nothing."""
    from worker.control import ask

    first = ask(home, "status")["status"]
    if as_json:
        click.echo(json.dumps(first, indent=2))
        return
    from rich.console import Console

    from worker.status import render

    if not watch:
        Console().print(render(first))
        return
    _watch_status(home, first)


def _watch_status(home: Home, first: dict[str, Any]) -> None:
    import time

    from rich.live import Live

    from worker.control import ask
    from worker.status import render

    with Live(render(first), refresh_per_second=4) as live:
        try:
            while True:
                time.sleep(1.0)
                live.update(render(ask(home, "status")["status"]))
        except KeyboardInterrupt:
            return
