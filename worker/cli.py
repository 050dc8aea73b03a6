"""``barnraise worker``: everything a volunteer types. Heavy modules load only when used."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from protocol.errors import UsageError
from worker.config import Home, WorkerConfig, resolve_home
from worker.limits import Limits

Command = TypeVar("Command", bound=Callable[..., Any])

_EXIT_CHECKS_FAILED = 1


def _home_option(command: Command) -> Command:
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda _context, _parameter, value: resolve_home(value, os.environ),
        help="Folder of this worker [default: $BARNRAISE_HOME or the user's data folder].",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Give compute: join a run, train, see your credit.

    \b
    Examples:
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT'
      barnraise worker run
      barnraise worker status --watch
      barnraise worker finish          end after the unit under way
      barnraise worker doctor          find out what does not work
    """


@cli.command()
@click.argument("link")
@_home_option
@click.option("--name", default="", help="Display name for the leaderboard; can be erased.")
@click.option("--threads", type=click.IntRange(1), help="Processor threads [default: all but one].")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)
@click.option(
    "--client-mode/--no-client-mode",
    default=None,
    help="Never/always tell others to connect to this machine [default: as measured].",
)
@click.option("--listen", multiple=True, help="Multiaddress to listen on; may be repeated.")
@click.option("--nat-port-map", is_flag=True, help="Ask the router for a port (UPnP, NAT-PMP).")
@click.option("--invite", metavar="TOKEN", help="The organiser's invitation, if it takes one.")
@click.option("--donor", "for_donor", is_flag=True, help="Work for this machine's donor key.")
@click.option("--yes", is_flag=True, help="Agree without being asked.")
def join(
    link: str,
    home: Home,
    name: str,
    threads: int | None,
    device: str,
    client_mode: bool | None,
    listen: tuple[str, ...],
    nat_port_map: bool,
    invite: str | None,
    for_donor: bool,
    yes: bool,
) -> None:
    """Join the run of a LINK: make a key, look at the run, agree. Starts nothing.

    \b
    Examples:
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT' --name Ada
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT' --donor
    """
    from worker.join import describe, look_at_run

    config = WorkerConfig(link=link, limits=Limits(threads=threads or 0), name=name).with_options(
        device=device,
        client_mode=client_mode,
        listen=listen or None,
        nat_port_map=nat_port_map,
        invite=invite,
    )
    offer = _run(look_at_run(home, config))
    click.echo(describe(offer, home))
    if not yes and not click.confirm("\nJoin this run?"):
        raise UsageError("not joined; nothing was started")
    if for_donor:
        from worker.delegation import keep
        from worker.donor.devices import vouch_for_neighbour

        vouched = vouch_for_neighbour(offer.worker, os.environ)
        keep(home, vouched, offer.worker)
        click.echo(f"\nThis machine works for the donor {vouched.donor}.")
        if name:
            click.echo("Your name is the donor's: barnraise donor profile set --name NAME")
    config.save(home.config)
    where = "" if home == resolve_home(None, os.environ) else f" --home {home.path}"
    click.echo(f"\nJoined. Start with: barnraise worker run{where}")


@cli.command()
@click.argument("link")
@_home_option
def move(link: str, home: Home) -> None:
    """Follow the run to another address: its new LINK has the same run and root key.

    Key, receipts and settings stay. Restart the worker afterwards.

    \b
    Example:
      barnraise worker move 'barnraise://new-host:7443/RUN_ID#root=FINGERPRINT'
    """
    from worker.join import move as follow

    moved = _run(follow(home, link))
    click.echo(f"Moved to {moved.join_link.address}. Start again with: barnraise worker run")


@cli.command()
@click.argument("line", required=False, metavar="[LINE|FILE]")
@_home_option
@click.option("--remove", is_flag=True, help="Work for this device's own key again.")
def delegation(line: str | None, home: Home, remove: bool) -> None:
    """Work for a donor: take the LINE that 'barnraise donor add-device' printed, or its FILE.

    Counts from the next start on. Without LINE: show for whom this machine works.

    \b
    Example:
      barnraise worker delegation 'barnraise-device:...'
    """
    from protocol.identity import Identity
    from worker.delegation import day, find, keep, load
    from worker.delegation import remove as drop

    worker = Identity.load(home.identity).peer_id
    if remove:
        drop(home, worker)
    elif line is not None:
        keep(home, find(line), worker)
    vouched = load(home)
    whom = f"{vouched.donor}, until {day(vouched.not_after_s)}" if vouched else "its own key"
    click.echo(f"This machine works for {whom}.")


@cli.command()
@_home_option
@click.option("--threads", type=click.IntRange(1), help="Overrides the configuration.")
@click.option("--until-finished", is_flag=True, help="End when the run is complete.")
@click.option("--json-logs", is_flag=True, help="Log lines as JSON.")
def run(home: Home, threads: int | None, until_finished: bool, json_logs: bool) -> None:
    """Work until told to stop. Ctrl-C once finishes the unit under way, twice stops now.

    \b
    Example:
      barnraise worker run --until-finished
    """
    from worker.running import run as live

    def load() -> WorkerConfig:
        return WorkerConfig.load(home.config).with_limits(threads=threads)

    _limit_threads(load().limits.cpu_threads)
    _log_to_stderr(json_logs)
    live(home, load, until_finished=until_finished)


@cli.command()
@click.option("--link", required=True, help="Join link of the run.")
@click.option("--home", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--identity", type=click.Path(path_type=Path, dir_okay=False), help="Key file.")
@click.option(
    "--listen", multiple=True, default=("/ip4/0.0.0.0/tcp/0",), help="Multiaddress to listen on."
)
@click.option("--announce", multiple=True, help="Multiaddress by which others reach it.")
@click.option("--json-logs", is_flag=True, help="Log lines as JSON.")
def anchor(
    link: str,
    home: Path,
    identity: Path | None,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    json_logs: bool,
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
    _limit_threads(1)
    _log_to_stderr(json_logs)
    from worker.anchor import Anchor

    place = Home(home.absolute())

    async def live() -> None:
        await Anchor(place, config, identity or place.identity).run()

    _run(live())


@cli.command()
@_home_option
@click.option("--watch", is_flag=True, help="Keep showing it; Ctrl-C ends.")
@click.option("--json", "as_json", is_flag=True)
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


def _tell(name: str, text: str, done: str) -> None:
    @cli.command(name=name, help=text)
    @_home_option
    def command(home: Home) -> None:
        from worker.control import ask

        ask(home, name)
        click.echo(done)


_tell("finish", "End after the unit under way and its reduce.", "It will end after this unit.")
_tell("stop", "End now; what was trained is kept.", "It is stopping.")
_tell("pause", "Take no new work until 'resume'.", "Paused after the unit under way.")
_tell("resume", "Take work again after 'pause'.", "Resumed.")


@cli.command()
@_home_option
@click.option("--json", "as_json", is_flag=True)
def doctor(home: Home, as_json: bool) -> None:
    """Check this machine and its way to the run; say how to mend what does not work."""
    config = WorkerConfig.load(home.config)
    _quiet_logs()
    from worker.doctor import Check, examine

    async def all_checks() -> list[Check]:
        found = []
        async for check in examine(home, config):
            found.append(check)
            if not as_json:
                mark = "ok  " if check.ok else "FAIL"
                click.echo(f"{mark} {check.name:<12} {check.detail}")
                advice = check.hint if check.ok else check.fix
                if advice:
                    click.echo(f"     -> {advice}")
        return found

    checks = _run(all_checks())
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    if not all(check.ok for check in checks):
        sys.exit(_EXIT_CHECKS_FAILED)


@cli.command()
@_home_option
@click.option("--json", "as_json", is_flag=True)
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write them there, as files that 'barnraise ledger receipt check' takes.",
)
def receipts(home: Home, as_json: bool, save: Path | None) -> None:
    """List receipts, each verified against the run's log key, offline."""
    WorkerConfig.load(home.config)
    from worker.receipts import list_receipts, save_receipts

    if save is not None:
        save_receipts(home, save)
    rows = list_receipts(home)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            click.echo(
                f"round {row['round']:>5}  {row['tokens']:>10} tokens  "
                f"{row['microcredits']:>14} µcredits  {row['state']}"
            )
        verified = [row for row in rows if row["state"] == "verified"]
        total = sum(row["microcredits"] for row in verified) / 1_000_000
        click.echo(f"{len(verified)} of {len(rows)} verified: {total:.6f} credits")
    if any(row["state"].startswith("refused") for row in rows):
        sys.exit(_EXIT_CHECKS_FAILED)


@cli.command()
@click.argument("round_", metavar="ROUND", type=click.IntRange(0))
@_home_option
def appeal(round_: int, home: Home) -> None:
    """Appeal against the verdict on your work of ROUND: it is replayed on another kind of device.

    \b
    Example:
      barnraise worker appeal 12
    """
    config = WorkerConfig.load(home.config)
    _quiet_logs()
    from worker.appeal import appeal as send_appeal

    click.echo(_run(send_appeal(home, config, round_)))


Result = TypeVar("Result")


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


def _limit_threads(threads: int) -> None:
    # Before torch loads: spinning OpenMP threads make a busy machine several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _log_to_stderr(as_json: bool) -> None:
    import structlog

    # A person at a terminal has 80 columns; a log file needs the date.
    person = sys.stderr.isatty() and not as_json
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if person else "iso", utc=not person)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            stamp,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _quiet_logs() -> None:
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
