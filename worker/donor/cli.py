"""``barnraise donor``: keys and devices; the other commands are in the ``cli_*`` modules here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from protocol.errors import UsageError
from worker.config import Home
from worker.delegation import day
from worker.donor import cli_certificate, cli_keys, cli_people, cli_pledges
from worker.donor.desk import Desk, Outcome, Refused, open_journal
from worker.donor.devices import DEFAULT_DAYS, MAX_DAYS, vouch_for
from worker.donor.home import DonorHome
from worker.donor.options import (
    HELP,
    Place,
    earlier_text,
    home_option,
    json_option,
    run_options,
)


@click.group(context_settings=HELP)
def cli() -> None:
    """What donors do besides training: one key for several devices, pledges, teams, a profile.

    \b
    Examples:
      barnraise donor init                          a key of your own, apart from the devices'
      barnraise worker join 'barnraise://...' --donor     this machine works for that key
      barnraise donor add-device PEERID             another machine does
      barnraise donor pledge 200 --by 2027-03-01    promise 200 credits of compute
      barnraise donor team join ID
      barnraise donor profile set --name Ada
    """


@cli.command()
@home_option
@json_option
def init(home: DonorHome, as_json: bool) -> None:
    """Make the donor's key, where there is none.

    Keep a copy of the key file in a safe place: whoever has it is you, and nobody can make it anew.

    \b
    Example:
      barnraise donor init
    """
    with home.held():
        made = not home.key.exists()
        identity = home.make_key(home.key)
    if as_json:
        click.echo(json.dumps({"donor": identity.peer_id, "key": str(home.key), "made": made}))
        return
    click.echo(f"{'Made the donor key' if made else 'The donor key is'} {identity.peer_id}")
    click.echo(f"It lies in {home.key}: keep a copy in a safe place.")
    if made:
        click.echo("Next: barnraise worker join LINK --donor, or barnraise donor add-device PEERID")


@cli.command()
@home_option
@json_option
def show(home: DonorHome, as_json: bool) -> None:
    """Show the key, the devices that work for it, and what was signed and not answered.

    \b
    Example:
      barnraise donor show --json
    """
    facts = _facts(home)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"donor    {facts['donor'] or 'no key yet: barnraise donor init'}")
    click.echo(f"folder   {facts['folder']}")
    if facts["run"]:
        click.echo(f"run      {facts['run']}")
    for device in facts["devices"]:
        click.echo(f"device   {device['worker']}, until {day(device['not_after_s'])}")
    for key in facts["former_keys"]:
        click.echo(f"before   {key}")
    for act in facts["unanswered"]:
        click.echo(f"to send  {act['act']}, signed {day(act['signed_at_s'])}")
    if facts["unanswered"]:
        click.echo("         -> barnraise donor send")


def _facts(home: DonorHome) -> dict[str, Any]:
    facts: dict[str, Any] = {"donor": None, "folder": str(home.path), "run": None}
    facts |= {"devices": [], "former_keys": [], "unanswered": []}
    if not home.path.exists():
        return facts
    with open_journal(home) as journal:
        devices, pending = journal.devices(), journal.pending()
        facts["run"] = journal.get("link")
        identity = home.load_key()
    facts["donor"] = identity.peer_id if identity else None
    facts["devices"] = [
        {"worker": d.worker, "donor": d.donor, "not_after_s": d.not_after_s, "line": d.line}
        for d in devices
    ]
    facts["former_keys"] = sorted(path.stem for path in home.retired.glob("*.key"))
    facts["unanswered"] = [{"act": a.kind, "signed_at_s": a.signed_at_s} for a in pending]
    return facts


@cli.command(name="add-device")
@click.argument("device", metavar="PEERID")
@home_option
@click.option(
    "--for",
    "days",
    type=click.IntRange(1, MAX_DAYS),
    default=DEFAULT_DAYS,
    show_default=True,
    metavar="DAYS",
    help="How long it may work for you.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the line to a file."
)
@click.option(
    "--current-key", is_flag=True, help="Sign with today's key though a former one did before."
)
@json_option
def add_device(
    device: str, home: DonorHome, days: int, out: Path | None, current_key: bool, as_json: bool
) -> None:
    """Sign that the device PEERID works for you; also renews. Prints one line for that device.

    The device takes it with 'barnraise worker delegation LINE'. Its PEERID is what 'worker join'
    calls "known as".

    \b
    Example:
      barnraise donor add-device 12D3KooW... --for 90
    """
    vouched = vouch_for(home, device, days, time.time(), current_key=current_key)
    if out is not None:
        try:
            out.write_text(vouched.line + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}") from error
    if as_json:
        facts = {
            "donor": vouched.donor,
            "worker": vouched.worker,
            "not_after_s": vouched.not_after_s,
            "line": vouched.line,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"The device works for {vouched.donor} until {day(vouched.not_after_s)}.", err=True)
    if out is not None:
        click.echo(f"On that device: barnraise worker delegation {out.name}", err=True)
    else:
        click.echo("On that device: barnraise worker delegation LINE, with this line:", err=True)
        click.echo(vouched.line)


@cli.command()
@run_options
def send(home: DonorHome, worker_home: Home, link: str | None, as_json: bool) -> None:
    """Hand in what was signed and not answered: the network failed, or the machine.

    \b
    Example:
      barnraise donor send
    """

    async def deliver(desk: Desk) -> list[Outcome | Refused]:
        await desk.hand_in_pending()
        answered, desk.earlier = desk.earlier, []
        return answered

    answers = Place(home, worker_home, link).at_desk(deliver)
    if as_json:
        click.echo(json.dumps([_answer(one) for one in answers], indent=2))
        return
    for one in answers:
        click.echo(earlier_text(one))
    if not answers:
        click.echo("Everything that was signed has been answered.")


def _answer(one: Outcome | Refused) -> dict[str, object]:
    if isinstance(one, Refused):
        return {"refused": str(one)}
    return {"act": one.kind, "leaf": one.leaf, "url": one.url, "message": one.said}


for _module in (cli_pledges, cli_people, cli_keys, cli_certificate):
    for _command in _module.COMMANDS:
        cli.add_command(_command)
