"""Goodput: of the tokens that were trained, how many were merged; and what the others were lost to.

*Trained* is every inner step that a trainer did in any life of any worker, whatever became of it.
The workers' logs have each step that a trainer told its daemon of; for each unit that was cut short
one more is counted, which may have been done and was not told any more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import chaos_soak_points
import chaos_soak_run
from chaos_soak_facts import Unit, outcomes, units
from chaos_soak_plan import Fired
from chaos_soak_run import Run, events


@dataclass(frozen=True)
class Goodput:
    """In inner steps of one batch each."""

    trained: int
    merged: int
    lost: dict[str, int]  # by cause

    @property
    def ratio(self) -> float:
        return self.merged / max(1, self.trained)


@dataclass(frozen=True)
class Work:
    """Steps that were done of one unit, over the lives in which it was worked on."""

    computed: int  # steps, repeated ones again
    lives: int


def measure(run: Run, fired: Iterable[Fired]) -> Goodput:
    """Count; call it when the run has ended.

    Args:
        run: the run.
        fired: the faults that happened: a unit was lost to its worker's, in its round.
    """
    faults = {
        (happened.fault.who, happened.round): f"{happened.fault.do} in {happened.fault.place}"
        for happened in fired
    }
    known = {unit.assignment: unit for unit in units(run.database)}
    ended = outcomes(run.database)
    trained, merged, lost = 0, 0, Counter[str]()
    for name in run.shape.names:
        for assignment, work in works(events(run.logs / f"{name}.log")).items():
            unit = known.get(assignment)
            cut_short = work.lives - (unit is not None and unit.steps > 0)
            trained += work.computed + cut_short
            kept = unit.steps if unit is not None and unit.status == "merged" else 0
            merged += kept
            rest = work.computed + cut_short - kept
            if rest > 0:
                fault = faults.get((name, unit.round if unit is not None else -1), "")
                lost[_cause(unit, ended, fault)] += rest
    return Goodput(trained, merged, dict(lost))


def works(lines: Iterable[dict[str, Any]]) -> dict[str, Work]:
    """What was done of every unit, from a worker's log."""
    life, reached = 0, 0
    computed, lives = Counter[str](), defaultdict[str, set[int]](set)
    for line in lines:
        match line.get("event"):
            case chaos_soak_run.LIFE:
                life, reached = line["number"], 0
            case "training":
                reached = 0
            case "training resumed":
                reached = line["steps"]
            case chaos_soak_points.STEP:
                steps, unit = line["steps"], line["unit"]
                # Less than before: another unit, or a trainer that had to begin anew.
                computed[unit] += steps - reached if steps >= reached else 1
                lives[unit].add(life)
                reached = steps
    return {unit: Work(computed[unit], len(lives[unit])) for unit in lives}


def _cause(unit: Unit | None, ended: dict[int, tuple[str, str, int]], fault: str) -> str:
    if unit is None:
        return "lease rolled back"
    if unit.status == "merged":
        return f"done again after {fault or 'a fault of another'}"
    if ended.get(unit.round, ("", "", 0))[0] == "SKIPPED":
        return "round skipped"
    if fault:
        return fault
    return "committed, not merged" if unit.steps else "never committed"
