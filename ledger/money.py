"""Amounts of money: whole numbers of a currency's smallest unit, by ISO 4217.

Invariant: what is read is exact. An amount with more decimals than its currency has is refused, not
rounded.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal

from ledger.leaf import MAX_SAFE_INTEGER
from protocol.errors import BadRecord

_DECIMALS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"), 0),
    **dict.fromkeys(("RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}
"""Of the currencies that have not two (ISO 4217, table A.1)."""

_CURRENCY = re.compile(r"[A-Z]{3}")
_AMOUNT = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_EXACT = Context(prec=36)
"""Holds every digit of such an amount: the usual context rounds to 28."""


def check_currency(currency: str) -> str:
    """Insist on a currency code.

    Raises:
        BadRecord: it is not three capital letters.
    """
    if not _CURRENCY.fullmatch(currency):
        raise BadRecord(f"{currency[:16]!r} is not a currency code of ISO 4217, such as EUR")
    return currency


def decimals(currency: str) -> int:
    """How many decimals amounts of a currency have."""
    return _DECIMALS.get(currency, 2)


def parse_amount(text: str, currency: str) -> int:
    """``"12.5"`` EUR -> 1250.

    Raises:
        BadRecord: not a plain decimal number, with more decimals than the currency has, or too
            large.
    """
    if not _AMOUNT.fullmatch(text):
        raise BadRecord(f"{text[:40]!r} is not an amount, such as 12.50")
    places = decimals(check_currency(currency))
    minor = Decimal(text).scaleb(places, _EXACT)
    if minor != minor.to_integral_value():
        raise BadRecord(f"{text[:40]} {currency} has more than the {places} decimals of {currency}")
    if abs(minor) > MAX_SAFE_INTEGER:
        raise BadRecord(f"{text[:40]} {currency} is too large")
    return int(minor)


def format_amount(minor: int, currency: str) -> str:
    """1250 EUR -> ``"12.50 EUR"``."""
    places = decimals(currency)
    return f"{Decimal(minor).scaleb(-places):,.{places}f} {currency}"
