"""``barnraise coordinator block | unblock | blocks``: who takes no part any more.

The commands write to the run's database and public record, so they work whether the coordinator
runs or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.terminal import configure_logging, print_json, reader

if TYPE_CHECKING:
    from coordinator.blocks import BlockList

_run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_WORD = "organiser"
"""Stable word of these blocks in the public record; the reason itself stays out of it."""


@click.command()
@click.argument("key")
@click.option("--reason", required=True, metavar="TEXT", help="For the volunteer to read.")
@_run_dir_option
@_json_option
def block(key: str, reason: str, run_dir: Path, as_json: bool) -> None:
    """Send a device, or every device of a donor, away. KEY is the device's or the donor's.

    What it has earned stays its own; the work under way is not merged.

    \b
    Example:
      barnraise coordinator block 12D3KooW... --reason "asked to stop, and did not"
    """
    from coordinator.blocks import ORGANISER

    def write(blocks: BlockList) -> bool:
        return blocks.block(key, reason, source=ORGANISER, word=_WORD)

    news = _write(run_dir, write)
    if as_json:
        print_json({"key": key, "blocked": True, "news": news})
        return
    click.echo(f"{key} is blocked" if news else f"{key} was blocked already; the reason is new")


@click.command()
@click.argument("key")
@_run_dir_option
@_json_option
def unblock(key: str, run_dir: Path, as_json: bool) -> None:
    """Welcome a blocked device or donor again.

    \b
    Example:
      barnraise coordinator unblock 12D3KooW...
    """
    from coordinator.blocks import require_block

    def write(blocks: BlockList) -> bool:
        require_block(blocks.session, key)
        return blocks.unblock(key, word=_WORD)

    _write(run_dir, write)
    if as_json:
        print_json({"key": key, "blocked": False})
        return
    click.echo(f"{key} is welcome again")


@click.command()
@_run_dir_option
@_json_option
def blocks(run_dir: Path, as_json: bool) -> None:
    """List who is blocked, the newest first.

    \b
    Examples:
      barnraise coordinator blocks
      barnraise coordinator blocks --json
    """
    from coordinator.blocks import listed

    with reader(run_dir) as (read, _):
        found = read(listed)
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    for entry in found:
        day = datetime.fromtimestamp(entry.at_s, UTC).date()
        click.echo(f"{entry.key}  {day}  {entry.source:<9}  {entry.reason}")
    if not found:
        click.echo("nobody is blocked")


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    for command in (block, unblock, blocks):
        group.add_command(command)


def _write(run_dir: Path, write: Callable[[BlockList], bool]) -> bool:
    """Run a change with its leaf in one transaction, then sign the record's new head."""
    from coordinator.blocks import BlockList
    from coordinator.config import RunFolder
    from coordinator.keys import KeyRing
    from ledger.log import Log

    configure_logging(quiet=True)
    with reader(run_dir) as (read, manifest):
        now_s = time.time()
        ring = KeyRing.load(
            RunFolder(run_dir).keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s
        )
        log = Log(manifest.origin, ring.log)
        changed = read(lambda session: write(BlockList(log, manifest.run_id, session, now_s)))
        read(log.sign_head)
    return changed
