"""The unit of work: a pure function, whatever the machine chooses about memory and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protocol.errors import Diverged
from protocol.manifest import RunManifest
from protocol.model import build_model, flatten, initial_weights, load_flat
from protocol.training import (
    Execution,
    Unit,
    UnitResult,
    evaluate,
    learning_rates,
    make_optimizers,
    train,
)

Make = Callable[..., RunManifest]
STEPS = 6


class Counting:
    """Arithmetic progressions: something that a tiny model can learn."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        self.asked.append((start, end))
        rows = np.arange(start, end)[:, None]
        return (rows * 7 + (1 + rows % 5) * np.arange(32)) % 256


def unit(steps: int = STEPS, start: int = 8, tokens_base: int = 0) -> Unit:
    return Unit(start, start + 4 * steps, steps, seed=5, tokens_base=tokens_base)


def distance(one: UnitResult, other: UnitResult) -> float:
    return float(np.linalg.norm(one.update - other.update) / one.update_norm)


@pytest.fixture(scope="module")
def weights(manifest: RunManifest) -> NDArray[np.float32]:
    return initial_weights(manifest)


@pytest.fixture(scope="module")
def result(manifest: RunManifest, weights: NDArray[np.float32]) -> UnitResult:
    return train(manifest, weights, unit(), Counting())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_result(result: UnitResult, weights: NDArray[np.float32]) -> None:
    assert result.steps == STEPS
    assert result.tokens == STEPS * 4 * 32
    assert result.update.shape == weights.shape
    assert result.update.dtype == np.float32
    assert result.update_norm == pytest.approx(np.linalg.norm(result.update), rel=1e-5)
    assert 0 < result.mean_loss < 6


def test_repeats_to_the_bit_and_keeps_nothing(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult
) -> None:
    """Another unit in between must leave no trace: optimizer state is reset."""
    before = weights.copy()
    train(manifest, weights, unit(2, start=400), Counting())
    again = train(manifest, weights, unit(), Counting())
    assert again.update.tobytes() == result.update.tobytes()
    assert again.mean_loss == result.mean_loss
    assert np.array_equal(weights, before)


def test_update_is_before_minus_after(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult
) -> None:
    held_out = Counting().batch(1000, 1016)
    before = evaluate(manifest, weights, held_out)
    after = evaluate(manifest, weights - result.update, held_out)
    assert after < before - 0.01


def test_sequences_are_asked_for_in_order(
    manifest: RunManifest, weights: NDArray[np.float32]
) -> None:
    source = Counting()
    train(manifest, weights, unit(3, start=20), source)
    assert source.asked == [(20, 24), (24, 28), (28, 32)]


@pytest.mark.parametrize("micro", [1, 3, 4, 100])
def test_micro_batches_change_only_rounding(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult, micro: int
) -> None:
    other = train(manifest, weights, unit(), Counting(), Execution(micro_batch_sequences=micro))
    assert other.mean_loss == pytest.approx(result.mean_loss, rel=1e-5)
    assert distance(result, other) < 0.01


def test_gradients_of_uneven_micro_batches_are_weighted_by_tokens(
    make_manifest: Make, weights: NDArray[np.float32]
) -> None:
    """One step of AdamW-free arithmetic: gradient against one whole batch, in float32 digits."""
    model = build_model(make_manifest().model_config_json)
    load_flat(model, weights)
    batch = torch.tensor(Counting().batch(0, 4))
    model(input_ids=batch, labels=batch).loss.backward()
    whole = torch.cat([value.grad.flatten() for value in model.parameters()])
    model.zero_grad()
    for part in (batch[:3], batch[3:]):
        (model(input_ids=part, labels=part).loss * len(part) / 4).backward()
    parts = torch.cat([value.grad.flatten() for value in model.parameters()])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_thread_count_changes_only_rounding(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult
) -> None:
    assert distance(result, train(manifest, weights, unit(), Counting())) < 0.01


def test_bfloat16_is_close(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult
) -> None:
    other = train(manifest, weights, unit(), Counting(), Execution(autocast_bf16=True))
    assert other.mean_loss == pytest.approx(result.mean_loss, rel=1e-3)
    assert 0 < distance(result, other) < 0.1
    assert other.update.dtype == np.float32


def test_first_steps_do_not_depend_on_the_rest(
    manifest: RunManifest, weights: NDArray[np.float32]
) -> None:
    stopped = train(
        manifest, weights, unit(), Counting(), on_step=lambda done, loss: done < 3 and loss > 0
    )
    leased = train(manifest, weights, unit(3), Counting())
    assert stopped.steps == leased.steps == 3
    assert stopped.tokens == leased.tokens == 3 * 128
    assert stopped.update.tobytes() == leased.update.tobytes()


def test_on_step_sees_every_loss(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult
) -> None:
    seen: list[tuple[int, float]] = []
    train(manifest, weights, unit(), Counting(), on_step=lambda *step: seen.append(step) is None)
    assert [done for done, _ in seen] == list(range(1, STEPS + 1))
    assert np.mean([loss for _, loss in seen]) == pytest.approx(result.mean_loss)


def test_other_inputs_give_other_updates(
    manifest: RunManifest, weights: NDArray[np.float32], result: UnitResult
) -> None:
    """Also far: rounding is three orders of magnitude below."""
    other_data = train(manifest, weights, unit(start=200), Counting())
    fewer_steps = train(manifest, weights, unit(5), Counting())
    later = train(manifest, weights, unit(tokens_base=700_000), Counting())
    for other in (other_data, fewer_steps, later):
        assert distance(result, other) > 0.05


def test_the_callers_random_state_is_left_alone(
    manifest: RunManifest, weights: NDArray[np.float32]
) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    train(manifest, weights, unit(1), Counting())
    assert torch.equal(state, torch.get_rng_state())


def test_learning_rate_is_the_schedules_times_the_rounds_warm_up(make_manifest: Make) -> None:
    manifest = make_manifest(inner={"warmup_steps": 3})
    schedule = manifest.inner.learning_rate
    for tokens_base in (0, 500_000):
        base = schedule.at(tokens_base)
        rates = list(learning_rates(manifest, unit(6, tokens_base=tokens_base)))
        assert rates == pytest.approx([base / 4, base / 2, base * 3 / 4, base, base, base])
    assert list(learning_rates(manifest, unit(2))) == list(learning_rates(manifest, unit(6)))[:2]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_hidden_matrices_only(make_manifest: Make, tied: bool) -> None:
    config = {**make_manifest().model_config_json, "tie_word_embeddings": tied}
    model = build_model(config)
    adamw, muon = make_optimizers(model, make_manifest().inner)
    names = {id(value): name for name, value in model.named_parameters()}
    hidden = {names[id(value)] for value in muon.param_groups[0]["params"]}
    rest = {names[id(value)] for value in adamw.param_groups[0]["params"]}
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert all("_proj.weight" in name for name in hidden)
    assert len(hidden) == 2 * 7
    assert hidden | rest == set(names.values())
    assert "model.embed_tokens.weight" in rest
    assert tied or "lm_head.weight" in rest


def test_every_optimizer_argument_is_the_manifests(make_manifest: Make) -> None:
    inner = make_manifest(inner={"muon": {"momentum": 0.8, "ns_steps": 3}}).inner
    adamw, muon = make_optimizers(build_model(make_manifest().model_config_json), inner)
    group = muon.param_groups[0]
    assert (group["momentum"], group["ns_steps"], group["nesterov"]) == (0.8, 3, True)
    assert (group["weight_decay"], group["adjust_lr_fn"]) == (0.1, "match_rms_adamw")
    group = adamw.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-8, 0.1)


def test_gradients_are_clipped_once_to_the_manifests_norm(
    make_manifest: Make, weights: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def recording(parameters: list[torch.Tensor], most: float, **options: object) -> torch.Tensor:
        total = clip(parameters, most, **options)  # type: ignore[arg-type]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return total

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recording)
    manifest = make_manifest(inner={"clip_norm": 0.01})
    train(manifest, weights, unit(2), Counting(), Execution(micro_batch_sequences=1))
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        Unit(0, 7, 2, 0, 0),
        Unit(0, 0, 0, 0, 0),
        Unit(0, 44, 11, 0, 0),
    ],
)
def test_units_out_of_range_are_our_bug(
    manifest: RunManifest, weights: NDArray[np.float32], bad: Unit
) -> None:
    with pytest.raises(ValueError, match="a unit"):
        train(manifest, weights, bad, Counting())


def test_batches_of_another_shape_are_our_bug(
    make_manifest: Make, weights: NDArray[np.float32]
) -> None:
    with pytest.raises(ValueError, match="not the manifest's"):
        train(make_manifest(sequence_length=16), weights, unit(), Counting())


def test_divergence_is_nobodys_fault(manifest: RunManifest, weights: NDArray[np.float32]) -> None:
    broken = weights.copy()
    broken[:] = 1e30
    with pytest.raises(Diverged) as raised:
        train(manifest, broken, unit(), Counting())
    assert raised.value.reason == "DIVERGED"


def test_evaluate_is_the_librarys_loss(manifest: RunManifest, weights: NDArray[np.float32]) -> None:
    sequences = Counting().batch(50, 57)
    model = build_model(manifest.model_config_json)
    load_flat(model, weights)
    assert np.array_equal(flatten(model), weights)
    tokens = torch.tensor(sequences)
    with torch.no_grad():
        expected = float(model(input_ids=tokens, labels=tokens).loss)
    for micro in (None, 1, 3, 100):
        loss = evaluate(manifest, weights, sequences, Execution(micro_batch_sequences=micro))
        assert loss == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        evaluate(manifest, weights, sequences[:0])
