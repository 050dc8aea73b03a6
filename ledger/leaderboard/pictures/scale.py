"""Axes: round numbers along a range, and where on the paper they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.credit import MICROCREDITS_PER_CREDIT
from ledger.leaderboard.format import compact, credit
from ledger.leaderboard.pictures.series import Unit

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_TIME_STEPS_S = (
    *(k * _MINUTE_S for k in (1, 2, 5, 10, 15, 30)),
    *(k * _HOUR_S for k in (1, 2, 3, 6, 12)),
    *(k * _DAY_S for k in (1, 2, 7, 14, 30, 90, 180, 365, 730, 3_650)),
)
_LONG = 10_000  # credits that are shortened
_LAST_S = 253_402_300_799  # of the year 9999


@dataclass(frozen=True)
class Scale:
    """A linear map of values to one side of the paper."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is, to a tenth of a unit of the paper."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999))


def around(values: Sequence[int], steps: int) -> tuple[float, float, float]:
    """A round range around the values, and its step: for quantities that are far from zero."""
    low, high = min(values), max(values)
    step = nice_step(max(high - low, abs(high) * 0.008, 1) / steps)
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step


def from_zero(values: Sequence[int], steps: int, *, whole: bool) -> tuple[float, float, float]:
    """A round range from zero; ``whole``: only whole numbers mean something."""
    top = max(*values, 1)
    step = nice_step(top / steps)
    if whole:
        step = max(step, 1.0)
    return 0.0, math.ceil(top / step * 1.0001) * step, step


def ticks(low: float, high: float, step: float) -> list[float]:
    """Multiples of the step from ``low`` to ``high``."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def time_ticks(low_s: int, high_s: int, most: int) -> list[float]:
    """Full minutes, hours or days of UTC."""
    rough = (high_s - low_s) / most
    step = next((s for s in _TIME_STEPS_S if s >= rough), _TIME_STEPS_S[-1])
    return ticks(low_s, high_s, step)


def label(value: float, unit: Unit, *, step: float = 0) -> str:
    """A value as an axis, a legend or a table says it; ``step`` gives the digits that differ."""
    if unit == "micronats":
        digits = max(1, min(6, -math.floor(math.log10(step / 1e6)))) if step else 3
        return f"{value / 1e6:.{digits}f}"
    if unit == "microcredits":
        if step and value < _LONG * MICROCREDITS_PER_CREDIT:
            return f"{value / MICROCREDITS_PER_CREDIT:,.6g}"
        whole = round(value / MICROCREDITS_PER_CREDIT)
        return compact(whole) if whole >= _LONG else credit(round(value))
    if unit == "permille":
        return f"{value / 10:.4g} %"
    if unit == "unix_seconds":
        return _time(round(value), step)
    return compact(round(value))


def _time(seconds: int, step_s: float) -> str:
    moment = datetime.fromtimestamp(min(seconds, _LAST_S), UTC)
    if not step_s:
        return moment.strftime("%Y-%m-%d %H:%M")
    if step_s >= _DAY_S:
        return f"{moment.day} {moment:%b}" if step_s < 365 * _DAY_S else f"{moment:%b %Y}"
    return f"{moment:%H:%M}" if moment.hour or moment.minute else f"{moment.day} {moment:%b}"
