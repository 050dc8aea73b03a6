"""What was credited lately: the last day, the last 30 days, and the recent average, by key.

All three are integers that follow from the leaves alone, whatever the order they were counted in.
``H`` is the hour (of Unix time) of the newest leaf; a credit of hour ``h`` that was not taken back

* is of the last day if ``h > H - 24``, and of the last 30 days if ``h > H - 720``;
* weighs ``w(h)`` in the recent average, which halves every 168 hours (7 days, as in BOINC):

      average = ln 2 / 7 days * sum(microcredits * w(h)) / w(H), rounded down, in microcredits a day
      w(h) = floor(2**32 * 2**(n % 168 / 168)) * 2**(n // 168), n hours after the run's first leaf

Invariants:

* The sum in the average is exact, so what is taken back leaves nothing behind, and only ``w(H)``
  changes as time goes on: the order of donors by it changes only with their own credit.
* A sum of a window changes only when credit comes, goes, or falls out of the window.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Context, Decimal

from protocol.identity import PeerId

HOUR_S = 3_600
DAY_H = 24
MONTH_H = 720
_HALF_LIFE_H = 168
_HALF_LIFE_DAYS = 7
_LN2_PER_10_9 = 693_147_181
_MOST_H = 1 << 20  # 119 years: a leaf with an absurd time must not become an absurd number

Sums = dict[PeerId, int]
"""Microcredits by key; who has none is not in it."""


@dataclass
class _Window:
    """Sums over the newest hours."""

    hours: int
    sums: Sums = field(default_factory=dict)
    by_hour: dict[int, Sums] = field(default_factory=dict)

    def add(self, key: PeerId, hour: int, newest_h: int, microcredits: int) -> None:
        if hour > newest_h - self.hours:
            _add(self.sums, key, microcredits)
            _add(self.by_hour.setdefault(hour, {}), key, microcredits)

    def move_to(self, newest_h: int) -> set[PeerId]:
        """Let old hours fall out; gives the keys whose sums changed."""
        changed: set[PeerId] = set()
        for hour in [hour for hour in self.by_hour if hour <= newest_h - self.hours]:
            for key, microcredits in self.by_hour.pop(hour).items():
                _add(self.sums, key, -microcredits)
                changed.add(key)
        return changed


class Recent:
    """The sums so far."""

    def __init__(self, opened_s: int) -> None:
        self._opened_h = opened_s // HOUR_S
        self._newest_h = self._opened_h
        self._day, self._month = _Window(DAY_H), _Window(MONTH_H)
        self._weighted: defaultdict[PeerId, int] = defaultdict(int)

    def move_to(self, newest_s: int) -> set[PeerId]:
        """Time goes on; gives the keys whose windows changed by that."""
        newest_h = newest_s // HOUR_S
        if newest_h <= self._newest_h:
            return set()
        self._newest_h = newest_h
        return self._day.move_to(newest_h) | self._month.move_to(newest_h)

    def add(self, key: PeerId, at_s: int, microcredits: int) -> None:
        """Count a credit of that time; a negative amount takes it back."""
        hour = at_s // HOUR_S
        for window in (self._day, self._month):
            window.add(key, hour, self._newest_h, microcredits)
        self._weighted[key] += microcredits * _weight(hour - self._opened_h)

    def day(self, key: PeerId) -> int:
        """Microcredits of the newest 24 hours."""
        return self._day.sums.get(key, 0)

    def month(self, key: PeerId) -> int:
        """Microcredits of the newest 720 hours."""
        return self._month.sums.get(key, 0)

    def weighted(self, key: PeerId) -> int:
        """The exact sum behind the average: what to add up and to sort by."""
        return self._weighted.get(key, 0)

    def per_day(self) -> PerDay:
        """How to show a weighted sum at this moment."""
        return PerDay(_weight(self._newest_h - self._opened_h))


@dataclass(frozen=True)
class PerDay:
    """Turns weighted sums into microcredits a day, as of one moment."""

    weight: int

    def __call__(self, weighted: int) -> int:
        return weighted * _LN2_PER_10_9 // (_HALF_LIFE_DAYS * 10**9 * self.weight)


@functools.lru_cache(maxsize=4096)
def _weight(hours: int) -> int:
    """``w`` of that many hours after the run's first leaf."""
    hours = min(max(0, hours), _MOST_H)
    return _fractions()[hours % _HALF_LIFE_H] << (hours // _HALF_LIFE_H)


@functools.cache
def _fractions() -> tuple[int, ...]:
    """By decimal arithmetic, which gives the same digits everywhere, unlike a processor's."""
    context = Context(prec=50)
    powers = (
        context.power(Decimal(2), context.divide(Decimal(hour), Decimal(_HALF_LIFE_H)))
        for hour in range(_HALF_LIFE_H)
    )
    return tuple(int(context.multiply(power, Decimal(1 << 32))) for power in powers)


def _add(sums: Sums, key: PeerId, microcredits: int) -> None:
    total = sums.get(key, 0) + microcredits
    if total:
        sums[key] = total
    else:
        sums.pop(key, None)
