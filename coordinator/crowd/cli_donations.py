"""``barnraise coordinator donations``: money that arrived, in the public record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coordinator.crowd.cli_options import (
    campaign_option,
    confirm,
    day,
    find_campaign,
    json_option,
    key_option,
    money_option,
    plain,
    run_dir_option,
    time_option,
    yes_option,
)
from coordinator.terminal import print_json
from protocol.errors import UsageError

if TYPE_CHECKING:
    from coordinator.crowd.donations import Books, Known, Plan
    from coordinator.crowd.organiser import Organiser
    from protocol.identity import Identity

F = TypeVar("F", bound=Callable[..., Any])

_file = click.Path(path_type=Path, dir_okay=False)
_MAX_MAP_BYTES = 8 << 20


def payment_options(command: F) -> F:
    """Options that say what arrived: of an export, or of one payment."""
    for option in reversed(
        (
            click.option("--pool", metavar="KEY", help="Pool of sponsored devices that it pays."),
            click.option(
                "--visibility",
                type=click.Choice(["public", "private", "secret"]),
                default="public",
                show_default=True,
                help="Whoever gave unnamed stays unnamed.",
            ),
            click.option("--account", help="Of an export: slug of the account that received it."),
            click.option("--donors", type=_file, help="Of an export: CSV of handle,donor-key."),
            click.option("--amount", help="One payment: 50 or 12.50."),
            click.option("--currency", metavar="CODE", help="One payment: EUR, USD, JPY ..."),
            click.option("--reference", help="One payment: where it can be looked up."),
            click.option("--donor", metavar="KEY", help="One payment: who gave it."),
            click.option("--received", metavar="DATE", help="One payment: UTC [default: now]."),
        )
    ):
        command = option(command)
    return command


@click.group()
def donations() -> None:
    """Record donations of money, signed by the treasurer's key.

    \b
    Examples:
      barnraise coordinator donations import export.csv             # shows what it would do
      barnraise coordinator donations import export.csv --yes
      barnraise coordinator donations add --amount 50 --currency EUR --reference bank:2027-03-04/7
      barnraise coordinator donations add march.json                # signed on another machine
      barnraise coordinator donations list
      barnraise coordinator donations void 1234 --reason refunded
    """


@donations.command()
@click.argument("file", metavar="[FILE]", type=_file, required=False)
@payment_options
@campaign_option
@run_dir_option
@json_option
def add(
    file: Path | None, campaign: str | None, run_dir: Path, as_json: bool, **options: Any
) -> None:
    """Record one payment, or a FILE of acts that a treasurer signed elsewhere.

    What is recorded already is left out.

    \b
    Examples:
      barnraise coordinator donations add --amount 50 --currency EUR --reference bank:2027-03-04/7
        --donor 12D3KooW...
      barnraise coordinator donations add march.json
    """
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        if file is not None:
            acts, left_out = _from_file(run, file)
        else:
            plan, acts = _planned(run, None, campaign, options)
            left_out = len(plan.known)
        recorded = run.record(acts)
    indexes = [one.leaf_index for one in recorded]
    if as_json:
        print_json({"leaf_indexes": indexes, "recorded_before": left_out})
        return
    where = f": leaves {indexes[0]} to {indexes[-1]}" if indexes else ""
    click.echo(f"{len(indexes)} recorded{where}; {left_out} were there already")


@donations.command("import")
@click.argument("file", type=_file)
@payment_options
@campaign_option
@run_dir_option
@json_option
@click.option("--yes", is_flag=True, help="Record it; without, it is only shown.")
def import_(
    file: Path, campaign: str | None, run_dir: Path, as_json: bool, yes: bool, **options: Any
) -> None:
    """Import Open Collective's export of transactions (CSV).

    Contributions and added funds that were credited become donations, once each, however often a
    file is imported. What was refunded since is made void. Incognito gifts stay unnamed. --donors
    is a CSV of lines 'handle,key' that says which donor of this run has which handle there.

    \b
    Examples:
      barnraise coordinator donations import export.csv
      barnraise coordinator donations import export.csv --pool 12D3KooW... --donors map.csv --yes
    """
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        plan, acts = _planned(run, file, campaign, options, may_sign=yes)
        recorded = run.record(acts) if yes else []
    if as_json:
        print_json(
            {
                "new": [_payment(payment) for payment in plan.new],
                "void": [known.donation.leaf_index for known in plan.voids],
                "recorded_before": len(plan.known),
                "ignored": plan.ignored,
                "leaf_indexes": [one.leaf_index for one in recorded],
            }
        )
        return
    echo_plan(plan)
    if yes:
        click.echo(f"{len(recorded)} acts recorded")
    elif plan.new or plan.voids:
        click.echo("nothing was recorded: --yes records it")


@donations.command("list")
@run_dir_option
@json_option
def list_(run_dir: Path, as_json: bool) -> None:
    """List the donations of the record, also those that are void.

    \b
    Example:
      barnraise coordinator donations list --json
    """
    from coordinator.crowd.donations import known_donations
    from coordinator.crowd.organiser import organise

    with organise(run_dir) as run:
        found = run.read(lambda session: known_donations(session, run.board))
    entries = [_known(known) for known in found]
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        void = f"  void: {entry['void']}" if entry["void"] else ""
        click.echo(
            f"{entry['leaf_index']:>7}  {day(entry['received_s'])}  {entry['amount']:>16}  "
            f"{entry['visibility']:<7}  {plain(entry['reference'])}{void}"
        )
    if not entries:
        click.echo("no donations")


@donations.command()
@click.argument("leaf", type=click.IntRange(0))
@click.option("--reason", default="refunded", show_default=True, help="One word, published.")
@run_dir_option
@json_option
@yes_option
def void(leaf: int, reason: str, run_dir: Path, as_json: bool, yes: bool) -> None:
    """Make a donation void, by its LEAF: it counts no more from here on.

    \b
    Example:
      barnraise coordinator donations void 1234 --reason refunded
    """
    from coordinator.crowd.donations import sign_void
    from coordinator.crowd.organiser import organise
    from protocol.wire import records_pb2 as wire

    with organise(run_dir) as run:
        confirm(f"Make leaf {leaf} void?", yes)
        key = run.signer(wire.KEY_PURPOSE_TREASURER)
        (recorded,) = run.record([sign_void(run.run_id, leaf, reason, key)])
    if as_json:
        print_json({"void": leaf, "leaf_index": recorded.leaf_index})
        return
    click.echo(f"leaf {leaf} is void: leaf {recorded.leaf_index} says so")


def _planned(
    run: Organiser,
    file: Path | None,
    campaign: str | None,
    options: dict[str, Any],
    *,
    may_sign: bool = True,
) -> tuple[Plan, list[Any]]:
    from coordinator.crowd.donations import Books, known_donations
    from protocol.identity import Identity
    from protocol.wire import records_pb2 as wire

    known = run.read(lambda session: known_donations(session, run.board))
    books = Books(
        run.run_id, bytes.fromhex(find_campaign(run.board, campaign)), options["pool"] or ""
    )
    purpose = wire.KEY_PURPOSE_TREASURER
    # Without --yes nothing is changed, and so no key is made.
    key = run.signer(purpose) if may_sign else run.ring.crowd.get(purpose, Identity.generate())
    plan = read_payments(file, options, known, key, books, int(run.now_s))
    return plan, plan.sign(books, key) if may_sign else []


def read_payments(
    file: Path | None,
    options: dict[str, Any],
    known: Sequence[Known],
    treasurer: Identity,
    books: Books,
    now_s: int,
) -> Plan:
    """What an export, or the options of one payment, would add to the record.

    Raises:
        UsageError: what is wrong with the file or the options.
    """
    from coordinator.crowd import opencollective
    from coordinator.crowd.acts_file import read_bounded
    from coordinator.crowd.donations import choose_id_kind, donation_id, plan_import

    if books.pool:
        key_option(books.pool)
    one = [name for name in ("amount", "currency", "reference") if options[name] is not None]
    if file is None:
        return _one_payment(options, known, treasurer, books, now_s)
    if one or options["donor"] or options["received"]:
        raise UsageError("give either a file, or --amount, --currency and --reference")
    data = read_bounded(file, opencollective.MAX_EXPORT_BYTES)
    donors = {}
    if options["donors"] is not None:
        donors = opencollective.read_donors(read_bounded(options["donors"], _MAX_MAP_BYTES))
    kind = choose_id_kind(opencollective.id_kinds(data), known)
    return plan_import(
        opencollective.read_export(data, kind, account=options["account"]),
        known,
        donors=donors,
        visibility=options["visibility"],
        id_of=lambda reference: donation_id(treasurer, books.run_id, reference),
    )


def _one_payment(
    options: dict[str, Any],
    known: Sequence[Known],
    treasurer: Identity,
    books: Books,
    now_s: int,
) -> Plan:
    from coordinator.crowd.donations import Payment, Plan, donation_id

    if None in (options["amount"], options["reference"]) or options["account"]:
        raise UsageError("give a file, or --amount, --currency and --reference of one payment")
    minor, currency = money_option(options["amount"], options["currency"])
    received = options["received"]
    payment = Payment(
        reference=options["reference"],
        amount_minor=minor,
        currency=currency,
        received_s=now_s if received is None else time_option(received),
        donor=key_option(options["donor"]).peer_id if options["donor"] else "",
        visibility=options["visibility"],
    )
    named = donation_id(treasurer, books.run_id, payment.reference).hex()
    is_known = any(
        one.donation.leaf.donation == named
        or (one.act is not None and one.act.reference == payment.reference)
        for one in known
    )
    return Plan(known=[payment]) if is_known else Plan(new=[payment])


def _from_file(run: Organiser, file: Path) -> tuple[list[Any], int]:
    """Acts of a file that are not recorded yet, and how many are."""
    from coordinator.crowd.acts_file import read_acts
    from coordinator.crowd.donations import check_id_kind, known_donations, used_id_kinds
    from ledger.acts import open_act
    from protocol.errors import PeerFault
    from protocol.wire import records_pb2 as wire

    known = run.read(lambda session: known_donations(session, run.board))
    ids = {one.donation.leaf.donation for one in known}
    references = {one.act.reference for one in known if one.act is not None}
    used, acts, left_out = used_id_kinds(known), list[Any](), 0
    for number, envelope in enumerate(read_acts(file, run.run_id), start=1):
        try:
            act = open_act(envelope)
        except PeerFault as error:
            raise UsageError(f"act {number} of {file}: {error}; nothing was recorded") from error
        record: Any = act.record
        if not isinstance(record, wire.Donation | wire.Voiding | wire.Pool):
            raise UsageError(f"act {number} of {file} is not a treasurer's; nothing was recorded")
        if isinstance(record, wire.Donation):
            if record.donation.hex() in ids or record.reference in references:
                left_out += 1
                continue
            try:
                check_id_kind(record.reference, used)
            except UsageError as error:
                raise UsageError(f"act {number} of {file}: {error}; nothing was recorded") from None
            ids.add(record.donation.hex())
            references.add(record.reference)
        acts.append(envelope)
    return acts, left_out


def echo_plan(plan: Plan) -> None:
    """Show what an import would do, or did."""
    from ledger.money import format_amount

    for payment in plan.new:
        line = "" if payment.line is None else f"line {payment.line}"
        who = payment.donor[-12:] if payment.donor else "-"
        click.echo(
            f"{line:<10} {day(payment.received_s)}  "
            f"{format_amount(payment.amount_minor, payment.currency):>16}  "
            f"{payment.visibility:<7}  {who:<12}  {plain(payment.name or payment.reference)}"
        )
    for known in plan.voids:
        click.echo(f"refunded   leaf {known.donation.leaf_index} becomes void")
    click.echo(
        f"{len(plan.new)} new, {len(plan.voids)} refunded, {len(plan.known)} recorded before, "
        f"{plan.ignored} other rows"
    )


def _payment(payment: Any) -> dict[str, Any]:
    names = ("line", "reference", "amount_minor", "currency", "received_s", "donor", "visibility")
    return {name: getattr(payment, name) for name in names}


def _known(known: Known) -> dict[str, Any]:
    from ledger.money import format_amount

    leaf, voided = known.donation.leaf, known.donation.voided
    return {
        "leaf_index": known.donation.leaf_index,
        "campaign": leaf.campaign,
        "amount": format_amount(leaf.amount_minor, leaf.currency),
        "amount_minor": leaf.amount_minor,
        "currency": leaf.currency,
        "received_s": leaf.received_s,
        "visibility": leaf.visibility,
        "donor": known.act.donor if known.act else "",
        "pool": leaf.pool or "",
        "reference": known.act.reference if known.act else "",
        "treasurer": leaf.treasurer,
        "void": voided[1].reason if voided else "",
    }


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    group.add_command(donations)
