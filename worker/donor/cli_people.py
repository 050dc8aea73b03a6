"""``barnraise donor team`` and ``barnraise donor profile``: whom one gives with, and as whom."""

from __future__ import annotations

import json

import click

from protocol.errors import UsageError
from protocol.wire import records_pb2 as wire
from worker.config import Home, WorkerConfig
from worker.donor import acts
from worker.donor.desk import Desk, Outcome, open_journal
from worker.donor.home import DonorHome
from worker.donor.options import (
    HELP,
    Place,
    confirm,
    home_option,
    json_option,
    run_options,
    show,
    yes_option,
)
from worker.donor.profiles import (
    check_profile,
    founded_teams,
    newest_profile,
    profile_acts,
    profile_row,
    team_now,
    unnamed_team,
)


@click.group(context_settings=HELP)
def team() -> None:
    """Give together: credit counts for the team that you are of when it is recorded.

    \b
    Examples:
      barnraise donor team found 'Barn owls'
      barnraise donor team join 0123456789abcdef0123456789abcdef
    """


@team.command()
@click.argument("name")
@run_options
def found(name: str, home: DonorHome, worker_home: Home, link: str | None, as_json: bool) -> None:
    """Found a team called NAME and join it. Its name can be changed and erased by you alone.

    \b
    Example:
      barnraise donor team found 'Barn owls'
    """
    check_profile(wire.ProfileUpdate(display_name=name))

    async def begin(desk: Desk) -> tuple[Outcome, bytes]:
        # 1. The team, unless an interrupted command founded it.
        outcome = unnamed_team(desk.journal, name)
        if outcome is None:
            done = await desk.perform(acts.founding(desk.run_id, desk.signer, name))
            outcome = wire.TeamFounding.FromString(done.envelope.payload).team
        # 2. Its name, and 3. its founder.
        named = wire.ProfileUpdate(team=outcome, display_name=name)
        await desk.perform(acts.profile(desk.run_id, desk.signer, named))
        return await desk.perform(acts.membership(desk.run_id, desk.signer, outcome)), outcome

    outcome, made = Place(home, worker_home, link).at_desk(begin)
    text = f"Founded {name!r} and joined it. Others join with:\n  barnraise donor team join "
    show(outcome, text + made.hex(), as_json=as_json, team=made.hex())


@team.command()
@click.argument("team_id", metavar="ID")
@run_options
def join(team_id: str, home: DonorHome, worker_home: Home, link: str | None, as_json: bool) -> None:
    """Be of a team from here on; you leave the one you were of.

    \b
    Example:
      barnraise donor team join 0123456789abcdef0123456789abcdef
    """
    wanted = acts.parse_id(team_id, "team")

    async def enter(desk: Desk) -> Outcome:
        return await desk.perform(acts.membership(desk.run_id, desk.signer, wanted))

    outcome = Place(home, worker_home, link).at_desk(enter)
    show(outcome, "You are of that team from here on.", as_json=as_json, team=wanted.hex())


@team.command()
@run_options
def leave(home: DonorHome, worker_home: Home, link: str | None, as_json: bool) -> None:
    """Be of no team from here on. What was counted for the team stays with it.

    \b
    Example:
      barnraise donor team leave
    """

    async def go(desk: Desk) -> Outcome:
        return await desk.perform(acts.membership(desk.run_id, desk.signer, b""))

    outcome = Place(home, worker_home, link).at_desk(go)
    show(outcome, "You are of no team from here on.", as_json=as_json, team=None)


@team.command(name="show")
@home_option
@json_option
def show_team(home: DonorHome, as_json: bool) -> None:
    """Show the team that you are of and those that you founded, by what was done on this machine.

    \b
    Example:
      barnraise donor team show
    """
    with open_journal(home) as journal:
        now, teams = team_now(journal), founded_teams(journal)
    if as_json:
        click.echo(json.dumps({"team": now, "founded": teams}, indent=2))
        return
    click.echo(f"of team  {now}" if now else "of no team")
    for team_id, name in teams.items():
        click.echo(f"founded  {team_id}  {name}")


@click.group(context_settings=HELP)
def profile() -> None:
    """What the site shows of you beside your key. It is not in the record, and can be erased.

    \b
    Examples:
      barnraise donor profile set --name Ada --url https://ada.example.org
      barnraise donor profile erase
    """


@profile.command(name="show")
@home_option
@json_option
def show_profile(home: DonorHome, as_json: bool) -> None:
    """Show the profile that was set on this machine.

    \b
    Example:
      barnraise donor profile show
    """
    with open_journal(home) as journal:
        row = profile_row(newest_profile(journal, b""))
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    for name, value in row.items():
        click.echo(f"{name:<13} {value}")


@profile.command(name="set")
@run_options
@click.option("--name", help="What you want to be called.")
@click.option("--url", help="A page of yours, http or https.")
@click.option("--about", help="A few words.")
@click.option("--show-devices/--no-show-devices", default=None, help="List your devices.")
@click.option("--team", "team_id", metavar="ID", help="Of a team that you founded, instead.")
def set_profile(
    home: DonorHome,
    worker_home: Home,
    link: str | None,
    as_json: bool,
    name: str | None,
    url: str | None,
    about: str | None,
    show_devices: bool | None,
    team_id: str | None,
) -> None:
    """Change what the site shows of you. What you do not give stays as it was.

    \b
    Example:
      barnraise donor profile set --name Ada --show-devices
    """
    given = {"display_name": name, "url": url, "about": about, "show_devices": show_devices}
    changes = {key: value for key, value in given.items() if value is not None}
    if not changes:
        raise UsageError("nothing to change: see 'barnraise donor profile set --help'")
    subject = acts.parse_id(team_id, "team") if team_id else b""

    async def tell(desk: Desk) -> Outcome:
        shown = newest_profile(desk.journal, subject)
        if not shown.display_name and not subject:
            shown.display_name = _worker_name(worker_home)
        for key, value in changes.items():
            setattr(shown, key, value)
        check_profile(shown)
        return await desk.perform(acts.profile(desk.run_id, desk.signer, shown))

    outcome = Place(home, worker_home, link).at_desk(tell)
    row = profile_row(wire.ProfileUpdate.FromString(outcome.envelope.payload))
    text = "\n".join(f"{key:<13} {value}" for key, value in row.items())
    show(outcome, text, as_json=as_json, profile=row)


@profile.command()
@run_options
@yes_option
@click.option("--team", "team_id", metavar="ID", help="Of a team that you founded, instead.")
def erase(
    home: DonorHome,
    worker_home: Home,
    link: str | None,
    as_json: bool,
    yes: bool,
    team_id: str | None,
) -> None:
    """Have the site forget name, page and words. Credit stays, under the key alone.

    Copies that others made of the site are asked to forget them too; nobody can make them.

    \b
    Example:
      barnraise donor profile erase
    """
    subject = acts.parse_id(team_id, "team") if team_id else b""
    confirm("Erase the profile, on the site and on this machine?", yes=yes)

    async def forget(desk: Desk) -> Outcome:
        gone = wire.ProfileUpdate(team=subject, erase=True)
        outcome = await desk.perform(acts.profile(desk.run_id, desk.signer, gone))
        desk.journal.forget(profile_acts(desk.journal, subject))
        if not subject:
            _forget_name(worker_home)
        return outcome

    outcome = Place(home, worker_home, link).at_desk(forget)
    show(outcome, "Erased.", as_json=as_json)


def _worker_name(worker_home: Home) -> str:
    """The name that the worker brought when it joined."""
    return WorkerConfig.load(worker_home.config).name if worker_home.config.exists() else ""


def _forget_name(worker_home: Home) -> None:
    """The worker tells its name whenever it starts: it would be back."""
    if worker_home.config.exists():
        config = WorkerConfig.load(worker_home.config)
        if config.name:
            config.with_options(name="").save(worker_home.config)


COMMANDS = (team, profile)
