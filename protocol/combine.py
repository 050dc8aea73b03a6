"""How a reducer combines the members' chunks: reproducible byte for byte from the same inputs.

Invariants:

* Inputs are taken in roster order into a float64 accumulator, one elementary operation at a
  time (multiply, then add); the sum is divided once and rounded once to float32.
* The clipping norm is summed in a fixed order of its own, because a library's ``sum`` or
  ``dot`` may reorder additions between processors or versions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.manifest import CombineRule

FloatVector = NDArray[np.float32]


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
    total = np.zeros(inputs[0].shape, np.float64)
    for values, coefficient in zip(inputs, coefficients, strict=True):
        if values.shape != total.shape:
            raise ValueError("chunks of different sizes")
        np.add(total, np.multiply(values.astype(np.float64), coefficient), out=total)
    return np.divide(total, np.float64(sum(weights))).astype(np.float32)


def l2_norm(values: FloatVector) -> float:
    """L2 norm in float64, the same bits everywhere.

    Squares are added in halves: element i to element i + half, until one is left.
    """
    size = 1 << max(len(values) - 1, 0).bit_length()
    squares = np.zeros(size, np.float64)
    wide = values.astype(np.float64)
    np.multiply(wide, wide, out=squares[: len(values)])
    while size > 1:
        size //= 2
        np.add(squares[:size], squares[size : 2 * size], out=squares[:size])
    return float(np.sqrt(squares[0]))


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
