"""``join``: look at a run, agree, write the configuration; ``move``: follow it elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.errors import UsageError
from worker.commands.options import (
    given_limits,
    home_option,
    home_words,
    json_option,
    limit_options,
    run_async,
    show,
)
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, ask
from worker.limit_texts import LIMITS, limit_from_text, limit_text
from worker.limits import Limits
from worker.machine import look_at_machine
from worker.settings import settings_lock

if TYPE_CHECKING:  # loads gRPC
    from worker.join import Offer


@click.command()
@click.argument("link")
@home_option
@click.option("--name", help="Display name for the leaderboard; can be erased.")
@click.option("--device", help="auto, cpu, mps, cuda, or one GPU: cuda:1 [default: auto].")
@click.option("--devices", help="Several, each with a key and a daemon: cuda:0,cuda:1, or all.")
@click.option(
    "--client-mode/--no-client-mode",
    default=None,
    help="Never/always tell others to connect to this machine [default: as measured].",
)
@click.option("--listen", multiple=True, help="Multiaddress to listen on; may be repeated.")
@click.option(
    "--nat-port-map",
    is_flag=True,
    default=None,
    help="Ask the router for a port (UPnP, NAT-PMP).",
)
@click.option(
    "--micro-batch",
    "micro_batch_sequences",
    type=click.IntRange(0),
    metavar="N",
    help="Sequences to compute at a time; 0: as this machine is measured.",
)
@click.option("--invite", metavar="TOKEN", help="The organiser's invitation, if it takes one.")
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Be the device of this key, as 'worker export-key' wrote it.",
)
@click.option("--donor", "for_donor", is_flag=True, help="Work for this machine's donor key.")
@click.option("--dedicated", is_flag=True, help="Propose no limits: nobody else uses this machine.")
@click.option("--yes", is_flag=True, help="Agree without being asked.")
@json_option
@limit_options
def join(
    link: str,
    home: Home,
    key: Path | None,
    for_donor: bool,
    dedicated: bool,
    yes: bool,
    as_json: bool,
    name: str | None,
    device: str | None,
    devices: str | None,
    client_mode: bool | None,
    listen: tuple[str, ...],
    nat_port_map: bool | None,
    micro_batch_sequences: int | None,
    invite: str | None,
    **limits: Any,
) -> None:
    """Join the run of a LINK: make a key, look at the run, agree. Starts nothing.

    Limits are proposed that suit this machine; options say others, and 'worker limits' changes
    them later. Without a terminal and without --yes the run is joined, but the worker does
    nothing until somebody agrees with 'barnraise worker resume'.

    \b
    Examples:
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT' --name Ada
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT' --donor
      barnraise worker join 'barnraise://...' --schedule 'mon-fri 22:00-07:00' --threads 4
      barnraise worker join 'barnraise://...' --yes --dedicated --json
    """
    settings = {
        "name": name,
        "device": device,
        "devices": _several(devices),
        "client_mode": client_mode,
        "listen": listen or None,
        "nat_port_map": nat_port_map,
        "micro_batch_sequences": micro_batch_sequences,
        "invite": invite,
    }
    proposal = Limits() if dedicated else look_at_machine(home.path, os.environ).proposal()
    config = _joined_before(home, link, proposal).with_options(**settings)
    config = config.with_limits(**given_limits(limits))
    consent = partial(_consent, home, yes=yes, quiet=as_json, asks_name=name is None)
    offer = enter(home, config, consent, key=key)
    if offer.config.devices:
        _make_members(home, offer.config, yes=yes, quiet=as_json)
    elif for_donor:
        _work_for_neighbour(home, offer, quiet=as_json)
    _tell(home, offer, as_json=as_json)


def _several(devices: str | None) -> tuple[str, ...] | None:
    if devices is None:
        return None
    from worker.members import parse_devices

    return parse_devices(devices)


def _make_members(home: Home, config: WorkerConfig, *, yes: bool, quiet: bool) -> None:
    """A folder and a key for each device, under this machine's donor key."""
    from worker.donor.home import resolve_donor_home
    from worker.members import vouch_for_members, write_members

    donor = resolve_donor_home(None, os.environ)
    if not donor.key.exists() and not yes and sys.stdin.isatty():
        text = f"\nSeveral devices give under one donor key. Make one in {donor.path}?"
        if not click.confirm(text, default=True, err=quiet):
            raise UsageError(
                "several devices need a donor key: 'barnraise donor init', then join again"
            )
    members = write_members(home, config)
    for name, worker in vouch_for_members(members, os.environ).items():
        click.echo(f"  {name:<10} {worker}", err=quiet)


def _joined_before(home: Home, link: str, proposal: Limits) -> WorkerConfig:
    """What an earlier ``join`` wrote, with this link; else the beginning of a new one."""
    if not home.config.exists():
        return WorkerConfig(link=link, limits=proposal, confirmed=False)
    before = WorkerConfig.load(home.config)
    fresh = WorkerConfig(link=link)
    # Another run's folder is refused, with its reason, where the run is looked at.
    same = before.join_link.run_id == fresh.join_link.run_id
    return before.with_options(link=link) if same else fresh


def enter(
    home: Home,
    config: WorkerConfig,
    consent: Callable[[Offer], WorkerConfig | None],
    *,
    key: Path | None = None,
) -> Offer:
    """Look at the run, get the owner's word, and write the settings.

    Args:
        home: where; what this made there is removed if the owner says no.
        config: with which settings to ask.
        consent: told what the run is, gives the settings to join with; None: the answer is no.
        key: file of a key to be used instead of a new one.

    Raises:
        UsageError: the owner says no, or see :func:`worker.join.look_at_run`.
    """
    from worker.join import look_at_run, take_key

    made_here = not home.path.exists()
    if key is not None:
        take_key(home, key)
    offer = run_async(look_at_run(home, config))
    agreed = consent(offer)
    if agreed is None:
        if made_here:
            shutil.rmtree(home.path)
        raise UsageError("not joined; nothing was started")
    with settings_lock(home):
        agreed.save(home.config)
    with suppress(NotRunning):
        ask(home, "reload")
    return replace(offer, config=agreed)


def _consent(
    home: Home, offer: Offer, *, yes: bool, quiet: bool, asks_name: bool
) -> WorkerConfig | None:
    """What the owner says, by an option or at the terminal; who says nothing has not agreed yet."""
    from worker.join import describe

    click.echo(describe(offer, home), err=quiet)
    if yes:
        return replace(offer.config, confirmed=True)
    if sys.stdin.isatty():
        return _ask_owner(home, offer, quiet=quiet, asks_name=asks_name and not offer.config.name)
    return offer.config


def _ask_owner(home: Home, offer: Offer, *, quiet: bool, asks_name: bool) -> WorkerConfig | None:
    """The settings that the owner agrees to; None: the answer is no."""
    from worker.join import describe_gift

    config = offer.config
    if asks_name:
        config = click.prompt(
            "\nName for the leaderboard (Enter: none)",
            default="",
            show_default=False,
            err=quiet,
            value_proc=partial(_value, lambda text: offer.config.with_options(name=text.strip())),
        )
    while True:
        answer = click.prompt(
            "\nJoin this run, and give that? (y: yes, n: no, c: change the limits)",
            type=click.Choice(["y", "n", "c"], case_sensitive=False),
            show_choices=False,
            default="n",
            err=quiet,
        )
        if answer != "c":
            return replace(config, confirmed=True) if answer == "y" else None
        config = replace(config, limits=_ask_limits(config.limits, quiet=quiet))
        click.echo("\n" + "\n".join(describe_gift(config, home)), err=quiet)


def _ask_limits(limits: Limits, *, quiet: bool) -> Limits:
    click.echo("Enter keeps what stands in brackets; 0 is no limit of yours.", err=quiet)
    values = {}
    for name, limit in LIMITS.items():
        values[name] = click.prompt(
            f"{name}: {limit.metadata['says']}",
            default=limit_text(getattr(limits, name)),
            err=quiet,
            value_proc=partial(_value, partial(limit_from_text, name)),
        )
    return Limits(**values)


def _value(read: Callable[[str], Any], text: str) -> Any:
    """Let click ask again after what cannot be read."""
    try:
        return read(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def _work_for_neighbour(home: Home, offer: Offer, *, quiet: bool) -> None:
    from worker.delegation import keep
    from worker.donor.devices import vouch_for_neighbour

    vouched = vouch_for_neighbour(offer.worker, os.environ)
    keep(home, vouched, offer.worker)
    click.echo(f"\nThis machine works for the donor {vouched.donor}.", err=quiet)
    if offer.config.name:
        click.echo("Your name is the donor's: barnraise donor profile set --name NAME", err=quiet)


def _tell(home: Home, offer: Offer, *, as_json: bool) -> None:
    config, where = offer.config, home_words(home)
    facts = {
        "run": config.join_link.run_id.hex(),
        "run_name": offer.manifest.name,
        "worker": offer.worker,
        "home": str(home.path),
        "name": config.name,
        "confirmed": config.confirmed,
        "limits": asdict(config.limits),
        "leaderboard": offer.public_url,
    }
    if config.confirmed:
        text = f"\nJoined. Start with: barnraise worker run{where}"
    else:
        text = (
            "\nJoined, but there was nobody here to agree: the worker does nothing until\n"
            f"somebody does, with: barnraise worker resume{where}"
        )
    show(facts, text, as_json=as_json)


@click.command()
@click.argument("link")
@home_option
@json_option
def move(link: str, home: Home, as_json: bool) -> None:
    """Follow the run to another address: its new LINK has the same run and root key.

    Key, receipts and settings stay. Restart the worker afterwards.

    \b
    Example:
      barnraise worker move 'barnraise://new-host:7443/RUN_ID#root=FINGERPRINT'
    """
    from worker.join import move as follow

    address = run_async(follow(home, link)).join_link.address
    text = f"Moved to {address}. Start again with: barnraise worker run{home_words(home)}"
    show({"address": address}, text, as_json=as_json)
