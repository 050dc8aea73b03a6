"""``barnraise coordinator campaign``: what the run is trained for, and how far that is."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import click

from coordinator.crowd.cli_options import (
    campaign_option,
    confirm,
    credits_option,
    day,
    find_campaign,
    json_option,
    money_option,
    plain,
    run_dir_option,
    time_option,
    yes_option,
)
from coordinator.terminal import print_json
from protocol.errors import UsageError

_MAX_NEWS_BYTES = 64 << 10
_WORDS = click.Choice(["continue", "close"])


@click.group()
def campaign() -> None:
    """Open, revise and close campaigns, and tell the news.

    Everything here is signed with the campaign's key and stays in the public record.

    \b
    Examples:
      barnraise coordinator campaign open --title "Winter run" --goal-credits 2500 --ends 2027-03-01
      barnraise coordinator campaign list
      barnraise coordinator campaign news --title "Half way" --text "Thank you all."
      barnraise coordinator campaign close 3f9a
    """


def _terms_options(command: Any) -> Any:
    for option in reversed(
        (
            click.option("--title", help="In one line."),
            click.option("--purpose", help="What the model is for."),
            click.option("--goal-credits", metavar="CREDITS", help="Verified compute to reach."),
            click.option("--goal-money", metavar="AMOUNT", help="Money to raise, with --currency."),
            click.option("--currency", metavar="CODE", help="Of --goal-money: EUR, USD, JPY ..."),
            click.option("--starts", metavar="DATE", help="UTC [default: now]."),
            click.option("--ends", metavar="DATE", help="UTC, that day included [default: never]."),
            click.option("--when-reached", type=_WORDS, help="[default: continue]"),
            click.option("--when-missed", type=_WORDS, help="[default: close]"),
            click.option(
                "--organiser", "organisers", multiple=True, help="As they call themselves."
            ),
            click.option("--reference-device", help="Device that GPU-hours are of."),
            click.option(
                "--reference-credits-per-hour", metavar="CREDITS", help="What it gives in an hour."
            ),
        )
    ):
        command = option(command)
    return command


@campaign.command("open")
@_terms_options
@run_dir_option
@json_option
def open_(run_dir: Path, as_json: bool, **options: Any) -> None:
    """Open a campaign. One besides the run's own may be open at a time.

    \b
    Examples:
      barnraise coordinator campaign open --title "Winter run" --purpose "A model of our
        dialect" --goal-credits 2500 --ends 2027-03-01
      barnraise coordinator campaign open --title Sprint --goal-credits 500 --goal-money 300
        --currency EUR --when-reached close --organiser "Ada" --organiser "The club"
    """
    from coordinator.crowd.campaign_terms import new_terms
    from coordinator.crowd.organiser import organise

    given = _given(options)
    if "title" not in given or "goal_microcredits" not in given:
        raise UsageError("a campaign has a --title and a goal, --goal-credits")
    with organise(run_dir) as run:
        record = new_terms(run, given)
        _write(run, record, as_json, f"campaign {record.campaign.hex()} is open")


@campaign.command()
@click.argument("campaign_id", metavar="ID")
@_terms_options
@run_dir_option
@json_option
def revise(campaign_id: str, run_dir: Path, as_json: bool, **options: Any) -> None:
    """Change terms of an open campaign. The earlier ones stay in the record.

    \b
    Example:
      barnraise coordinator campaign revise 3f9a --ends 2027-04-01 --goal-credits 3000
    """
    from coordinator.crowd.campaign_terms import revised_terms
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        name = find_campaign(run.board, campaign_id)
        record = revised_terms(run, name, _given(options))
        _write(run, record, as_json, f"campaign {name} has new terms, revision {record.revision}")


@campaign.command()
@click.argument("campaign_id", metavar="ID")
@run_dir_option
@json_option
@yes_option
def close(campaign_id: str, run_dir: Path, as_json: bool, yes: bool) -> None:
    """End a campaign now: what is credited from here on does not count for it.

    \b
    Example:
      barnraise coordinator campaign close 3f9a
    """
    from coordinator.crowd.organiser import organise
    from protocol.wire import records_pb2 as wire

    with organise(run_dir) as run:
        name = find_campaign(run.board, campaign_id)
        confirm(f"Close the campaign {name}?", yes)
        record = wire.CampaignEnd(
            run_id=run.run_id,
            campaign=bytes.fromhex(name),
            outcome="closed",
            at_s=int(run.now_s),
        )
        _write(run, record, as_json, f"campaign {name} is closed")


@campaign.command()
@click.option("--title", required=True, help="In one line.")
@click.option("--text", help="Plain text.")
@click.option(
    "--text-file", type=click.Path(path_type=Path, dir_okay=False), help="Instead of --text."
)
@campaign_option
@run_dir_option
@json_option
def news(
    title: str,
    text: str | None,
    text_file: Path | None,
    campaign: str | None,
    run_dir: Path,
    as_json: bool,
) -> None:
    """Tell everybody something; it is published beside the record, for ever.

    \b
    Examples:
      barnraise coordinator campaign news --title "Half way" --text "Thank you all."
      barnraise coordinator campaign news --title "A month" --text-file month.txt
    """
    from coordinator.crowd.acts_file import read_bounded
    from coordinator.crowd.organiser import organise
    from protocol.wire import records_pb2 as wire

    if (text is None) == (text_file is None):
        raise UsageError("give either --text or --text-file")
    if text_file is not None:
        try:
            text = read_bounded(text_file, _MAX_NEWS_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{text_file} is not UTF-8 text") from error
    with organise(run_dir) as run:
        record = wire.CampaignNews(
            run_id=run.run_id,
            campaign=bytes.fromhex(find_campaign(run.board, campaign)),
            news=secrets.token_bytes(16),
            title=title,
            text=text,
            at_s=int(run.now_s),
        )
        _write(run, record, as_json, "told")


@campaign.command("list")
@run_dir_option
@json_option
def list_(run_dir: Path, as_json: bool) -> None:
    """List campaigns, the run's own first.

    \b
    Example:
      barnraise coordinator campaign list --json
    """
    from coordinator.crowd.campaign_terms import describe
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        found = [describe(run, one) for one in run.board.campaigns.campaigns.values()]
    if as_json:
        print_json(found)
        return
    for one in found:
        click.echo(
            f"{one['campaign'][:12]}  {one['outcome'] or one['state']:<9}  "
            f"{one['permille'] / 10:5.1f} %  {day(one['ends_s']):<10}  {plain(one['title'])}"
        )


@campaign.command()
@click.argument("campaign_id", metavar="ID", required=False)
@run_dir_option
@json_option
def show(campaign_id: str | None, run_dir: Path, as_json: bool) -> None:
    """Show a campaign: its terms, and how far it is.

    \b
    Examples:
      barnraise coordinator campaign show
      barnraise coordinator campaign show 3f9a --json
    """
    from coordinator.crowd.campaign_terms import describe
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        name = find_campaign(run.board, campaign_id)
        found = describe(run, run.board.campaigns.campaigns[name])
    if as_json:
        print_json(found)
        return
    credit = {
        word: f"{_credits(found[f'{word}_microcredits'])} credits"
        for word in ("goal", "final", "pending", "pledged")
    }
    ends = day(found["ends_s"]) or "no end"
    click.echo(f"{plain(found['title'])}  ({found['campaign']})")
    click.echo(
        f"state      {found['outcome'] or found['state']}; {day(found['starts_s'])} to {ends}"
    )
    click.echo(f"goal       {credit['goal']}, {found['permille'] / 10:.1f} % verified")
    click.echo(f"verified   {credit['final']}")
    click.echo(f"pending    {credit['pending']}")
    click.echo(f"pledged    {credit['pledged']}")
    money = ", ".join(found["raised"]) or "none"
    goal_money = f" of {found['goal_money']}" if found["goal_money"] else ""
    click.echo(f"money      {money}{goal_money}, {found['donations']} donations")


def _credits(microcredits: int) -> str:
    """To the unit, without zeros at the end: ``2,500``, ``0.000043``."""
    from ledger.credit import MICROCREDITS_PER_CREDIT

    whole, part = divmod(microcredits, MICROCREDITS_PER_CREDIT)
    return f"{whole:,}.{part:06d}".rstrip("0").removesuffix(".")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of the record, from the options that were given."""
    fields: dict[str, Any] = {
        name: options[name]
        for name in ("title", "purpose", "when_reached", "when_missed", "reference_device")
        if options[name] is not None
    }
    if options["goal_credits"] is not None:
        fields["goal_microcredits"] = credits_option(options["goal_credits"])
    if options["goal_money"] is not None:
        minor, currency = money_option(options["goal_money"], options["currency"])
        fields |= {"goal_minor": minor, "currency": currency}
    elif options["currency"] is not None:
        raise UsageError("--currency goes with --goal-money")
    if options["starts"] is not None:
        fields["starts_s"] = time_option(options["starts"])
    if options["ends"] is not None:
        fields["ends_s"] = time_option(options["ends"], end_of_day=True)
    if options["organisers"]:
        fields["organisers"] = list(options["organisers"])
    if options["reference_credits_per_hour"] is not None:
        rate = credits_option(options["reference_credits_per_hour"])
        fields["reference_microcredits_per_hour"] = rate
    return fields


def _write(run: Any, record: Any, as_json: bool, words: str) -> None:
    from protocol.wire import records_pb2 as wire

    (recorded,) = run.record([run.sign(record, run.signer(wire.KEY_PURPOSE_CAMPAIGN))])
    if as_json:
        print_json({"campaign": record.campaign.hex(), "leaf_index": recorded.leaf_index})
        return
    click.echo(f"{words}: leaf {recorded.leaf_index} of the public record")


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    group.add_command(campaign)
