"""When of a week the owner lets the machine work, in local time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from protocol.errors import UsageError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PERIOD = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?"
    r"(?P<from_h>\d{1,2}):(?P<from_m>\d\d)-(?P<to_h>\d{1,2}):(?P<to_m>\d\d)"
)
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_LOOK_AHEAD_S = 8 * 24 * 3600.0


@dataclass(frozen=True)
class Schedule:
    """Minutes of the week [start, end) in which work is allowed, ascending; none: always."""

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, periods: Sequence[str]) -> Schedule:
        """From lines such as ``mon-fri 22:00-07:00``, ``sun 00:00-24:00`` or ``23:00-06:30``.

        A period that ends at or before its start ends on the next day.

        Raises:
            UsageError: not such a line.
        """
        spans: list[tuple[int, int]] = []
        for text in periods:
            for day, start, end in _days_of(text):
                begin = day * _DAY_MINUTES + start
                finish = begin + (end - start if end > start else end - start + _DAY_MINUTES)
                spans.append((begin, min(finish, _WEEK_MINUTES)))
                if finish > _WEEK_MINUTES:
                    spans.append((0, finish - _WEEK_MINUTES))
        return cls(_merged(spans))

    def allows(self, at: datetime) -> bool:
        """Whether work is allowed at this local time."""
        minute = _minute(at)
        return not self.spans or any(start <= minute < end for start, end in self.spans)

    def next_change_s(self, at_s: float, zone: tzinfo | None = None) -> float | None:
        """The next moment at which :meth:`allows` turns; None when it never does.

        Args:
            at_s: Unix time, from which on.
            zone: whose clocks are meant; None: those of this machine.
        """
        if not self.spans or self.spans == ((0, _WEEK_MINUTES),):
            return None
        allowed, then_s = self.allows(local_time(at_s, zone)), at_s
        while then_s < at_s + _LOOK_AHEAD_S:
            then_s = self._next_edge_s(then_s, zone)
            if self.allows(local_time(then_s, zone)) != allowed:
                return then_s
        return None

    def _next_edge_s(self, at_s: float, zone: tzinfo | None) -> float:
        """The next start or end of a span, or change of the clocks: nothing turns before that."""
        at = local_time(at_s, zone)
        second = 60 * _minute(at) + at.second + at.microsecond / 1e6
        edges = sorted({60 * edge for span in self.spans for edge in span})
        edge = next((edge for edge in edges if edge > second), edges[0] + 60 * _WEEK_MINUTES)
        then_s = float(round(at_s + edge - second))
        if _offset(then_s, zone) == _offset(at_s, zone):
            return then_s
        before_s, after_s = at_s, then_s
        while after_s - before_s > 0.5:  # clocks are put on or back in between: at which second?
            middle_s = (before_s + after_s) / 2
            same = _offset(middle_s, zone) == _offset(at_s, zone)
            before_s, after_s = (middle_s, after_s) if same else (before_s, middle_s)
        return float(math.floor(after_s))


def local_time(at_s: float, zone: tzinfo | None = None) -> datetime:
    """What the clock on the wall shows at this Unix time."""
    return datetime.fromtimestamp(at_s, zone).replace(tzinfo=None)


def next_midnight_s(at_s: float, zone: tzinfo | None = None) -> float:
    """Unix time at which the next day begins there."""
    tomorrow = local_time(at_s, zone) + timedelta(days=1)
    midnight = tomorrow.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight.replace(tzinfo=zone).timestamp()


def _offset(at_s: float, zone: tzinfo | None) -> timedelta | None:
    at = datetime.fromtimestamp(at_s, zone)
    return (at if zone is not None else at.astimezone()).utcoffset()


def _minute(at: datetime) -> int:
    return at.weekday() * _DAY_MINUTES + at.hour * 60 + at.minute


def _days_of(text: str) -> list[tuple[int, int, int]]:
    """(day, first minute, last minute) of each day that a period starts on."""
    found = _PERIOD.fullmatch(text.strip().lower())
    if found is None:
        raise _wrong(text)
    first, last = found["first"] or "mon", found["last"] or found["first"] or "sun"
    if first not in _DAYS or last not in _DAYS:
        raise _wrong(text)
    start = _minutes(text, found["from_h"], found["from_m"])
    end = _minutes(text, found["to_h"], found["to_m"])
    begin, count = _DAYS.index(first), (_DAYS.index(last) - _DAYS.index(first)) % 7 + 1
    return [((begin + number) % 7, start % _DAY_MINUTES, end) for number in range(count)]


def _minutes(text: str, hours: str, minutes: str) -> int:
    value = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or value > _DAY_MINUTES:
        raise _wrong(text)
    return value


def _wrong(text: str) -> UsageError:
    return UsageError(
        f'limits: schedule: {text!r} is not a period such as "mon-fri 22:00-07:00", '
        '"sat 00:00-24:00" or "23:00-06:30"'
    )


def _merged(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
