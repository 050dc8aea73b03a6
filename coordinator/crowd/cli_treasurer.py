"""``barnraise coordinator treasurer``: whose word counts about money, and signing it elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from coordinator.crowd.cli_donations import echo_plan, payment_options, read_payments
from coordinator.crowd.cli_options import (
    confirm,
    day,
    json_option,
    key_option,
    run_dir_option,
    yes_option,
)
from coordinator.terminal import print_json
from protocol.errors import UsageError

_file = click.Path(path_type=Path, dir_okay=False)
_days_option = click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650))


@click.group()
def treasurer() -> None:
    """Say whose word counts about money that arrived; sign such words on another machine.

    An organiser who is the treasurer needs none of this: 'donations add' and 'donations import'
    make the key when it is first needed.

    \b
    Examples:
      barnraise coordinator treasurer new-key treasurer.key          # the treasurer, once
      barnraise coordinator treasurer appoint 12D3KooW...            # the organiser
      barnraise coordinator treasurer sign export.csv --key treasurer.key --link 'barnraise://...'
        --out march.json                                             # the treasurer
      barnraise coordinator donations add march.json                 # the organiser
    """


@treasurer.command("new-key")
@click.argument("file", type=_file)
@json_option
def new_key(file: Path, as_json: bool) -> None:
    """Make a treasurer's key, on the treasurer's machine. Needs no run folder.

    \b
    Example:
      barnraise coordinator treasurer new-key treasurer.key
    """
    from protocol.identity import Identity

    key = Identity.generate()
    key.save(file)
    if as_json:
        print_json({"key": key.peer_id, "file": str(file)})
        return
    click.echo(key.peer_id)
    click.echo(f"\n{file} is secret: keep it, and a copy, where nobody else can read it.")
    click.echo("Tell the organiser the id above, over a way that nobody can forge.")


@treasurer.command()
@click.argument("key", metavar="KEY")
@_days_option
@run_dir_option
@json_option
def appoint(key: str, days: int, run_dir: Path, as_json: bool) -> None:
    """Have the root key vouch for a treasurer's KEY; needs keys/root.key for a moment.

    Again for the same key, it lengthens the time.

    \b
    Example:
      barnraise coordinator treasurer appoint 12D3KooW... --days 365
    """
    from coordinator.crowd.organiser import organise
    from protocol.wire import records_pb2 as wire

    public = key_option(key)
    with organise(run_dir) as run:
        run.appoint(wire.KEY_PURPOSE_TREASURER, public, days=days)
        run.record()
        until_s = int(run.now_s) + days * 24 * 3600
    if as_json:
        print_json({"key": public.peer_id, "until_s": until_s})
        return
    click.echo(f"{public.peer_id} is a treasurer of this run until {day(until_s)}")
    click.echo(f"move {run.folder.keys / 'root.key'} back to its safe place")


@treasurer.command()
@click.argument("key", metavar="KEY")
@click.option("--why", required=True, metavar="TEXT", help="Published with it.")
@run_dir_option
@json_option
@yes_option
def dismiss(key: str, why: str, run_dir: Path, as_json: bool, yes: bool) -> None:
    """Believe a treasurer's KEY no more; what it signed until now stands.

    \b
    Example:
      barnraise coordinator treasurer dismiss 12D3KooW... --why "a new treasurer was elected"
    """
    from coordinator.crowd.organiser import organise

    public = key_option(key)
    with organise(run_dir) as run:
        confirm(f"Dismiss {public.peer_id}?", yes)
        run.ring = run.ring.dismissed(run.folder.keys, public, why)
        run.record()
    if as_json:
        print_json({"key": public.peer_id, "dismissed": True})
        return
    click.echo(f"{public.peer_id} is a treasurer no more")


@treasurer.command("list")
@run_dir_option
@json_option
def list_(run_dir: Path, as_json: bool) -> None:
    """List the treasurers' keys that the root key vouches for.

    \b
    Example:
      barnraise coordinator treasurer list
    """
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        found = _treasurers(run)
    if as_json:
        print_json(found)
        return
    for one in found:
        click.echo(f"{one['key']}  until {day(one['until_s'])}  {one['state']}")
    if not found:
        click.echo("nobody is a treasurer")


def _treasurers(run: Any) -> list[dict[str, Any]]:
    from coordinator.delegating import opened
    from protocol.identity import PublicKey
    from protocol.wire import records_pb2 as wire

    purpose = wire.KEY_PURPOSE_TREASURER
    until: dict[bytes, int] = {}
    for record in opened(run.ring.delegations):
        if record.purpose == purpose:
            until[record.public_key] = max(record.not_after_s, until.get(record.public_key, 0))
    here = run.ring.crowd.get(purpose)
    found = []
    for raw, until_s in until.items():
        key = PublicKey(raw)
        believed = run.is_believed(purpose, key)
        state = "believed" if believed else "not believed any more"
        is_here = here is not None and here.public == key
        found.append({"key": key.peer_id, "until_s": until_s, "state": state, "here": is_here})
    return found


@treasurer.command()
@click.argument("file", metavar="[EXPORT]", type=_file, required=False)
@click.option("--key", "key_file", type=_file, required=True, help="The treasurer's key.")
@click.option("--link", required=True, help="The run's join link: it names the run.")
@click.option("--campaign", metavar="ID", help="All of its id [default: the run's own].")
@click.option("--void", "leaf", type=click.IntRange(0), help="Make an earlier leaf void instead.")
@click.option("--reason", default="refunded", show_default=True, help="With --void: one word.")
@click.option("--out", type=_file, required=True, help="The file to make, for the organiser.")
@payment_options
@json_option
def sign(
    file: Path | None,
    key_file: Path,
    link: str,
    campaign: str | None,
    leaf: int | None,
    reason: str,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Sign donations, on the treasurer's machine. Needs no run folder and no network.

    Either an EXPORT of Open Collective, or one payment by --amount, --currency and --reference.
    The organiser records the file with 'donations add'; what is recorded already is left out there.

    \b
    Examples:
      barnraise coordinator treasurer sign export.csv --key treasurer.key --link 'barnraise://...'
        --out march.json
      barnraise coordinator treasurer sign --amount 50 --currency EUR --reference bank:2027-03-04/7
        --key treasurer.key --link 'barnraise://...' --out bank.json
      barnraise coordinator treasurer sign --void 1234 --reason mistake --key treasurer.key
        --link 'barnraise://...' --out void.json
    """
    from coordinator.crowd.acts_file import write_acts
    from coordinator.crowd.donations import Books, Plan, sign_void
    from protocol.identity import Identity
    from protocol.link import JoinLink

    key = Identity.load(key_file)
    run_id = JoinLink.parse(link).run_id
    books = Books(run_id, _campaign(run_id, campaign), options["pool"] or "")
    plan = Plan()
    if leaf is not None:
        acts = [sign_void(run_id, leaf, reason, key)]
    else:
        plan = read_payments(file, options, [], key, books, int(time.time()))
        acts = plan.sign(books, key)
    write_acts(out, run_id, acts)
    if as_json:
        print_json({"file": str(out), "acts": len(acts), "signer": key.peer_id})
        return
    echo_plan(plan)
    click.echo(f"{out}: {len(acts)} acts signed by {key.peer_id}")


def _campaign(run_id: bytes, given: str | None) -> bytes:
    if given is None:
        return run_id[:16]
    try:
        campaign = bytes.fromhex(given)
    except ValueError:
        campaign = b""
    if len(campaign) != 16:
        raise UsageError("give the whole id of the campaign, 32 characters")
    return campaign


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    group.add_command(treasurer)
