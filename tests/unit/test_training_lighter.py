"""Ways of computing that save memory or time: the same unit comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol import training
from protocol.manifest import RunManifest
from protocol.model import build_model, initial_weights
from protocol.training import Execution, Unit, UnitResult, arrange, train

STEPS = 4
UNIT = Unit(0, STEPS * 4, STEPS, seed=3, tokens_base=1000)
Work = Callable[..., UnitResult]


class Noise:
    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        return np.random.default_rng(start).integers(0, 256, (end - start, 32))


@pytest.fixture
def work(manifest: RunManifest) -> Work:
    return partial(train, manifest, initial_weights(manifest), UNIT, Noise())


@pytest.fixture
def batches_above(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """``batches_above(2, first)``: no memory for more sequences than 2, from a call on."""

    def arm(most: int, first: int = 0) -> list[int]:
        sizes: list[int] = []
        honest = training._summed_loss

        def loss(model: Any, batch: Any, execution: Execution) -> Any:
            sizes.append(len(batch))
            if len(batch) > most and len(sizes) > first:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return honest(model, batch, execution)

        monkeypatch.setattr(training, "_summed_loss", loss)
        return sizes

    return arm


def halve(now: Execution) -> Execution | None:
    size = now.micro_batch_sequences or 4
    return Execution(micro_batch_sequences=size // 2) if size > 1 else None


def same(one: UnitResult, other: UnitResult) -> bool:
    return one.update.tobytes() == other.update.tobytes() and one.mean_loss == other.mean_loss


@pytest.mark.parametrize("size", [None, 1, 3])
def test_activations_that_are_computed_twice_are_the_same_bits(
    work: Work, size: int | None
) -> None:
    assert same(work(Execution("cpu", size)), work(Execution("cpu", size, checkpointing=True)))


def test_a_unit_that_ran_out_of_memory_is_as_if_begun_in_smaller_parts(
    work: Work, batches_above: Callable[..., list[int]]
) -> None:
    small = work(Execution(micro_batch_sequences=2))
    sizes = batches_above(2)
    assert same(work(lighten=halve), small)
    assert sizes == [4] + [2, 2] * STEPS


def test_memory_that_runs_out_in_the_middle_costs_no_step(
    work: Work, batches_above: Callable[..., list[int]]
) -> None:
    whole = work()
    sizes = batches_above(1, 2)
    done: list[int] = []
    late = work(lighten=halve, on_step=lambda steps, _: bool(done.append(steps)) or True)
    assert done == list(range(1, STEPS + 1))
    assert sizes == [4, 4, 4, 2] + [1] * 4 * (STEPS - 2)
    distance = np.abs(late.update - whole.update).sum() / np.abs(whole.update).sum()
    assert distance < 0.01  # what two honest machines are granted (coordinator.audit.calibrate)


def test_what_was_added_up_before_memory_ran_out_is_not_added_twice(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = work(Execution(micro_batch_sequences=1))
    honest, calls = training._summed_loss, []

    def second_fails(model: Any, batch: Any, execution: Execution) -> Any:
        calls.append(len(batch))
        if len(calls) == 2:
            raise MemoryError
        return honest(model, batch, execution)

    monkeypatch.setattr(training, "_summed_loss", second_fails)
    assert same(work(Execution(micro_batch_sequences=2), lighten=halve), small)


def test_want_of_memory_is_told_when_nothing_is_lighter(
    work: Work, batches_above: Callable[..., list[int]]
) -> None:
    sizes = batches_above(0)
    with pytest.raises(RuntimeError, match="allocate memory"):
        work(lighten=halve)
    assert sizes == [4, 2, 1]
    with pytest.raises(RuntimeError, match="allocate memory"):
        work()


def test_other_errors_are_not_taken_for_want_of_memory(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(training, "_summed_loss", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        work(lighten=lambda now: pytest.fail("asked for something lighter"))


def test_computing_twice_changes_no_names_and_no_order(manifest: RunManifest) -> None:
    model = build_model(manifest.model_config_json).train()
    before = [name for name, _ in model.named_parameters()]
    arrange(model, Execution(checkpointing=True))
    assert [name for name, _ in model.named_parameters()] == before
