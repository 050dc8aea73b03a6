"""``barnraise donor pledge`` and what follows it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click

from protocol.errors import UsageError
from protocol.wire import records_pb2 as wire
from worker.config import Home
from worker.donor import acts
from worker.donor.acts import visibility_of
from worker.donor.amounts import (
    end_of_day_s,
    in_credits,
    last_day,
    microcredits,
    parse_amount,
)
from worker.donor.campaigns import default_campaign, reference_device
from worker.donor.desk import Desk, Outcome, open_journal
from worker.donor.home import DonorHome
from worker.donor.options import Place, home_option, json_option, run_options, show
from worker.donor.pledges import (
    OwnPledge,
    current_key,
    find_pledge,
    own_pledges,
    read_shown,
    show_file,
)


@click.command()
@click.argument("amount")
@run_options
@click.option("--gpu-hours", is_flag=True, help="AMOUNT is hours of the campaign's device.")
@click.option("--by", "by_day", required=True, metavar="DATE", help="Last day, as 2027-03-01.")
@click.option(
    "--visibility",
    type=click.Choice(acts.VISIBILITIES),
    help="Who may see it: all; the amount without you; or only its share of the sum "
    "[default: public].",
)
@click.option("--campaign", metavar="ID", help="Campaign [default: the run's own].")
@click.option("--revise", metavar="PLEDGE", help="Change this pledge of yours instead.")
def pledge(
    amount: str,
    home: DonorHome,
    worker_home: Home,
    link: str | None,
    as_json: bool,
    gpu_hours: bool,
    by_day: str,
    visibility: acts.Visibility | None,
    campaign: str | None,
    revise: str | None,
) -> None:
    """Promise compute: AMOUNT credits, or GPU-hours, to be given by a day.

    What your devices are credited from now on delivers it. A pledge can be changed and withdrawn,
    and both stay to be seen. It keeps its campaign and its visibility.

    \b
    Examples:
      barnraise donor pledge 200 --by 2027-03-01
      barnraise donor pledge 200 --gpu-hours --by 2027-03-01 --visibility private
      barnraise donor pledge 300 --by 2027-03-01 --revise 5f0c
    """
    value = parse_amount(amount)

    async def make(desk: Desk) -> tuple[Outcome, str]:
        until_s = end_of_day_s(by_day, desk.now_s())
        known = find_pledge(desk.journal, revise) if revise else None
        where = known.record.campaign if known else default_campaign(desk.run_id)
        if campaign is not None:
            where = acts.parse_id(campaign, "campaign")
        promised, what = microcredits(value), ""
        if gpu_hours:
            device = await reference_device(desk.greeting.public_url, where)
            promised = microcredits(value, device.microcredits_per_hour)
            what = f"{amount} hours of {device.name}, that is "
        if known is None:
            draft = acts.pledge(
                desk.run_id,
                where,
                desk.signer,
                microcredits=promised,
                until_s=until_s,
                visibility=visibility or "public",
            )
        elif (where, visibility or visibility_of(known.record)) != _kept(known):
            raise UsageError(
                "a pledge keeps its campaign and its visibility: withdraw it and make another"
            )
        else:
            draft = _revision(desk, known, microcredits=promised, until_s=until_s)
        return await desk.perform(draft), what

    outcome, what = Place(home, worker_home, link).at_desk(make)
    record = wire.Pledge.FromString(outcome.envelope.payload)
    show(
        outcome,
        f"Pledged {what}{in_credits(record.microcredits)}, by {last_day(record.until_s)}.\n"
        f"Its id is {record.pledge.hex()}",
        as_json=as_json,
        pledge=record.pledge.hex(),
        microcredits=record.microcredits,
        until_s=record.until_s,
    )


def _kept(known: OwnPledge) -> tuple[bytes, str]:
    return known.record.campaign, visibility_of(known.record)


def _revision(desk: Desk, known: OwnPledge, **changes: int) -> acts.Draft:
    """Signed by the key that stands for the pledge's donor now."""
    signer = desk.identity(current_key(desk.journal, known.act.signer))
    return acts.revised(known.record, signer, **changes)


@click.command()
@click.argument("pledge_id", metavar="PLEDGE")
@run_options
def withdraw(
    pledge_id: str, home: DonorHome, worker_home: Home, link: str | None, as_json: bool
) -> None:
    """Withdraw a pledge, by its id or the beginning of it. What was delivered stays yours.

    \b
    Example:
      barnraise donor withdraw 5f0c
    """

    async def end(desk: Desk) -> Outcome:
        known = find_pledge(desk.journal, pledge_id)
        if not known.record.microcredits:
            raise UsageError(f"the pledge {known.id} was withdrawn before")
        return await desk.perform(_revision(desk, known, microcredits=0))

    outcome = Place(home, worker_home, link).at_desk(end)
    record = wire.Pledge.FromString(outcome.envelope.payload)
    show(outcome, "Withdrawn.", as_json=as_json, pledge=record.pledge.hex())


@click.command()
@home_option
@json_option
def pledges(home: DonorHome, as_json: bool) -> None:
    """List the pledges that were made on this machine, private and secret ones too.

    \b
    Example:
      barnraise donor pledges --json
    """
    with open_journal(home) as journal:
        found = own_pledges(journal)
    if as_json:
        click.echo(json.dumps([one.row() for one in found], indent=2))
        return
    for one in found:
        click.echo(one.text())
    if not found:
        click.echo("No pledges yet: barnraise donor pledge --help")


@click.command()
@click.argument("pledge_id", metavar="PLEDGE")
@home_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write and to hand to somebody.",
)
def reveal(pledge_id: str, home: DonorHome, out: Path) -> None:
    """Write a file that shows whose a private or secret PLEDGE is. Who has it can check it.

    \b
    Example:
      barnraise donor reveal 5f0c --out pledge.json
    """
    with open_journal(home) as journal:
        found = find_pledge(journal, pledge_id)
    try:
        out.write_text(show_file(found) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    click.echo(f"{out} shows that leaf {found.act.leaf} is yours. Who has the file can:")
    click.echo(f"  barnraise donor revealed {out.name}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def revealed(file: Path, as_json: bool) -> None:
    """Check a FILE that somebody's 'donor reveal' wrote: whose pledge, and of which leaf.

    \b
    Example:
      barnraise donor revealed pledge.json
    """
    signed, leaf = read_shown(file)
    digest = hashlib.sha256(signed.envelope.payload).hexdigest()
    if as_json:
        facts = {"donor": signed.signer, "record_digest": digest, "leaf": leaf}
        facts |= {"microcredits": signed.record.microcredits, "until_s": signed.record.until_s}
        click.echo(json.dumps(facts, indent=2))
        return
    record = signed.record
    click.echo(f"{signed.signer} pledged {in_credits(record.microcredits)}")
    click.echo(f"by {last_day(record.until_s)}, if the record's leaf {leaf} has record_digest")
    click.echo(digest)


COMMANDS = (pledge, pledges, withdraw, reveal, revealed)
