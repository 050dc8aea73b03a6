"""How fast each reducer moved its chunks in past rounds, by the coordinator's own clock.

A reducer is at work from the roster until more than half of the members are complete with it, and
from the inclusion set until all of its results are here: its upload shares its line with those to
the members. Its speed is its chunks over that time. Shares in proportion to it (see
:mod:`coordinator.roster`) meet where all reducers take equally long.

Invariants:

* Hardly anybody's word counts: a report of completeness comes with the members' signatures, and a
  result is here or is not. A report may leave signatures out: a reducer that so reports too early
  looks faster, within the bounds of :mod:`coordinator.roster`. What members owe a reducer (a
  minority of slow or spiteful ones sends late) does not make that reducer slow.
* A hint, and no more: kept in memory, forgotten at a restart and after :data:`KEPT_ROUNDS`. Notes
  are idempotent, for a transaction may be tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.round_state import Phase, Round

LEAST_S = 2.0
"""Work that is over sooner says more of round trips than of a line."""

KEPT_ROUNDS = 32
"""Whoever was not measured for so long is as good as anybody again: lines get better, too."""


@dataclass
class _Reduce:
    """One attempt."""

    round: int
    attempt: int
    chunks: Mapping[str, int]
    begun_s: float
    gathered_s: dict[str, float] = field(default_factory=dict)
    included_s: float | None = None
    delivered: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Speed:
    chunks_per_s: float
    round: int


class ReducerSpeeds:
    """Of one run; see the module."""

    def __init__(self) -> None:
        self._speeds: dict[str, _Speed] = {}
        self._reduce: _Reduce | None = None

    def of(self, worker: str) -> float | None:
        """Chunks a second, or None if that is not known."""
        speed = self._speeds.get(worker)
        return None if speed is None else speed.chunks_per_s

    def begin(self, round_: int, attempt: int, chunks: Mapping[str, int], now_s: float) -> None:
        """A roster gives these reducers so many chunks."""
        self._reduce = _Reduce(round_, attempt, dict(chunks), now_s)
        oldest = round_ - KEPT_ROUNDS
        self._speeds = {w: speed for w, speed in self._speeds.items() if speed.round >= oldest}

    def take_note(self, after: Round, now_s: float) -> None:
        """See what an event has made of the running round."""
        reduce = self._reduce
        if reduce is None or (reduce.round, reduce.attempt) != (after.number, after.attempt):
            return
        for reducer, members in after.complete:
            if 2 * len(members) > len(after.committed):
                reduce.gathered_s.setdefault(reducer, now_s)
        if after.phase is Phase.BROADCAST and reduce.included_s is None:
            reduce.included_s = now_s
        for reducer in after.delivered:
            self._measure(reduce, reducer, now_s)

    def _measure(self, reduce: _Reduce, reducer: str, now_s: float) -> None:
        gathered_s = reduce.gathered_s.get(reducer)
        if reducer in reduce.delivered or gathered_s is None or reduce.included_s is None:
            return
        reduce.delivered.add(reducer)
        busy_s = gathered_s - reduce.begun_s + now_s - reduce.included_s
        if busy_s >= LEAST_S:
            measured = reduce.chunks[reducer] / busy_s
            before = self._speeds.get(reducer)
            # Half of what was known stays: one bad evening is not a bad line.
            speed = measured if before is None else (before.chunks_per_s + measured) / 2
            self._speeds[reducer] = _Speed(speed, reduce.round)
