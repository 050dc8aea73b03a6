"""``barnraise coordinator invite | pending | approve``: who is let in.

The commands write to the run's database, so they work whether the coordinator runs or not.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from coordinator.terminal import configure_logging, print_json, reader

_DAY_S = 24 * 3600

_run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def invite() -> None:
    """Make, list and revoke invitations ([server] enrolment = "invite").

    \b
    Examples:
      barnraise coordinator invite create --uses 30 --days 7 --note "class 5b"
      barnraise coordinator invite list
      barnraise coordinator invite revoke 0f3a91c2d4e5
    """


@invite.command()
@click.option("--uses", default=1, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--days", type=click.IntRange(1, 3650), help="Valid so long [default: for ever].")
@click.option("--note", default="", help="For you: whom it is for.")
@_run_dir_option
@_json_option
def create(uses: int, days: int | None, note: str, run_dir: Path, as_json: bool) -> None:
    """Make an invitation and show its token, once.

    \b
    Example:
      barnraise coordinator invite create --uses 30 --days 7 --note "class 5b"
    """
    from coordinator import invites

    configure_logging(quiet=True)
    now_s = time.time()
    valid_s = None if days is None else float(days * _DAY_S)
    with reader(run_dir) as (read, _):
        read(lambda s: invites.forget_spent(s, now_s))
        token, id_ = read(
            lambda s: invites.create(s, uses=uses, note=note[:200], valid_s=valid_s, now_s=now_s)
        )
    if as_json:
        print_json({"token": token, "id": id_, "uses": uses})
        return
    devices = "one device" if uses == 1 else f"{uses} devices"
    click.echo(f"{token}\n")
    click.echo(f"Admits {devices}; it is not shown again. Volunteers give it when they join:")
    click.echo(f"  barnraise worker join 'LINK' --invite {token}")


@invite.command("list")
@_run_dir_option
@_json_option
def list_(run_dir: Path, as_json: bool) -> None:
    """List invitations and approvals that are not used up.

    \b
    Example:
      barnraise coordinator invite list
    """
    from coordinator import invites

    with reader(run_dir) as (read, _):
        found = read(invites.listed)
    if as_json:
        print_json(found)
        return
    for row in found:
        expires = (
            "for ever" if row["expires_at_s"] is None else f"until {_day(row['expires_at_s'])}"
        )
        click.echo(f"{row['id']}  {row['uses_left']:>6} uses left  {expires:<16}  {row['note']}")
    if not found:
        click.echo("no invitations: make one with 'barnraise coordinator invite create'")


@invite.command()
@click.argument("id_", metavar="ID")
@_run_dir_option
def revoke(id_: str, run_dir: Path) -> None:
    """Make an invitation void. Whoever came in by it stays.

    \b
    Example:
      barnraise coordinator invite revoke 0f3a91c2d4e5
    """
    from coordinator import invites

    with reader(run_dir) as (read, _):
        note = read(lambda session: invites.revoke(session, id_))
    click.echo(f"void: {id_}" + (f" ({note})" if note else ""))


@click.command()
@_run_dir_option
@_json_option
def pending(run_dir: Path, as_json: bool) -> None:
    """List devices that wait for your approval ([server] enrolment = "approval").

    \b
    Examples:
      barnraise coordinator pending
      barnraise coordinator pending --json
    """
    from coordinator import invites

    with reader(run_dir) as (read, _):
        found = read(invites.pending)
    if as_json:
        print_json(found)
        return
    for row in found:
        click.echo(f"{row['worker']}  {_what(row)}  asked {_day(row['asked_at_s'])}")
    if not found:
        click.echo("nobody waits for approval")


@click.command()
@click.argument("workers", metavar="WORKER...", nargs=-1, required=True)
@_run_dir_option
def approve(workers: tuple[str, ...], run_dir: Path) -> None:
    """Let devices in that asked for it; each comes in when it asks again, within seconds.

    \b
    Example:
      barnraise coordinator approve 12D3KooW...
    """
    from coordinator import invites

    with reader(run_dir) as (read, _):
        news = read(lambda s: [invites.approve(s, worker) for worker in workers])
    for worker, is_news in zip(workers, news, strict=True):
        click.echo(f"{worker}: {'approved' if is_news else 'was approved before'}")


def register(cli: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    for command in (invite, pending, approve):
        cli.add_command(command)


def _what(row: dict[str, Any]) -> str:
    name = f'"{row["display_name"]}", ' if row["display_name"] else ""
    return f"{name}{row['device_class']}, {row['device'] or 'unknown'}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
