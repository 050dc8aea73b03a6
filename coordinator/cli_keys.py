"""``barnraise coordinator rotate-keys``: new keys for a run, under the same root key."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.terminal import configure_logging, print_json, reader
from protocol.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from coordinator.keys import KeyRing
    from protocol.wire import records_pb2 as wire

_DAY_S = 24 * 3600


@click.command("rotate-keys")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
@click.option("--round", "round_", is_flag=True, help="The key that signs the rounds' records.")
@click.option("--log", is_flag=True, help="The key that signs the public record's heads.")
@click.option("--tls", is_flag=True, help="The certificate of the connections.")
@click.option("--campaign", is_flag=True, help="The key that signs campaigns, if there is one.")
@click.option("--treasurer", is_flag=True, help="The treasurer's key, if it is in the folder.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650))
@click.option("--revoke-old", is_flag=True, help="They were stolen: nothing they signed holds.")
@click.option("--why", metavar="TEXT", help="With --revoke-old: goes to every worker.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rotate_keys(
    run_dir: Path,
    round_: bool,
    log: bool,
    tls: bool,
    campaign: bool,
    treasurer: bool,
    days: int,
    revoke_old: bool,
    why: str | None,
    as_json: bool,
) -> None:
    """Make new keys; needs keys/root.key in the folder for a moment. The join link stays.

    All that there are, unless some are named. What the old ones signed stays valid until their
    delegations expire, unless they are revoked. Restart the coordinator afterwards; workers follow
    by themselves.

    \b
    Examples:
      barnraise coordinator rotate-keys
      barnraise coordinator rotate-keys --round --revoke-old --why "the server was broken into"
    """
    if revoke_old != (why is not None):
        raise UsageError("--revoke-old and --why 'REASON' go together")
    configure_logging(quiet=True)
    from coordinator.config import RunFolder
    from coordinator.crowd.delegations import keep_delegations
    from coordinator.keys import KeyRing
    from ledger.log import Log
    from protocol.wire import records_pb2 as wire

    named = {
        wire.KEY_PURPOSE_ROUND: round_,
        wire.KEY_PURPOSE_LOG: log,
        wire.KEY_PURPOSE_TLS: tls,
        wire.KEY_PURPOSE_CAMPAIGN: campaign,
        wire.KEY_PURPOSE_TREASURER: treasurer,
    }
    folder = RunFolder(run_dir)
    with reader(run_dir) as (read, manifest):
        now_s = int(time.time())
        ring = KeyRing.load(
            folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s, checked=False
        )
        purposes = _chosen(named, ring)
        rotated = ring.rotated(
            folder.keys,
            purposes,
            now_s=now_s,
            valid_s=days * _DAY_S,
            since_s=read(_opened_at_s),
            why_revoked=why,
        )
        record = Log(manifest.origin, rotated.log)
        read(lambda session: keep_delegations(record, session, rotated, now_s))
        read(record.sign_head)
    words = [wire.KeyPurpose.Name(p).removeprefix("KEY_PURPOSE_").lower() for p in purposes]
    if as_json:
        print_json({"rotated": words, "revoked": revoke_old, "serving": folder.serving})
        return
    click.echo(f"new keys for: {', '.join(words)}, good for {days} days")
    if revoke_old:
        click.echo("the old ones are revoked: workers learn it when they next say hello")
    if folder.serving:
        click.echo("the server still uses the old ones: restart 'barnraise coordinator serve' now")
    click.echo(f"move {folder.keys / 'root.key'} back to its safe place")


def register(group: click.Group) -> None:
    """Add the command to ``barnraise coordinator``."""
    group.add_command(rotate_keys)


def _chosen(named: dict[wire.KeyPurpose, bool], ring: KeyRing) -> list[wire.KeyPurpose]:
    """The keys to make anew: those that are named, or all that there are."""
    from coordinator.key_files import CROWD_KEYS

    there = [purpose for purpose in named if purpose not in CROWD_KEYS or purpose in ring.crowd]
    chosen = [purpose for purpose in named if named[purpose]] or there
    if not set(chosen) <= set(there):
        raise UsageError("there is no such key in the folder: it is made at its first use")
    return chosen


def _opened_at_s(session: Session) -> int:
    """When the run's record began."""
    from ledger.log import read_leaves

    return int(json.loads(next(read_leaves(session, 0, 1)))["at_s"])
