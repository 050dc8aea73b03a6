"""The combination of members' chunks: exact on chosen numbers, refused on nonsense."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.combine import combine_chunk, l2_norm, weighted_lower_median


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_weighted_mean() -> None:
    mean = combine_chunk("mean", [vector(1, 2), vector(5, -2)], [3, 1])
    assert mean.tolist() == [2.0, 1.0]
    assert mean.dtype == np.float32


def test_one_rounding_only() -> None:
    """2^24 + 1 is not a float32: an accumulator of that type would lose the ones."""
    big, one = vector(2.0**24), vector(1)
    mean = combine_chunk("mean", [big, one, one, one, one], [1] * 5)
    assert mean[0] == np.float32((2**24 + 4) / 5)


def test_order_is_the_rosters() -> None:
    """Float64 sums depend on order in the last bit; the roster fixes it."""
    inputs = [vector(1e30), vector(1.0), vector(-1e30)]
    assert combine_chunk("mean", inputs, [1, 1, 1])[0] == 0
    inputs = [vector(1e30), vector(-1e30), vector(1.0)]
    assert combine_chunk("mean", inputs, [1, 1, 1])[0] == np.float32(1 / 3)


def test_clipping_to_the_median_norm() -> None:
    inputs = [vector(3, 4), vector(0, 5), vector(600, 800)]
    clipped = combine_chunk("clipped_mean", inputs, [1, 1, 1])
    np.testing.assert_allclose(clipped, [2.0, 13 / 3], rtol=1e-7)


def test_equal_norms_are_not_clipped() -> None:
    inputs = [vector(3, 4), vector(-4, 3), vector(0, 5)]
    clipped = combine_chunk("clipped_mean", inputs, [2, 1, 1])
    assert clipped.tobytes() == combine_chunk("mean", inputs, [2, 1, 1]).tobytes()


def test_majority_of_zeros_clips_to_zero() -> None:
    inputs = [vector(0, 0), vector(0, 0), vector(1, 1)]
    assert not combine_chunk("clipped_mean", inputs, [1, 1, 1]).any()


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([1.0], [1], 1.0),
        ([2.0, 1.0], [1, 1], 1.0),
        ([3.0, 1.0, 2.0], [1, 1, 1], 2.0),
        ([1.0, 2.0, 3.0], [1, 1, 5], 3.0),
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1], 2.0),
        ([1.0, 9.0], [0, 2], 9.0),
    ],
)
def test_weighted_lower_median(values: list[float], weights: list[int], expected: float) -> None:
    assert weighted_lower_median(values, weights) == expected


def test_norm() -> None:
    assert l2_norm(vector(3, 4)) == 5
    assert l2_norm(vector(2)) == 2
    assert l2_norm(vector(*[1] * 9)) == 3
    assert l2_norm(vector(1e30, 1e30)) == pytest.approx(2**0.5 * 1e30)


@pytest.mark.parametrize(
    ("rule", "digest"),
    [
        ("mean", "aec9915c6f03c0dc4cc309a6c77492e2304b3629376e89a56fe88e510cc8d5aa"),
        ("clipped_mean", "d6a72f0b6215fbf1d3327ce4b6d866a0580e3fbc6c6bd51a5d386059b4125322"),
    ],
)
def test_same_bytes_on_every_machine(rule: str, digest: str) -> None:
    inputs = []
    for key, scale in enumerate((1.0, 0.37, 12.0)):
        raw = np.random.Philox(key=key).random_raw(1001)
        inputs.append(((raw >> np.uint64(40)).astype(np.float32) - 2**23) * np.float32(scale))
    combined = combine_chunk(rule, inputs, [1024, 4096, 777])  # type: ignore[arg-type]
    assert hashlib.sha256(combined.astype("<f4").tobytes()).hexdigest() == digest


@pytest.mark.parametrize("weights", [[], [1], [0, 0], [2, -1]])
def test_nonsense_weights_are_our_bug(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weight"):
        combine_chunk("mean", [vector(1), vector(2)], weights)


def test_other_nonsense_is_our_bug() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        combine_chunk("mean", [], [])
    with pytest.raises(ValueError, match="different sizes"):
        combine_chunk("mean", [vector(1), vector(1, 2)], [1, 1])
