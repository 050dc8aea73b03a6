"""How a reducer combines the members' chunks: reproducible byte for byte from the same inputs.

Invariants:

* Inputs are taken in roster order into a float64 accumulator, one elementary operation at a
  time (multiply, then add); the sum is divided once and rounded once to float32.
* The clipping norm is summed in a fixed order of its own, because a library's ``sum`` or
  ``dot`` may reorder additions between processors or versions.
* Elements pass in slices whose float64 stays in the processor's cache. No value depends on that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.manifest import CombineRule

FloatVector = NDArray[np.float32]
DoubleVector = NDArray[np.float64]

SLICE_ELEMENTS = 1 << 14
"""128 KiB of float64; a power of two."""


def combine_chunk(
    rule: CombineRule, inputs: Sequence[FloatVector], weights: Sequence[int]
) -> FloatVector:
    """Combine one chunk over the members of an inclusion set.

    ``mean``: weighted mean. ``clipped_mean``: the same after each input longer than the
    weighted lower median of the set's L2 norms was shortened to it, so that one member of a
    minority cannot move the mean further than an honest one.

    Args:
        rule: from the run manifest.
        inputs: decoded chunks, equal in size, in roster order.
        weights: the roster's integer weights, in the same order, at least one positive.

    Returns:
        Float32 vector of the inputs' size.
    """
    if not inputs or len(inputs) != len(weights):
        raise ValueError("one weight for each input, and at least one input")
    if min(weights) < 0 or sum(weights) == 0:
        raise ValueError("weights are not negative and not all zero")
    coefficients = [np.float64(weight) for weight in weights]
    if rule == "clipped_mean":
        factors = _clip_factors([l2_norm(values) for values in inputs], weights)
        coefficients = [np.multiply(*pair) for pair in zip(coefficients, factors, strict=True)]
    elements = len(inputs[0])
    if any(values.shape != (elements,) for values in inputs):
        raise ValueError("chunks of different sizes")
    combined = np.empty(elements, np.float32)
    sums, terms = np.empty((2, SLICE_ELEMENTS), np.float64)
    for start in range(0, elements, SLICE_ELEMENTS):
        part = slice(start, min(start + SLICE_ELEMENTS, elements))
        total, term = sums[: part.stop - start], terms[: part.stop - start]
        total.fill(0)
        for values, coefficient in zip(inputs, coefficients, strict=True):
            np.copyto(term, values[part])
            np.multiply(term, coefficient, out=term)
            np.add(total, term, out=total)
        np.divide(total, np.float64(sum(weights)), out=total)
        np.copyto(combined[part], total, casting="same_kind")
    return combined


def l2_norm(values: FloatVector) -> float:
    """L2 norm in float64, the same bits everywhere.

    Squares are added in halves: element i to element i + half, until one is left.
    """
    size = 1 << max(len(values) - 1, 0).bit_length()
    width = min(size, SLICE_ELEMENTS)
    squares = np.zeros(width, np.float64)
    _add_squares(values, 0, 1, size // width, squares)
    while width > 1:
        width //= 2
        np.add(squares[:width], squares[width : 2 * width], out=squares[:width])
    return float(np.sqrt(squares[0]))


def _add_squares(values: FloatVector, row: int, step: int, rows: int, out: DoubleVector) -> None:
    """Squares of the rows ``row, row + step, ...``, added in halves into ``out``.

    ``values`` is cut into rows as long as ``out``, with zeros after its end. Halving adds row i to
    row i + rows / 2, and so on: the even rows among themselves, the odd ones, then both. Depth
    first, few rows are in use at a time.
    """
    if step == rows:
        part = values[row * len(out) : (row + 1) * len(out)]
        np.copyto(out[: len(part)], part)
        np.multiply(out[: len(part)], out[: len(part)], out=out[: len(part)])
        out[len(part) :] = 0
        return
    _add_squares(values, row, 2 * step, rows, out)
    other = np.empty_like(out)
    _add_squares(values, row + step, 2 * step, rows, other)
    np.add(out, other, out=out)


def weighted_lower_median(values: Sequence[float], weights: Sequence[int]) -> float:
    """The least value that, with all below it, carries at least half of the weight."""
    half, below = sum(weights), 0
    for value, weight in sorted(zip(values, weights, strict=True)):
        below += weight
        if 2 * below >= half:
            return value
    raise ValueError("no values")


def _clip_factors(norms: Sequence[float], weights: Sequence[int]) -> list[np.float64]:
    bound = weighted_lower_median(norms, weights)
    return [np.float64(1.0 if norm <= bound else bound / norm) for norm in norms]
