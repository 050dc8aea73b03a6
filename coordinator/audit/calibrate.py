"""The run's tolerance table: measured, not guessed (docs/verification.md, "Tolerance").

Invariants:

* Bounds of a pair of execution classes lie between the farthest honest work and the nearest cheat
  that was measured, with a margin on both sides; the logarithm of the gap is cut in three.
* Where there is no room for the nearest cheat, bounds keep to the next one, and the table names
  those that they catch. No room for any: no bounds, and audits of the pair stay inconclusive.
* Units of several lengths are measured, and each has bounds of its own: rounding weighs most in
  the first steps, a missing tenth least in a long unit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np

from coordinator.audit.measure import (
    LAZY,
    LAZY_SCALED,
    Bench,
    Encoded,
    Subject,
    Variant,
    classes_here,
    variants_of,
)
from protocol.errors import UsageError
from protocol.projection import project_update, unpack_projections
from protocol.tolerance import (
    Bounds,
    Entry,
    Measured,
    ToleranceTable,
    chunk_sizes,
    projection_distances,
    relative_distances,
)

LEAST_HONEST: Final = 0.01
"""Honest machines are granted this much even where the ones measured here agree better: one
machine does not show what another processor's or library's rounding does."""

LEAST_GAP: Final = 1.8
"""The nearest cheat must be so many times farther than honest work: 1.2 to each side of a bound."""

_CHUNK_PASS, _CHUNK_FAIL, _PROJECTION = 1.5, 3.0, 1.5
"""Multiples of the worst honest chunk. One chunk is a hard bound, for what falsifies it wholly."""

_LEAST_HONEST_CHUNK = 3 * LEAST_HONEST
_SHORT_UNITS = (1, 2, 5)  # a new key's first unit has at most 5
_OPENINGS = 16
"""Random sets of chunks, of the size that an audit opens, that each comparison is seen through."""

OnProgress = Callable[[int, int, str], None]
"""``(done, total, what)`` before each computation; ``done == total`` at the end."""


def calibrate_run(
    subject: Subject,
    *,
    samples: int = 3,
    steps: int | None = None,
    classes: Sequence[str] | None = None,
    thorough: bool = True,
    on_progress: OnProgress = lambda done, total, what: None,
) -> ToleranceTable:
    """Measure a run's bounds on this machine.

    Args:
        subject: the run, at the state to train from.
        samples: units to measure, of different data.
        steps: of a unit; default: the most that a round allows.
        classes: execution classes to measure; default: all that this machine has.
        thorough: also other thread counts and other data; otherwise in two thirds of the time.
        on_progress: told before each computation.

    Returns:
        The table; pairs with a class that this machine lacks are not in it.

    Raises:
        UsageError: the data do not fill a unit, or this machine lacks a class.
        Diverged: training from this state does not stay finite.
    """
    wanted = _checked(classes)
    steps = min(steps or subject.manifest.inner.max_steps, subject.batches)
    if steps < 1 or samples < 1:
        raise UsageError("calibrating takes a sample, and data for at least one inner step")
    lengths = (*(short for short in _SHORT_UNITS if short < steps), steps)
    plan = [(sample, length) for sample in range(samples) for length in lengths]
    found = _Found(subject)
    progress = _Progress(on_progress, len(plan) * len(wanted))
    for sample, length in plan:
        start = (subject.batches - length) * sample // samples  # spread over the epoch
        bench = Bench(subject, start, length, sample)
        _measure_unit(found, bench, wanted, thorough, progress)
    on_progress(progress.total, progress.total, "done")
    return ToleranceTable(
        run_id=subject.manifest.run_id.hex(),
        settled_rounds=subject.settled_rounds,
        steps=steps,
        samples=samples,
        made_at_s=int(time.time()),
        entries=tuple(
            make_entry(first, second, length, extremes.measured())
            for (first, second, length), extremes in sorted(found.extremes.items())
        ),
    )


def make_entry(first: str, second: str, steps: int, measured: Measured) -> Entry:
    """Bounds of a pair by the rule of this module's docstring; none where they have no room."""
    honest = max(measured.honest_pooled, LEAST_HONEST)
    names = set(measured.cheats)
    for caught in (names, names - {LAZY_SCALED}, names - {LAZY_SCALED, LAZY}):
        nearest = min((measured.cheats[name] for name in caught), default=0.0)
        if nearest >= LEAST_GAP * honest:
            third = (nearest / honest) ** (1 / 3)
            return Entry(
                first=first,
                second=second,
                steps=steps,
                measured=measured,
                bounds=_bounds(measured, honest * third, honest * third**2),
                catches=tuple(sorted(caught)),
            )
    return Entry(first=first, second=second, steps=steps, measured=measured, bounds=None)


def _bounds(measured: Measured, pooled_pass: float, pooled_fail: float) -> Bounds:
    chunk = max(measured.honest_chunk, _LEAST_HONEST_CHUNK)
    return Bounds(
        pooled_pass=pooled_pass,
        pooled_fail=pooled_fail,
        # Never tighter than the pooled ones, which a single opened chunk would otherwise be.
        chunk_pass=max(_CHUNK_PASS * chunk, pooled_pass),
        chunk_fail=max(_CHUNK_FAIL * chunk, pooled_fail),
        projection=_PROJECTION * max(measured.honest_projection, _LEAST_HONEST_CHUNK),
    )


@dataclass
class _Extremes:
    """Of one pair of classes, so far."""

    comparisons: int = 0
    pooled: float = 0.0
    chunk: float = 0.0
    projection: float = 0.0
    cheats: dict[str, float] = field(default_factory=dict)

    def measured(self) -> Measured:
        return Measured(
            comparisons=self.comparisons,
            honest_pooled=self.pooled,
            honest_chunk=self.chunk,
            honest_projection=self.projection,
            cheats=self.cheats,
        )


@dataclass
class _Found:
    """The extremes by pair of classes and length of the unit."""

    subject: Subject
    extremes: dict[tuple[str, str, int], _Extremes] = field(default_factory=dict)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def of(self, one: str, other: str, steps: int) -> _Extremes:
        first, second = sorted((one, other))
        return self.extremes.setdefault((first, second, steps), _Extremes())

    def add_honest(self, extremes: _Extremes, theirs: Encoded, replayed: Encoded) -> None:
        pooled, chunks = self._pooled(theirs, replayed)
        projected = self._projections(theirs, replayed, seed=extremes.comparisons)
        extremes.comparisons += 1
        extremes.pooled = max(extremes.pooled, *pooled)
        extremes.chunk = max(extremes.chunk, *chunks)
        extremes.projection = max(extremes.projection, projected)

    def add_cheat(self, extremes: _Extremes, name: str, theirs: Encoded, replay: Encoded) -> None:
        nearest = min(self._pooled(theirs, replay)[0])
        extremes.cheats[name] = min(extremes.cheats.get(name, nearest), nearest)

    def _pooled(self, theirs: Encoded, replayed: Encoded) -> tuple[list[float], list[float]]:
        """Pooled distances of sets of chunks as an audit would open them; each chunk's distance."""
        manifest, layout = self.subject.manifest, self.subject.layout
        chunks = dict(enumerate(theirs)), dict(enumerate(replayed))
        sizes = chunk_sizes(manifest.update.codec, layout, *chunks)
        opened = min(manifest.verification.opened_chunks, layout.count)
        draws = _OPENINGS if opened < layout.count else 1
        pooled = [
            relative_distances({int(c): sizes[int(c)] for c in drawn})[0]
            for drawn in (self.generator.permutation(layout.count)[:opened] for _ in range(draws))
        ]
        return pooled, list(relative_distances(sizes)[1].values())

    def _projections(self, theirs: Encoded, replayed: Encoded, seed: int) -> float:
        codec, layout = self.subject.manifest.update.codec, self.subject.layout
        one, other = (
            unpack_projections(
                project_update(chunks, codec, layout, seed.to_bytes(32, "big")), layout.count
            )
            for chunks in (theirs, replayed)
        )
        return float(projection_distances(one, other).max())


@dataclass
class _Progress:
    tell: OnProgress
    total: int
    done: int = 0

    def step(self, what: str) -> None:
        self.tell(self.done, self.total, what)
        self.done += 1


def _measure_unit(
    found: _Found,
    bench: Bench,
    classes: Sequence[str],
    thorough: bool,
    progress: _Progress,
) -> None:
    """Compare all honest ways to compute one unit, and the cheats with the plain ones."""
    honest: dict[Variant, Encoded] = {}
    plain: dict[str, Encoded] = {}
    cheats: list[tuple[str, str, Encoded]] = []
    for name in classes:
        progress.step(name)
        variants = variants_of(name, cores=os.cpu_count() or 1, thorough=thorough)
        honest |= {variant: bench.honest(variant) for variant in variants}
        plain[name] = honest[variants[0]]
        made = bench.cheats(variants[0], thorough=thorough)
        cheats += [(cheat, name, update) for cheat, update in made]
    for (one, theirs), (other, replayed) in combinations(honest.items(), 2):
        pair = found.of(one.execution_class, other.execution_class, bench.steps)
        found.add_honest(pair, theirs, replayed)
    for cheat, worker, theirs in cheats:
        for auditor, replay in plain.items():
            found.add_cheat(found.of(worker, auditor, bench.steps), cheat, theirs, replay)


def _checked(classes: Sequence[str] | None) -> tuple[str, ...]:
    here = classes_here()
    missing = sorted(set(classes or ()) - set(here))
    if missing:
        raise UsageError(f"this machine has no {', '.join(missing)}; it has {', '.join(here)}")
    return here if classes is None else tuple(dict.fromkeys(classes))
