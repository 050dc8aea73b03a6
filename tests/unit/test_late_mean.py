"""Outer optimizers whose means come one round late."""

from __future__ import annotations

import pytest

from coordinator.late_mean import bears_late_means
from protocol.manifest import OuterSpec


def distance_after(rounds: int, outer: OuterSpec) -> float:
    """From the optimum, where members reach it within each round; one number at a time."""
    before = now = 1.0
    momentum = 0.0
    for _ in range(rounds):
        momentum = outer.momentum * momentum + before
        before, now = now, now - outer.learning_rate * (before + outer.momentum * momentum)
    return abs(now)


@pytest.mark.parametrize(
    ("learning_rate", "momentum", "bears"),
    [
        (0.7, 0.9, False),  # the default of runs without an overlap
        (0.7, 0.6, False),
        (1.0, 0.0, False),
        (0.99, 0.0, True),
        (0.4, 0.0, True),
        (0.26, 0.9, False),
        (0.24, 0.9, True),
    ],
)
def test_the_distance_to_the_optimum_shrinks_or_it_is_refused(
    learning_rate: float, momentum: float, bears: bool
) -> None:
    outer = OuterSpec(learning_rate=learning_rate, momentum=momentum)
    assert bears_late_means(outer) is bears
    assert (distance_after(3000, outer) < 0.01) is bears
