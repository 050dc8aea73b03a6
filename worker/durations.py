"""Lengths and points of time, as people write them."""

from __future__ import annotations

import re
from datetime import datetime

from protocol.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_PART = re.compile(r"(\d{1,9})\s*(s|min|m|h|d)\s*", re.ASCII)
_EXACT_MINUTES = 10
MAX_DURATION_S = 366 * 86_400


def duration_s(text: str) -> int:
    """Seconds of ``90s``, ``30m``, ``2h``, ``1d`` or ``1h30m``.

    Raises:
        UsageError: not such a text, nothing at all, or more than a year.
    """
    said, at, total_s = text.strip().lower(), 0, 0
    while at < len(said):
        found = _PART.match(said, at)
        if found is None:
            raise _wrong(text)
        total_s += int(found[1]) * _UNITS_S[found[2]]
        at = found.end()
    if not 0 < total_s <= MAX_DURATION_S:
        raise _wrong(text)
    return total_s


def _wrong(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not a time such as 90s, 30m, 2h, 1d or 1h30m, of a year at most"
    )


def span_text(seconds: float) -> str:
    """``45 s``, ``1 min 30 s``, ``12 min``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds > MAX_DURATION_S:
        return "more than a year"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest_s} s" if rest_s and minutes < _EXACT_MINUTES else "")
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    days, hours = divmod(hours, 24)
    return f"{days} d" + (f" {hours} h" if hours else "")


def moment_text(at_s: float, now_s: float) -> str:
    """A moment in local time: ``18:00`` today, ``Tue 07:00`` this week, else with its date."""
    try:
        then, now = datetime.fromtimestamp(at_s), datetime.fromtimestamp(now_s)
    except (OverflowError, ValueError, OSError):
        return "a time out of reach"
    if then.date() == now.date():
        return f"{then:%H:%M}"
    days = (then.date() - now.date()).days
    return f"{then:%a %H:%M}" if 0 < days < 7 else f"{then:%Y-%m-%d %H:%M}"
