"""What the commands of crowdfunding share: options, and values that people type."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.errors import UsageError

if TYPE_CHECKING:
    from ledger.fold import Board
    from protocol.identity import PublicKey

_LAST_S = 253_402_300_799
"""The end of the year 9999; acts may be dated later."""

run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
campaign_option = click.option(
    "--campaign", metavar="ID", help="Default: the open one, or else the run's own."
)


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Raises:
        UsageError: nobody is there to be asked.
        click.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} This cannot be undone: say so with --yes")
    click.confirm(f"{question} This cannot be undone", abort=True)


def credits_option(text: str) -> int:
    """``"12.5"`` credits -> microcredits.

    Raises:
        UsageError: not a positive number with at most six decimals.
    """
    from ledger.credit import MICROCREDITS_PER_CREDIT
    from ledger.leaf import MAX_SAFE_INTEGER

    try:
        amount = Decimal(text) * MICROCREDITS_PER_CREDIT
        if amount == amount.to_integral_value() and 0 < amount <= MAX_SAFE_INTEGER:
            return int(amount)
    except InvalidOperation:
        pass
    raise UsageError(f"{text!r} is not a number of credits, such as 2500 or 0.25")


def money_option(text: str, currency: str | None) -> tuple[int, str]:
    """``("12.50", "EUR")`` -> ``(1250, "EUR")``.

    Raises:
        UsageError: not an amount of that currency, or no currency.
    """
    from ledger.money import parse_amount
    from protocol.errors import BadRecord

    if currency is None:
        raise UsageError("an amount of money needs its --currency, such as EUR")
    try:
        minor = parse_amount(text, currency)
    except BadRecord as error:
        raise UsageError(str(error)) from error
    if minor <= 0:
        raise UsageError(f"{text!r} is not more than nothing")
    return minor, currency


def time_option(text: str, *, end_of_day: bool = False) -> int:
    """A date, or a date and time, in UTC unless it says otherwise -> POSIX seconds.

    Raises:
        UsageError: it is neither.
    """
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a date, such as 2027-03-01") from error
    if end_of_day and len(text) == len("2027-03-01"):
        parsed = parsed.replace(hour=23, minute=59, second=59)
    at_s = parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()
    if at_s < 0:
        raise UsageError(f"{text!r} is before 1970")
    return int(at_s)


def day(at_s: int | float | None) -> str:
    """A date for a person; what is later than dates go has the last one."""
    if at_s is None:
        return ""
    return datetime.fromtimestamp(min(at_s, _LAST_S), UTC).date().isoformat()


def key_option(text: str) -> PublicKey:
    """A key id.

    Raises:
        UsageError: it is none.
    """
    from protocol.errors import BadRecord
    from protocol.identity import PublicKey

    try:
        return PublicKey.from_peer_id(text)
    except BadRecord as error:
        raise UsageError(f"{error}: give the id of a key, such as 12D3KooW...") from error


def find_campaign(board: Board, given: str | None) -> str:
    """The campaign that is meant: by its id, or by how that begins.

    Raises:
        UsageError: there is none, or more than one.
    """
    campaigns = board.campaigns
    if given is None:
        return (campaigns.current or campaigns.zero).campaign
    found = [name for name in campaigns.campaigns if name.startswith(given.lower())]
    if len(found) != 1 or not given:
        what = "several campaigns begin" if found else "no campaign begins"
        raise UsageError(f"{what} with {given!r}: see 'barnraise coordinator campaign list'")
    return found[0]


def plain(value: Any) -> str:
    """Text of a stranger for a terminal: no control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value))
