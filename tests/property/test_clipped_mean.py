"""How far one member can move a ``clipped_mean``: no further than the median norm allows.

Let W be the weight of the set and w the hostile member's, w <= W / 2. Let low and high be the
weighted lower median of the norms when the hostile one is 0 and when it is infinite.

* high is finite, and at most the longest honest norm: the honest carry at least half of W.
* Whatever the hostile vector, the clipping norm lies in [low, high]: a median is monotone.
* Its own term is at most w * high / W. Honest member i is clipped to min(n_i, m) with m in
  [low, high], so its term moves by at most w_i * (min(n_i, high) - min(n_i, low)) / W.

So two hostile vectors, whatever they are, lead to means that are at most twice the sum of these
apart, and a hostile vector and none (a zero) at most once. Where the honest norms are equal, n,
the bound is w * n / W: what an honest member moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from protocol.combine import combine_chunk, l2_norm, weighted_lower_median

Vector = NDArray[np.float32]
_ROUNDING = 1e-6  # of float32, relative to the longest honest vector
_TINY = 1e-30


@dataclass(frozen=True)
class Group:
    honest: list[Vector]
    weights: list[int]  # of the honest, then of the hostile member
    place: int  # of the hostile member in the roster

    def mean(self, hostile: Vector) -> Vector:
        inputs, weights = list(self.honest), self.weights[:-1]
        inputs.insert(self.place, hostile)
        weights.insert(self.place, self.weights[-1])
        return combine_chunk("clipped_mean", inputs, weights)

    def bound(self) -> float:
        """The docstring's, from the honest members alone."""
        norms = [l2_norm(vector) for vector in self.honest]
        low = weighted_lower_median([*norms, 0.0], self.weights)
        high = weighted_lower_median([*norms, math.inf], self.weights)
        assert high <= max(norms)
        moved = self.weights[-1] * high
        for norm, weight in zip(norms, self.weights[:-1], strict=True):
            moved += weight * (min(norm, high) - min(norm, low))
        return moved / sum(self.weights)


def vectors(elements: int, size: float) -> st.SearchStrategy[Vector]:
    return arrays(np.float32, elements, elements=st.floats(-size, size, width=32))


@st.composite
def groups(draw: st.DrawFn, members: int) -> tuple[Group, Vector, Vector]:
    """A group with one hostile member of at most half the weight, and two of its vectors."""
    elements = draw(st.integers(1, 4))
    size = draw(st.sampled_from([2.0**-30, 1.0, 2.0**20]))
    honest = [draw(vectors(elements, size)) for _ in range(members - 1)]
    weights = [draw(st.integers(1, 10**9)) for _ in range(members - 1)]
    weights.append(draw(st.integers(1, sum(weights))))
    hostile = vectors(elements, float(np.finfo(np.float32).max))
    place = draw(st.integers(0, members - 1))
    return Group(honest, weights, place), draw(hostile), draw(hostile)


def distance(one: Vector, other: Vector) -> float:
    return float(np.linalg.norm(one.astype(np.float64) - other.astype(np.float64)))


@pytest.mark.parametrize("members", [3, 5, 9])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_one_member_moves_the_mean_no_further_than_the_median_norm_allows(
    members: int, data: st.DataObject
) -> None:
    group, hostile, other = data.draw(groups(members))
    bound = group.bound() + _ROUNDING * max(map(l2_norm, group.honest)) + _TINY
    zero = np.zeros_like(hostile)
    assert distance(group.mean(hostile), group.mean(zero)) <= bound
    assert distance(group.mean(hostile), group.mean(other)) <= 2 * bound


@pytest.mark.parametrize("members", [3, 5, 9])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_among_equals_it_moves_the_mean_as_far_as_an_honest_one(
    members: int, data: st.DataObject
) -> None:
    """Honest norms of 1, any directions; the hostile vector as long as float32 can say."""
    axes = data.draw(st.lists(st.integers(0, 3), min_size=members - 1, max_size=members - 1))
    honest = [np.eye(4, dtype=np.float32)[axis] for axis in axes]
    group = Group(honest, [1] * members, 0)
    hostile = data.draw(vectors(4, float(np.finfo(np.float32).max)))
    moved = distance(group.mean(hostile), group.mean(np.zeros_like(hostile)))
    assert moved <= 1 / members + _ROUNDING
    assert group.bound() == pytest.approx(1 / members)


def scaled(norms: Sequence[float]) -> list[Vector]:
    return [np.array([norm, 0], np.float32) for norm in norms]


def test_a_plain_mean_can_be_moved_anywhere() -> None:
    """What the rule is for."""
    inputs, huge = scaled([1, 1]), np.array([0, 1e30], np.float32)
    assert l2_norm(combine_chunk("mean", [*inputs, huge], [1, 1, 1])) > 1e29
    assert l2_norm(combine_chunk("clipped_mean", [*inputs, huge], [1, 1, 1])) <= 1


def test_more_than_half_of_the_weight_is_not_bounded() -> None:
    """So a run caps weights: whoever outweighs all the others sets the median."""
    inputs, huge = scaled([1, 1]), np.array([0, 1e30], np.float32)
    assert l2_norm(combine_chunk("clipped_mean", [*inputs, huge], [1, 1, 2])) <= 1
    assert l2_norm(combine_chunk("clipped_mean", [*inputs, huge], [1, 1, 3])) > 1e29
