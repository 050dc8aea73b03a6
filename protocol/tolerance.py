"""How far two honest machines may be apart, and how an update is compared with its replay.

Invariants (docs/verification.md, "Tolerance"):

* Distance is relative L1, ``sum|theirs - replay| / sum|replay|``, of decoded chunks that were
  encoded with the same noise: seeded rounding makes L2 four times as large and L1 hardly larger.
* AGREES takes the pooled distance within its tight bound *and* every chunk within its hard one.
* Only chunks that were opened at random are pooled, as the bounds were measured; those that were
  opened because they are suspicious are judged one by one.
* Only what is beyond a bound that was measured is DIFFERS. No bounds, or between two bounds, is
  BETWEEN, and punishes nobody. Equal bytes agree without any bounds.
* A chunk of almost no update is measured against the opened chunks' mean size, not its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

import numpy as np
import rfc8785
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.codec import decode_chunk
from protocol.errors import BadRecord
from protocol.manifest import Codec, Hex256, explain_validation
from protocol.projection import FloatMatrix
from protocol.update import ChunkLayout

__all__ = [
    "FARTHEST",
    "NEAR_ZERO",
    "Bounds",
    "ChunkSize",
    "Comparison",
    "Entry",
    "Finding",
    "Measured",
    "Outcome",
    "ToleranceTable",
    "chunk_sizes",
    "compare_chunks",
    "differing_chunks",
    "projection_distances",
    "relative_distances",
]

FARTHEST: Final = 1e9
"""Distances end here: records and JSON hold no infinity."""

MAX_TABLE_BYTES: Final = 1 << 20
"""A stored table: six execution classes make 21 pairs of a few hundred bytes."""

NEAR_ZERO: Final = 0.02
"""A chunk whose mean size is below this share of all chunks' is measured against that share."""

Execution = Annotated[str, Field(pattern=r"^(cpu|cuda|mps)(-bf16)?$")]
Distance = Annotated[float, Field(ge=0, le=FARTHEST)]
FloatVector = NDArray[np.float32]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Bounds(_Frozen):
    """Bounds of one pair of execution classes; all are relative distances."""

    pooled_pass: Distance  # L1 of the drawn chunks together: at most this agrees
    pooled_fail: Distance  # more than this differs
    chunk_pass: Distance  # L1 of each opened chunk
    chunk_fail: Distance
    projection: Distance  # L2 of a chunk, as 64 projections estimate it: beyond it, open the chunk
    near_zero: float = Field(NEAR_ZERO, gt=0, le=1)  # share of the mean size

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.pooled_pass > self.pooled_fail or self.chunk_pass > self.chunk_fail:
            raise ValueError("a bound to pass is above the bound to fail")
        return self


class Measured(_Frozen):
    """What bounds are made of: the greatest honest distances, and the least of each cheat."""

    comparisons: int = Field(ge=0)  # of honest work
    honest_pooled: Distance = 0.0
    honest_chunk: Distance = 0.0
    honest_projection: Distance = 0.0
    cheats: dict[str, Distance] = Field(default_factory=dict)  # least pooled distance, by name


class Entry(_Frozen):
    """Bounds of a pair of execution classes, in alphabetical order, for units of some length.

    No bounds: cheats could not be told from honest work; such a pair is never decided.
    """

    first: Execution
    second: Execution
    steps: int = Field(ge=1)  # of the units that were measured
    measured: Measured
    bounds: Bounds | None
    catches: tuple[str, ...] = Field((), strict=False)  # the cheats that lie beyond the bounds


class ToleranceTable(_Frozen):
    """The calibrated bounds of a run."""

    format: Literal["barnraise-tolerance/1"] = "barnraise-tolerance/1"
    run_id: Hex256
    settled_rounds: int = Field(ge=0)  # of the state that was trained from
    steps: int = Field(ge=1)  # of the longest units that were measured
    samples: int = Field(ge=1)  # units of each length
    made_at_s: int = Field(ge=0)
    entries: tuple[Entry, ...] = Field(strict=False)  # JSON has lists

    def of_pair(self, one: str, other: str) -> list[Entry]:
        """The entries of two execution classes, in either order, by length."""
        pair = tuple(sorted((one, other)))
        matching = [entry for entry in self.entries if (entry.first, entry.second) == pair]
        return sorted(matching, key=lambda entry: entry.steps)

    def bounds(
        self, worker_execution: str, auditor_execution: str, steps: int | None = None
    ) -> Bounds | None:
        """Bounds between two execution classes; None when there are none to decide by.

        Rounding weighs most in short units, and a missing tenth least in long ones: between two
        measured lengths, bounds are interpolated in the logarithms.

        Args:
            worker_execution: class of the contribution.
            auditor_execution: class of the replay.
            steps: inner steps of the unit; default: the longest measured.
        """
        entries = self.of_pair(worker_execution, auditor_execution)
        if not entries:
            return None
        length = min(max(steps or self.steps, entries[0].steps), entries[-1].steps)
        below = max((e for e in entries if e.steps <= length), key=lambda entry: entry.steps)
        above = min((e for e in entries if e.steps >= length), key=lambda entry: entry.steps)
        if below.bounds is None or above.bounds is None or below is above:
            return above.bounds if below is above else None
        share = math.log(length / below.steps) / math.log(above.steps / below.steps)
        return _between(below.bounds, above.bounds, share)

    def to_json(self) -> str:
        """Canonical JSON (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json")).decode()

    @classmethod
    def parse(cls, document: str) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            BadRecord: too large, no JSON, or no such table.
        """
        if len(document) > MAX_TABLE_BYTES:
            raise BadRecord(f"a tolerance table is at most {MAX_TABLE_BYTES} bytes")
        try:
            return cls.model_validate(json.loads(document))
        except ValidationError as error:
            raise BadRecord(explain_validation("tolerance table", error)) from error
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"the tolerance table is not JSON: {error}") from error


def _between(one: Bounds, other: Bounds, share: float) -> Bounds:
    """Geometric interpolation of every bound; ``share`` 0 is ``one``."""
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in Bounds.model_fields)
    return Bounds(**{name: low ** (1 - share) * high**share for name, low, high in pairs})


class Outcome(StrEnum):
    """What one replay says of a worker's bytes."""

    AGREES = "agrees"
    DIFFERS = "differs"
    BETWEEN = "between"


@dataclass(frozen=True)
class Finding:
    """One comparison: a chunk's distance, or the pooled one (chunk 0)."""

    what: str  # pooled | chunk | bytes
    chunk: int
    distance: float
    bound: float  # the one it was beyond; else the one it kept


@dataclass(frozen=True)
class Comparison:
    outcome: Outcome
    findings: tuple[Finding, ...]
    pooled: float


def compare_chunks(
    codec: Codec,
    layout: ChunkLayout,
    theirs: Mapping[int, bytes],
    replayed: Mapping[int, bytes],
    bounds: Bounds | None,
    pooled: Collection[int] | None = None,
) -> Comparison:
    """Compare a worker's opened chunks with a replay's.

    Args:
        theirs: encoded chunks by number, at least one, proven to be what was committed to.
        replayed: the replay's, encoded with the same noise; at least the same numbers.
        bounds: of the two execution classes, from the run's table.
        pooled: numbers of the chunks that were drawn; default: all. The others count one by one.

    Raises:
        BadRecord: a chunk is malformed.
    """
    if not theirs or not theirs.keys() <= replayed.keys():
        raise ValueError("nothing was opened, or not everything that was opened was replayed")
    near_zero = bounds.near_zero if bounds else NEAR_ZERO
    sizes = chunk_sizes(codec, layout, theirs, replayed)
    together, distances = relative_distances(sizes, near_zero, pooled)
    if all(theirs[chunk] == replayed[chunk] for chunk in theirs):
        return Comparison(Outcome.AGREES, (Finding("bytes", 0, 0.0, 0.0),), 0.0)
    if bounds is None:
        return Comparison(Outcome.BETWEEN, (Finding("pooled", 0, together, 0.0),), together)
    judged = [_judge("pooled", 0, together, bounds.pooled_pass, bounds.pooled_fail)]
    judged += [
        _judge("chunk", chunk, distance, bounds.chunk_pass, bounds.chunk_fail)
        for chunk, distance in sorted(distances.items())
    ]
    outcomes = {outcome for outcome, _ in judged}
    # The worst one decides.
    ranked = (Outcome.DIFFERS, Outcome.BETWEEN, Outcome.AGREES)
    outcome = next(outcome for outcome in ranked if outcome in outcomes)
    return Comparison(outcome, tuple(finding for _, finding in judged), together)


@dataclass(frozen=True)
class ChunkSize:
    """Sums over a chunk: all that distances take."""

    elements: int
    apart: float  # sum|theirs - replay|
    replay: float  # sum|replay|


def chunk_sizes(
    codec: Codec, layout: ChunkLayout, theirs: Mapping[int, bytes], replayed: Mapping[int, bytes]
) -> dict[int, ChunkSize]:
    """Decode the chunks of ``theirs`` and add up how far they are from the replay's.

    Raises:
        BadRecord: a chunk is malformed.
    """
    sizes = {}
    for chunk, encoded in theirs.items():
        elements = layout.chunk_size(chunk)
        ours = decode_chunk(codec, replayed[chunk], elements).astype(np.float64)
        values = decode_chunk(codec, encoded, elements).astype(np.float64)
        apart = float(np.abs(values - ours).sum())
        sizes[chunk] = ChunkSize(elements, apart, float(np.abs(ours).sum()))
    return sizes


def relative_distances(
    sizes: Mapping[int, ChunkSize],
    near_zero: float = NEAR_ZERO,
    pooled: Collection[int] | None = None,
) -> tuple[float, dict[int, float]]:
    """The pooled relative L1 distance of some chunks, and that of each.

    Args:
        sizes: by chunk, at least one.
        near_zero: as in :class:`Bounds`.
        pooled: numbers of the chunks to pool, at least one of ``sizes``; default: all.
    """
    counted = [size for chunk, size in sizes.items() if pooled is None or chunk in pooled]
    if not counted:
        raise ValueError("there is nothing to pool")
    elements = sum(size.elements for size in sizes.values())
    replay = sum(size.replay for size in sizes.values())
    floor = near_zero * replay / elements
    apart = np.array([size.apart for size in sizes.values()])
    least = np.array([max(size.replay, floor * size.elements) for size in sizes.values()])
    together = _ratios(
        np.array([sum(size.apart for size in counted)]),
        np.array([sum(size.replay for size in counted)]),
    )
    distances = _ratios(apart, least)
    return float(together[0]), {
        chunk: float(distance) for chunk, distance in zip(sizes, distances, strict=True)
    }


def projection_distances(
    theirs: FloatMatrix, replayed: FloatMatrix, near_zero: float = NEAR_ZERO
) -> NDArray[np.float64]:
    """Estimated relative L2 distance of each chunk.

    Args:
        theirs: float32 ``[chunks, 64]``.
        replayed: the same shape.
        near_zero: as in :class:`Bounds`.

    Returns:
        Float64 ``[chunks]``, at most :data:`FARTHEST`.
    """
    if theirs.shape != replayed.shape:
        raise ValueError("projections of different chunks")
    ours = replayed.astype(np.float64)
    apart = np.sqrt(np.square(theirs.astype(np.float64) - ours).sum(axis=1))
    lengths = np.sqrt(np.square(ours).sum(axis=1))
    floor = near_zero * float(np.sqrt(np.mean(np.square(lengths)))) if len(lengths) else 0.0
    return _ratios(apart, np.maximum(lengths, floor))


def differing_chunks(
    theirs: FloatMatrix, replayed: FloatMatrix, bounds: Bounds | None, most: int
) -> list[int]:
    """Chunks whose projections differ beyond the bound, worst first, at most ``most``.

    Worth opening: a projection alone convicts nobody. Without bounds any difference counts.
    """
    near_zero, bound = (bounds.near_zero, bounds.projection) if bounds else (NEAR_ZERO, 0.0)
    distances = projection_distances(theirs, replayed, near_zero)
    ranked = np.argsort(-distances, kind="stable")
    return [int(chunk) for chunk in ranked[:most] if distances[chunk] > bound]


def _ratios(apart: NDArray[np.float64], length: NDArray[np.float64]) -> NDArray[np.float64]:
    """Elementwise quotients; 0 / 0 is 0: two zeros agree."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios: NDArray[np.float64] = np.where(apart == 0, 0.0, apart / length)
    return np.minimum(ratios, FARTHEST)


def _judge(
    what: str, chunk: int, distance: float, passes: float, fails: float
) -> tuple[Outcome, Finding]:
    if distance <= passes:
        return Outcome.AGREES, Finding(what, chunk, distance, passes)
    if distance <= fails:
        return Outcome.BETWEEN, Finding(what, chunk, distance, passes)
    return Outcome.DIFFERS, Finding(what, chunk, distance, fails)
