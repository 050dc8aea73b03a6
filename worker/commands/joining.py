"""``join``: look at a run, agree, write the configuration; ``move``: follow it elsewhere."""

from __future__ import annotations

import os

import click

from protocol.errors import UsageError
from worker.commands.options import home_option, run_async
from worker.config import Home, WorkerConfig, resolve_home
from worker.limits import Limits


@click.command()
@click.argument("link")
@home_option
@click.option("--name", default="", help="Display name for the leaderboard; can be erased.")
@click.option("--threads", type=click.IntRange(1), help="Processor threads [default: all but one].")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)
@click.option(
    "--client-mode/--no-client-mode",
    default=None,
    help="Never/always tell others to connect to this machine [default: as measured].",
)
@click.option("--listen", multiple=True, help="Multiaddress to listen on; may be repeated.")
@click.option("--nat-port-map", is_flag=True, help="Ask the router for a port (UPnP, NAT-PMP).")
@click.option("--invite", metavar="TOKEN", help="The organiser's invitation, if it takes one.")
@click.option("--donor", "for_donor", is_flag=True, help="Work for this machine's donor key.")
@click.option("--yes", is_flag=True, help="Agree without being asked.")
def join(
    link: str,
    home: Home,
    name: str,
    threads: int | None,
    device: str,
    client_mode: bool | None,
    listen: tuple[str, ...],
    nat_port_map: bool,
    invite: str | None,
    for_donor: bool,
    yes: bool,
) -> None:
    """Join the run of a LINK: make a key, look at the run, agree. Starts nothing.

    \b
    Examples:
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT' --name Ada
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT' --donor
    """
    from worker.join import describe

    config = WorkerConfig(link=link, limits=Limits(threads=threads or 0), name=name).with_options(
        device=device,
        client_mode=client_mode,
        listen=listen or None,
        nat_port_map=nat_port_map,
        invite=invite,
    )
    offer = run_async(look_at_run(home, config))
    click.echo(describe(offer, home))
    if not yes and not click.confirm("\nJoin this run?"):
        raise UsageError("not joined; nothing was started")
    if for_donor:
        from worker.delegation import keep
        from worker.donor.devices import vouch_for_neighbour

        vouched = vouch_for_neighbour(offer.worker, os.environ)
        keep(home, vouched, offer.worker)
        click.echo(f"\nThis machine works for the donor {vouched.donor}.")
        if name:
            click.echo("Your name is the donor's: barnraise donor profile set --name NAME")
    config.save(home.config)
    where = "" if home == resolve_home(None, os.environ) else f" --home {home.path}"
    click.echo(f"\nJoined. Start with: barnraise worker run{where}")


@click.command()
@click.argument("link")
@home_option
def move(link: str, home: Home) -> None:
    """Follow the run to another address: its new LINK has the same run and root key.

    Key, receipts and settings stay. Restart the worker afterwards.

    \b
    Example:
      barnraise worker move 'barnraise://new-host:7443/RUN_ID#root=FINGERPRINT'
    """
    from worker.join import move as follow

    moved = run_async(follow(home, link))
    click.echo(f"Moved to {moved.join_link.address}. Start again with: barnraise worker run")
