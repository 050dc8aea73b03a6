"""What the combine rules promise, for all inputs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.combine import combine_chunk, l2_norm, weighted_lower_median

Inputs = tuple[list[NDArray[np.float32]], list[int]]


@st.composite
def members(draw: st.DrawFn, low: float = -1e6, high: float = 1e6) -> Inputs:
    count, elements = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    value = st.floats(low, high, width=32)
    rows = st.lists(value, min_size=elements, max_size=elements)
    inputs = [np.array(draw(rows), np.float32) for _ in range(count)]
    weights = draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    return inputs, weights


@given(members())
def test_mean_is_the_exact_mean_up_to_rounding(case: Inputs) -> None:
    inputs, weights = case
    mean = combine_chunk("mean", inputs, weights)
    for index, value in enumerate(mean):
        terms = [
            Fraction(float(row[index])) * weight
            for row, weight in zip(inputs, weights, strict=True)
        ]
        exact = sum(terms, Fraction()) / sum(weights)
        size = sum((abs(term) for term in terms), Fraction()) / sum(weights)
        # One rounding to float32, and a float64 rounding for each of the terms.
        bound = abs(exact) * Fraction(2) ** -24 + size * Fraction(2) ** -48 + Fraction(2) ** -150
        assert abs(Fraction(float(value)) - exact) <= bound


@given(members())
def test_clipped_mean_is_bounded_by_the_median_norm(case: Inputs) -> None:
    inputs, weights = case
    bound = weighted_lower_median([l2_norm(row) for row in inputs], weights)
    assert l2_norm(combine_chunk("clipped_mean", inputs, weights)) <= bound * (1 + 1e-6) + 1e-40


@given(members(), st.floats(1, 1e6))
def test_a_minority_gains_nothing_by_scaling_up(case: Inputs, factor: float) -> None:
    """With less than half of the weight, a member longer than the median moves it no further."""
    inputs, weights = case
    weights = [sum(weights) + 1, *weights]
    inputs = [np.ones_like(inputs[0]), *inputs]  # an honest majority
    bound = l2_norm(inputs[0])
    attacked = [inputs[0], *(row * np.float32(factor) for row in inputs[1:])]
    combined = combine_chunk("clipped_mean", attacked, weights)
    honest = inputs[0].astype(np.float64) * weights[0] / sum(weights)
    moved = l2_norm((combined - honest).astype(np.float32))
    share = 1 - weights[0] / sum(weights)
    assert moved <= share * bound * (1 + 1e-5) + 1e-6


@given(members())
def test_one_member_alone_is_its_own_mean(case: Inputs) -> None:
    (first, *_), (weight, *_) = case
    for rule in ("mean", "clipped_mean"):
        assert np.array_equal(combine_chunk(rule, [first], [weight]), first)  # type: ignore[arg-type]


@given(members())
def test_inputs_are_left_alone(case: Inputs) -> None:
    inputs, weights = case
    before = [row.tobytes() for row in inputs]
    combine_chunk("clipped_mean", inputs, weights)
    assert [row.tobytes() for row in inputs] == before


@given(members())
def test_norm_is_the_norm(case: Inputs) -> None:
    for row in case[0]:
        expected = float(np.linalg.norm(row.astype(np.float64)))
        assert abs(l2_norm(row) - expected) <= 1e-12 * expected
