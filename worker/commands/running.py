"""``run`` and ``anchor``: the commands that stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from worker.commands.options import (
    given_limits,
    home_option,
    limit_options,
    limit_threads,
    log_options,
    run_async,
)
from worker.config import Home, WorkerConfig
from worker.environment import Environment
from worker.logs import log_to_stderr


@click.command()
@home_option
@click.option("--until-finished", is_flag=True, help="End when the run is complete.")
@click.option("--member", default="", hidden=True)  # of a fleet, which names it in the log
@click.option(
    "--metrics",
    "metrics_port",
    envvar="BARNRAISE_METRICS",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve metrics for Prometheus on this port of 127.0.0.1; with several devices on the next "
    "ones too [default: none].",
)
@log_options
@limit_options
def run(
    home: Home,
    until_finished: bool,
    member: str,
    metrics_port: int | None,
    json_logs: bool,
    log_level: str | None,
    **limits: Any,
) -> None:
    """Work until told to stop. Ctrl-C once finishes the unit under way, twice stops now.

    Limits given here hold for this time only. On a server the environment is enough:
    BARNRAISE_LINK, BARNRAISE_ACCEPT=yes, BARNRAISE_HOME, BARNRAISE_NAME, BARNRAISE_INVITE,
    BARNRAISE_LIMITS_THREADS and so on for each limit, BARNRAISE_JSON_LOGS, BARNRAISE_METRICS.

    \b
    Examples:
      barnraise worker run
      barnraise worker run --until-finished --threads 4
      BARNRAISE_LINK='barnraise://...' BARNRAISE_ACCEPT=yes barnraise worker run
    """
    environment = Environment.read(os.environ)
    json_logs = json_logs or bool(environment.json_logs)
    log_level = log_level or environment.log_level
    log_to_stderr(json_logs, log_level, member)
    from worker.running import goes_on, settled
    from worker.running import run as live

    # A worker that falls asleep begins again: what was changed meanwhile holds.
    if not goes_on(os.environ):
        _settle(home, environment)

    def load() -> WorkerConfig:
        return WorkerConfig.load(home.config).with_limits(**given_limits(limits))

    config = settled(load, os.environ)
    if config.devices:
        options = ["--json-logs"] * json_logs + ["--until-finished"] * until_finished
        options += ["--log-level", log_level] if log_level else []
        _run_fleet(home, load, options, metrics_port)
        return
    limit_threads(config.limits.cpu_threads)
    live(home, load, config, until_finished=until_finished, metrics_port=metrics_port or 0)


def _run_fleet(
    home: Home, load: Callable[[], WorkerConfig], options: list[str], metrics_port: int | None
) -> None:
    """A daemon for each device; without torch, which is for them to load."""
    from worker.fleet import Fleet
    from worker.members import vouch_for_members, write_members

    vouch_for_members(write_members(home, load()), os.environ)
    run_async(Fleet(home, load, options, metrics_port=metrics_port).run())


def _settle(home: Home, environment: Environment) -> None:
    """Write down what the environment says; join where only it says anything."""
    from worker.commands.joining import enter
    from worker.headless import settle

    settle(
        home,
        environment,
        lambda config: enter(home, config, lambda offer: offer.config, key=environment.key_file),
    )


@click.command()
@click.option("--link", required=True, help="Join link of the run.")
@click.option("--home", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--identity", type=click.Path(path_type=Path, dir_okay=False), help="Key file.")
@click.option(
    "--listen", multiple=True, default=("/ip4/0.0.0.0/tcp/0",), help="Multiaddress to listen on."
)
@click.option("--announce", multiple=True, help="Multiaddress by which others reach it.")
@log_options
def anchor(
    link: str,
    home: Path,
    identity: Path | None,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    json_logs: bool,
    log_level: str | None,
) -> None:
    """Serve a run as its public peer: bootstrap, seed weights, reduce. Trains nothing.

    \b
    Example:
      barnraise worker anchor --link "$LINK" --home anchor --listen /ip4/0.0.0.0/tcp/31337
    """
    config = WorkerConfig(
        link=link,
        listen=tuple(listen),
        announce=tuple(announce),
        device="cpu",
        name="anchor",
        client_mode=False,
    )
    limit_threads(1)
    log_to_stderr(json_logs, log_level)
    from worker.anchor import Anchor

    place = Home(home.absolute())

    async def live() -> None:
        await Anchor(place, config, identity or place.identity).run()

    run_async(live())
