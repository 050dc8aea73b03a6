"""``barnraise coordinator profile``: answering somebody who wants to be forgotten."""

from __future__ import annotations

import time
from pathlib import Path

import click

from coordinator.crowd.cli_options import (
    confirm,
    json_option,
    key_option,
    run_dir_option,
    yes_option,
)
from coordinator.terminal import configure_logging, print_json, reader


@click.group()
def profile() -> None:
    """Erase what somebody chose to show.

    \b
    Example:
      barnraise coordinator profile erase 12D3KooW...
    """


@profile.command()
@click.argument("donor", metavar="DONOR")
@run_dir_option
@json_option
@yes_option
def erase(donor: str, run_dir: Path, as_json: bool, yes: bool) -> None:
    """Forget a DONOR: names, links, and what leads from unnamed pledges and donations to them.

    The public record stays as it is and verifies as before: it holds keys and numbers, no names.
    Mirrors are told to forget, too. Backups made before still hold it: delete those when you can.

    \b
    Example:
      barnraise coordinator profile erase 12D3KooW...
    """
    from coordinator.crowd.profiles import erase_person

    key = key_option(donor)
    configure_logging(quiet=True)
    with reader(run_dir) as (read, _):
        confirm(f"Forget {key.peer_id}?", yes)
        keys = read(lambda session: erase_person(session, key.peer_id, time.time()))
    if as_json:
        print_json({"erased": keys})
        return
    click.echo(f"forgotten: {', '.join(keys)}")


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    group.add_command(profile)
