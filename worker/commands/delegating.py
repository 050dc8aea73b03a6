"""``delegation``: for whom this machine works."""

from __future__ import annotations

import click

from worker.commands.options import home_option, json_option, show
from worker.config import Home


@click.command()
@click.argument("line", required=False, metavar="[LINE|FILE]")
@home_option
@click.option("--remove", is_flag=True, help="Work for this device's own key again.")
@json_option
def delegation(line: str | None, home: Home, remove: bool, as_json: bool) -> None:
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
    facts = {
        "worker": worker,
        "donor": vouched.donor if vouched else worker,
        "not_after_s": vouched.not_after_s if vouched else None,
    }
    show(facts, f"This machine works for {whom}.", as_json=as_json)
