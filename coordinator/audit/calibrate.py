"""The run's tolerance table: measured, not guessed (docs/verification.md, "Tolerance").

Invariants:

* Bounds of a pair of execution classes lie between the farthest honest work and the nearest cheat
  that was measured, with a margin on both sides; the logarithm of the gap is cut in three.
* Where there is no room for that, a pair gets no bounds: its audits stay inconclusive, and the
  table says so.
* Short units are measured too: rounding weighs most in the first steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from typing import Final

import numpy as np

from coordinator.audit.measure import (
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

LEAST_GAP: Final = 2.2
"""The nearest cheat must be so many times farther than honest work: 1.3 to each side of a bound."""

_CHUNK_PASS, _CHUNK_FAIL, _PROJECTION = 1.5, 3.0, 1.5
"""Multiples of the worst honest chunk. One chunk is a hard bound, for what falsifies it wholly."""

_LEAST_HONEST_CHUNK = 3 * LEAST_HONEST
_SHORT_UNITS = (1, 5)
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
        thorough: also other thread counts and crude cheats; otherwise about half the time.
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
    plan = [
        (sample, length)
        for sample in range(samples)
        for length in (*(short for short in _SHORT_UNITS if short < steps), steps)
    ]
    found = _Found(subject, {pair: _Extremes() for pair in _pairs(wanted)})
    progress = _Progress(on_progress, len(plan) * len(wanted))
    for sample, length in plan:
        start = _start_batch(subject, sample, samples, length)
        bench = Bench(subject, start, length, sample)
        _measure_unit(found, bench, wanted, thorough, length == steps, progress)
    on_progress(progress.total, progress.total, "done")
    return ToleranceTable(
        run_id=subject.manifest.run_id.hex(),
        settled_rounds=subject.settled_rounds,
        steps=steps,
        samples=samples,
        made_at_s=int(time.time()),
        entries=tuple(make_entry(*pair, e.measured()) for pair, e in found.pairs.items()),
    )


def make_entry(first: str, second: str, measured: Measured) -> Entry:
    """Bounds of a pair by the rule of this module's docstring; none where they have no room."""
    honest = max(measured.honest_pooled, LEAST_HONEST)
    # Bounds that also catch who hides the missing steps, if there is room; else who does not.
    for names in (set(measured.cheats), set(measured.cheats) - {LAZY_SCALED}):
        nearest = min((measured.cheats[name] for name in names), default=0.0)
        if nearest >= LEAST_GAP * honest:
            third = (nearest / honest) ** (1 / 3)
            bounds = _bounds(measured, honest * third, honest * third**2)
            return Entry(
                first=first,
                second=second,
                measured=measured,
                bounds=bounds,
                catches=tuple(sorted(names)),
            )
    return Entry(first=first, second=second, measured=measured, bounds=None)


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
    subject: Subject
    pairs: dict[tuple[str, str], _Extremes]
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add_honest(self, one: str, theirs: Encoded, other: str, replayed: Encoded) -> None:
        extremes = self.pairs[_pair(one, other)]
        pooled, chunks = self._pooled(theirs, replayed)
        projected = self._projections(theirs, replayed, seed=extremes.comparisons)
        extremes.comparisons += 1
        extremes.pooled = max(extremes.pooled, *pooled)
        extremes.chunk = max(extremes.chunk, *chunks)
        extremes.projection = max(extremes.projection, projected)

    def add_cheat(self, name: str, one: str, theirs: Encoded, other: str, replay: Encoded) -> None:
        extremes = self.pairs[_pair(one, other)]
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
    full: bool,
    progress: _Progress,
) -> None:
    """Compare all honest ways to compute one unit and, at full length, the cheats with them."""
    honest: dict[Variant, Encoded] = {}
    plain: dict[str, Encoded] = {}
    cheats: list[tuple[str, str, Encoded]] = []
    for name in classes:
        progress.step(name)
        variants = variants_of(name, cores=os.cpu_count() or 1, thorough=thorough and full)
        honest |= {variant: bench.honest(variant) for variant in variants}
        plain[name] = honest[variants[0]]
        if full:
            made = bench.cheats(variants[0], thorough=thorough)
            cheats += [(cheat, name, update) for cheat, update in made]
    for (one, theirs), (other, replayed) in combinations(honest.items(), 2):
        found.add_honest(one.execution_class, theirs, other.execution_class, replayed)
    for cheat, worker, theirs in cheats:
        for auditor, replay in plain.items():
            found.add_cheat(cheat, worker, theirs, auditor, replay)


def _checked(classes: Sequence[str] | None) -> tuple[str, ...]:
    here = classes_here()
    missing = sorted(set(classes or ()) - set(here))
    if missing:
        raise UsageError(f"this machine has no {', '.join(missing)}; it has {', '.join(here)}")
    return here if classes is None else tuple(dict.fromkeys(classes))


def _pairs(classes: Iterable[str]) -> list[tuple[str, str]]:
    return list(combinations_with_replacement(sorted(classes), 2))


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one <= other else (other, one)


def _start_batch(subject: Subject, sample: int, samples: int, steps: int) -> int:
    """Spread the units over the epoch."""
    return (subject.batches - steps) * sample // samples
