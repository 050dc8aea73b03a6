"""Amounts and dates as people write them, and back. Integers all the way: nothing is rounded up."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal, InvalidOperation

from protocol.errors import UsageError

MICROCREDITS_PER_CREDIT = 10**6
MAX_MICROCREDITS = 2**53 - 1
"""What every reader of JSON keeps exactly."""

_LAST_S = 253_402_300_799
"""The end of the year 9999; a pledge may be dated later."""

_AMOUNT = re.compile(r"[0-9]{1,16}(\.[0-9]{1,6})?")


def parse_amount(text: str) -> Decimal:
    """A positive number with at most six decimals.

    Raises:
        UsageError: it is none.
    """
    try:
        value = Decimal(text) if _AMOUNT.fullmatch(text) else Decimal(0)
    except InvalidOperation:
        value = Decimal(0)
    if value <= 0:
        raise UsageError(
            f"an amount is a positive number such as 200 or 0.5, with at most six decimals, not "
            f"{text[:40]!r}"
        )
    return value


def microcredits(amount: Decimal, per_unit: int = MICROCREDITS_PER_CREDIT) -> int:
    """An amount in credits, or in hours of a device that earns ``per_unit`` an hour.

    Raises:
        UsageError: it is less than a microcredit, or more than can be recorded.
    """
    value = int((amount * per_unit).to_integral_value(ROUND_DOWN))
    if not 0 < value <= MAX_MICROCREDITS:
        raise UsageError("the amount is too small or too large to be recorded")
    return value


def in_credits(value: int) -> str:
    """Microcredits for a person: ``1,234.5 credits``."""
    whole, rest = divmod(value, MICROCREDITS_PER_CREDIT)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{whole:,}{'.' + decimals if decimals else ''} credits"


def end_of_day_s(text: str, now_s: float) -> int:
    """``2027-03-01`` -> the first second after that day, UTC.

    Raises:
        UsageError: no such date, or it is past.
    """
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        end_s = int((day + timedelta(days=1)).timestamp())
    except (ValueError, OverflowError) as error:
        raise UsageError(f"a date is written like 2027-03-01, not {text[:40]!r}") from error
    if end_s <= now_s:
        raise UsageError(f"{text} is past: give a date to come")
    return end_s


def last_day(end_s: int) -> str:
    """The day that :func:`end_of_day_s` was given; 9999-12-31 stands for all later ones."""
    return time.strftime("%Y-%m-%d", time.gmtime(min(end_s - 1, _LAST_S)))
