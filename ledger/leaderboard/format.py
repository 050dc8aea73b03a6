"""Numbers, times and keys as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

from ledger.credit import MICROCREDITS_PER_CREDIT

_SUFFIXES = ((10**15, "P"), (10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_FLOP_UNITS = ("G", "T", "P", "E", "Z", "Y")


def compact(count: int) -> str:
    """``1234567`` -> ``1.23 M``; numbers below ten thousand are written out."""
    if abs(count) < 10_000:
        return f"{count:,}"
    size, suffix = next(pair for pair in _SUFFIXES if abs(count) >= pair[0])
    return f"{_three_digits(count / size)} {suffix}"


def credit(microcredits: int) -> str:
    """Credits with three significant digits or more: ``0.000123``, ``12.3``, ``1,234``."""
    value = microcredits / MICROCREDITS_PER_CREDIT
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return _three_digits(value)
    if microcredits == 0:
        return "0"
    return f"{value:.{min(6, 9 - len(str(microcredits)))}f}"


def flops(microcredits: int) -> str:
    """The same amount in FLOP: 1 microcredit is 1 GFLOP."""
    value, unit = float(microcredits), 0
    while value >= 1000 and unit < len(_FLOP_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{_three_digits(value)} {_FLOP_UNITS[unit]}FLOP"


def percent(permille: int) -> str:
    """``374`` -> ``37.4 %``."""
    return f"{permille // 10}.{permille % 10} %"


def chance(ppm: int) -> str:
    """A chance in millionths: ``certain``, ``33.3 %``."""
    return "certain" if ppm >= 1_000_000 else f"{_three_digits(ppm / 10_000)} %"


def words(stable_word: str) -> str:
    """``device_changed`` -> ``device changed``."""
    return stable_word.replace("_", " ")


def nats(micronats: int | None) -> str:
    """A loss, or a dash."""
    return "–" if micronats is None else f"{micronats / 1e6:.3f}"


def moment(seconds: int | None) -> str:
    """``2026-03-01 12:00 UTC``, or a dash."""
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(min(seconds, 253_402_300_799), UTC).strftime("%Y-%m-%d %H:%M UTC")


def day(seconds: int) -> str:
    """``2026-03-01``."""
    return moment(seconds)[:10]


def iso(seconds: int) -> str:
    """For the ``datetime`` attribute."""
    return datetime.fromtimestamp(min(seconds, 253_402_300_799), UTC).isoformat()


def duration(seconds: int | None) -> str:
    """In the one unit that fits: ``45 s``, ``12 min``, ``3 h``, ``9 days``."""
    if seconds is None:
        return "–"
    for size, unit in ((172_800, "days"), (7_200, "h"), (120, "min")):
        if seconds >= size:
            divisor = {"days": 86_400, "h": 3_600, "min": 60}[unit]
            return f"{seconds // divisor:,} {unit}"
    return f"{seconds} s"


def _three_digits(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
