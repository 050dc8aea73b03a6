"""What the turns of a worker and of the bare loop say, ours against theirs: pure.

Invariants:

* A turn of ours begins and ends just after a step. Where a unit ended in it, all that a unit costs
  beside its steps is in it: encoding and writing it, reading and building the next one.
* Rates are compared with the bare loop's of the very same turns: whatever else the machine does
  hits both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Tokens, and the processor seconds that they took."""

    tokens: int = 0
    cpu_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.cpu_s + other.cpu_s)

    def __sub__(self, other: Work) -> Work:
        return Work(self.tokens - other.tokens, self.cpu_s - other.cpu_s)

    @property
    def per_s(self) -> float:
        return self.tokens / max(self.cpu_s, 1e-6)


@dataclass(frozen=True)
class Turn:
    """One of each, in a row."""

    ours: Work
    bare: Work
    units_ended: int = 0


def total(works: Iterable[Work]) -> Work:
    return sum(works, Work())


def units(turns: Sequence[Turn]) -> Iterator[Turn]:
    """The turns from the end of one unit to the end of the next, as one; not what is cut off."""
    whole: list[Turn] | None = None
    for turn in turns:
        if whole is not None:
            whole.append(turn)
        if turn.units_ended:
            if whole:
                ours, bare = total(one.ours for one in whole), total(one.bare for one in whole)
                yield Turn(ours, bare, turn.units_ended)
            whole = []


def ratios(turns: Iterable[Turn]) -> tuple[float, float, float]:
    """Ours to the bare loop's tokens per second: median, least and most of the turns."""
    found = [turn.ours.per_s / turn.bare.per_s for turn in turns]
    return statistics.median(found), min(found), max(found)


def fixed_cpu_s(turns: Sequence[Turn]) -> float:
    """Of each unit, beside its steps: what turns in which one ended took above the others."""
    steady = [turn for turn in turns if not turn.units_ended]
    share = total(turn.ours for turn in steady).per_s / total(turn.bare for turn in steady).per_s
    ends = [turn for turn in turns if turn.units_ended]
    above_s = sum(turn.ours.cpu_s - turn.ours.tokens / (share * turn.bare.per_s) for turn in ends)
    return above_s / sum(turn.units_ended for turn in ends)
