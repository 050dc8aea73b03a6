"""Whether an outer optimizer bears means that come one round late (``overlap = lag1``).

A late mean covers ground that the round before it has covered too, and momentum multiplies what is
already counted twice: numbers that are good without an overlap may diverge with it
(docs/adr/0044-an-overlap-costs-more-than-it-hides.md).
"""

from __future__ import annotations

import numpy as np

from protocol.manifest import OuterSpec


def bears_late_means(outer: OuterSpec) -> bool:
    """Whether the weights come to rest where members reach the optimum within a round.

    There a mean is ``d = x(r - 1)``, with x the distance to the optimum when its round was trained;
    the outer step (protocol section 9) is linear in the distances and the momentum, so it comes to
    rest if the largest eigenvalue of its matrix is below 1.
    """
    mean = np.array([0.0, 1.0, 0.0])  # in (x(r), x(r - 1), momentum)
    momentum = outer.momentum * np.array([0.0, 0.0, 1.0]) + mean
    step = outer.learning_rate * (mean + outer.momentum * momentum)
    matrix = np.array([np.array([1.0, 0.0, 0.0]) - step, [1.0, 0.0, 0.0], momentum])
    return bool(np.abs(np.linalg.eigvals(matrix)).max() < 1)
