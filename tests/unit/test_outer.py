"""The outer step: torch's Nesterov SGD within rounding, and the same bits for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protocol.manifest import OuterSpec
from protocol.outer import outer_step

SPEC = OuterSpec(learning_rate=0.7, momentum=0.9)


def vectors(seed: int, count: int, elements: int = 1000) -> list[NDArray[np.float32]]:
    raw = np.random.Philox(key=seed).random_raw(count * elements)
    values = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1
    return list(values.reshape(count, elements))


def test_follows_torch_sgd_with_nesterov() -> None:
    start, *updates = vectors(1, 6)
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    weights, momentum = start, np.zeros_like(start)
    for update in updates:
        parameter.grad = torch.tensor(update)
        optimizer.step()
        weights, momentum = outer_step(weights, momentum, update, SPEC)
        np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_same_bits_on_every_machine() -> None:
    weights, *updates = vectors(2, 4)
    momentum = np.zeros_like(weights)
    for update in updates:
        weights, momentum = outer_step(weights, momentum, update, SPEC)
    digest = hashlib.sha256(weights.astype("<f4").tobytes() + momentum.astype("<f4").tobytes())
    assert digest.hexdigest() == "ad06e27f5ea9d92a6fa12933500df5742acaf60c84b8072b6d16287f3420f6f7"


def test_every_operation_rounds_once() -> None:
    """Against the formula in scalar float32: a fused multiply-add would differ somewhere."""
    weights, momentum, update = vectors(3, 3, 300)
    new_weights, new_momentum = outer_step(weights, momentum, update, SPEC)
    mu, rate = np.float32(0.9), np.float32(0.7)
    for w, m, d, w_new, m_new in zip(
        weights, momentum, update, new_weights, new_momentum, strict=True
    ):
        expected_m = np.float32(np.float32(m * mu) + d)
        step = np.float32(rate * np.float32(d + np.float32(mu * expected_m)))
        assert m_new == expected_m
        assert w_new == np.float32(w - step)


def test_inputs_are_left_alone() -> None:
    given = vectors(4, 3)
    before = [vector.tobytes() for vector in given]
    for vector in given:
        vector.flags.writeable = False
    outer_step(*given, SPEC)
    assert [vector.tobytes() for vector in given] == before


def test_plain_descent_without_momentum() -> None:
    weights, momentum, update = vectors(5, 3)
    new_weights, _ = outer_step(weights, momentum, update, OuterSpec(learning_rate=1.0, momentum=0))
    assert np.array_equal(new_weights, weights - update)


def test_wrong_arrays_are_our_bug() -> None:
    one, other = np.zeros(3, np.float32), np.zeros(4, np.float32)
    for arguments in ((one, one, other), (one, other, one), (one, one, one.astype(np.float64))):
        with pytest.raises(ValueError, match="float32 vectors of one size"):
            outer_step(*arguments, SPEC)  # type: ignore[arg-type]
