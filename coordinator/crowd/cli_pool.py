"""``barnraise coordinator pool``: devices that donations of money pay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coordinator.crowd.cli_options import (
    campaign_option,
    find_campaign,
    json_option,
    key_option,
    plain,
    run_dir_option,
)
from coordinator.terminal import print_json
from protocol.errors import UsageError

_DAY_S = 24 * 3600


@click.group()
def pool() -> None:
    """Open pools of sponsored devices and let devices work for them.

    What a pool's devices are credited with belongs to who gave the money, in proportion.

    \b
    Examples:
      barnraise coordinator pool open --currency EUR
      barnraise coordinator pool add-device 12D3KooW...       # the id of a rented machine's key
      barnraise coordinator pool list
    """


@pool.command("open")
@click.option("--currency", required=True, metavar="CODE", help="Of the money that pays it.")
@campaign_option
@run_dir_option
@json_option
def open_(currency: str, campaign: str | None, run_dir: Path, as_json: bool) -> None:
    """Make a pool: a donor key in the run's folder, and the treasurer's word that it is one.

    \b
    Example:
      barnraise coordinator pool open --currency EUR
    """
    from coordinator.crowd.organiser import organise
    from coordinator.crowd.pools import new_pool_key, pool_key_file
    from ledger.money import check_currency
    from protocol.errors import BadRecord
    from protocol.wire import records_pb2 as wire

    try:
        check_currency(currency)
    except BadRecord as error:
        raise UsageError(str(error)) from error
    with organise(run_dir) as run:
        treasurer = run.signer(wire.KEY_PURPOSE_TREASURER)
        name = find_campaign(run.board, campaign)
        key = new_pool_key(run.folder.keys)
        path = pool_key_file(run.folder.keys, key.peer_id)
        record = wire.Pool(
            run_id=run.run_id,
            campaign=bytes.fromhex(name),
            pool=key.peer_id,
            currency=currency,
            at_s=int(run.now_s),
        )
        try:
            (recorded,) = run.record([run.sign(record, treasurer)])
        except UsageError:
            path.unlink()  # nobody knows of it
            raise
    if as_json:
        print_json({"pool": key.peer_id, "leaf_index": recorded.leaf_index, "key": str(path)})
        return
    click.echo(f"pool {key.peer_id}: leaf {recorded.leaf_index} of the public record")
    click.echo(f"its key is {path}, which 'barnraise coordinator backup' keeps")
    click.echo("Next: barnraise coordinator pool add-device DEVICE, for each machine that it pays")


@pool.command("add-device")
@click.argument("device", metavar="DEVICE")
@click.option("--pool", "pool_id", metavar="KEY", help="Default: the only one.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650))
@run_dir_option
@json_option
def add_device(device: str, pool_id: str | None, days: int, run_dir: Path, as_json: bool) -> None:
    """Let a DEVICE, by the id of its key, work for a pool; prints the line that says so.

    The device must not have worked for anybody else before.

    \b
    Example:
      barnraise coordinator pool add-device 12D3KooW...
    """
    from coordinator.crowd.organiser import organise
    from coordinator.crowd.pools import load_pool_key, vouch

    worker = key_option(device)
    with organise(run_dir) as run:
        key = load_pool_key(run.folder.keys, _which(run, pool_id))
        known = run.board.workers.get(worker.peer_id)
        if known is not None and known.donor != key.peer_id:
            raise UsageError(
                f"this device works for {known.donor} already: make a new device key for the pool"
            )
        line = vouch(key, worker, int(run.now_s) + days * _DAY_S)
    if as_json:
        print_json({"pool": key.peer_id, "worker": worker.peer_id, "delegation": line})
        return
    click.echo(line)
    click.echo(
        "\nOn that machine, before it is started: barnraise worker delegation LINE", err=True
    )


@pool.command("list")
@run_dir_option
@json_option
def list_(run_dir: Path, as_json: bool) -> None:
    """List pools: their devices, money and credit.

    \b
    Example:
      barnraise coordinator pool list --json
    """
    from coordinator.crowd.organiser import organise
    from coordinator.crowd.pools import pool_key_file
    from ledger.money import format_amount

    with organise(run_dir) as run:
        run.board.crowd.pools.refresh()
        found = [
            {
                "pool": one.pool,
                "campaign": one.leaf.campaign,
                "raised": format_amount(one.raised_minor, one.leaf.currency),
                "donations": sum(donation.voided is None for donation in one.donations),
                "devices": _devices(run, one.pool),
                "divided_microcredits": one.given_away.total_microcredits,
                "void": one.voided[1].reason if one.voided else "",
                "key_is_here": pool_key_file(run.folder.keys, one.pool).exists(),
            }
            for one in run.board.crowd.pools.pools.values()
        ]
    if as_json:
        print_json(found)
        return
    for entry in found:
        void = f"  void: {entry['void']}" if entry["void"] else ""
        click.echo(
            f"{plain(entry['pool'])}  {entry['raised']:>16}  {entry['devices']} devices{void}"
        )
    if not found:
        click.echo("no pools")


def _devices(run: Any, pool_id: str) -> int:
    donor = run.board.donors.get(pool_id)
    return 0 if donor is None else len(donor.workers)


def _which(run: Any, given: str | None) -> str:
    pools = [one.pool for one in run.board.crowd.pools.pools.values() if one.voided is None]
    if given is not None:
        if given not in pools:
            raise UsageError(
                f"there is no pool {given[:64]}: see 'barnraise coordinator pool list'"
            )
        return given
    if len(pools) != 1:
        raise UsageError(
            f"there are {len(pools)} pools: say which with --pool"
            if pools
            else "there is no pool: open one with 'barnraise coordinator pool open'"
        )
    return str(pools[0])


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    group.add_command(pool)
