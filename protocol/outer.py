"""The outer optimizer: Nesterov momentum on the mean update, bit-identical on every machine.

Invariants:

* Float32 on the CPU, one correctly rounded elementary operation per numpy call. A separate
  call for each multiply and add cannot be fused to FMA, which would round once instead of
  twice and split x86 from ARM in the last bit (protocol section 9).
* New arrays are returned; the state before the step stays as it was, for retries and replays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.manifest import OuterSpec

FloatVector = NDArray[np.float32]


def outer_step(
    weights: FloatVector, momentum: FloatVector, mean_update: FloatVector, spec: OuterSpec
) -> tuple[FloatVector, FloatVector]:
    """``m <- mu*m + d; weights <- weights - lr*(d + mu*m)``.

    DiLoCo's outer step (Douillard et al. 2023, arXiv:2311.08105, algorithm 1).

    Args:
        weights: flat float32, the state before.
        momentum: flat float32, zeros before the first step.
        mean_update: flat float32, the decoded mean ``d``: before minus after.

    Returns:
        ``(weights, momentum)`` after the step, new arrays.
    """
    for vector in (weights, momentum, mean_update):
        if vector.dtype != np.float32 or vector.shape != weights.shape or vector.ndim != 1:
            raise ValueError("the outer step takes three float32 vectors of one size")
    mu, learning_rate = np.float32(spec.momentum), np.float32(spec.learning_rate)
    new_momentum = np.add(np.multiply(momentum, mu), mean_update)
    step = np.multiply(new_momentum, mu)
    np.add(mean_update, step, out=step)
    np.multiply(step, learning_rate, out=step)
    return np.subtract(weights, step), new_momentum
