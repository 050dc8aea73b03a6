"""Train one arm of the benchmark of losses, in one process and without a network.

Ours is the protocol's own code from end to end: the unit of work, both encodings with their
noise, the combination and the outer step. What it is compared with shares the model, the text and
its order, the clipping and the schedule of the learning rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.loss_arm import SEQUENCE_LENGTH, SEQUENCES_PER_BATCH, Arm
from bench.loss_text import Text, make_text
from protocol.codec import MEAN_SOURCE
from protocol.combine import combine_chunk
from protocol.manifest import RunManifest
from protocol.model import build_model, flatten, initial_weights, load_flat
from protocol.outer import outer_step
from protocol.training import (
    Execution,
    Unit,
    accumulate_gradients,
    evaluate,
    make_optimizers,
    train,
)
from protocol.update import ChunkLayout, decode_update, encode_update

FloatVector = NDArray[np.float32]
Points = Iterator[tuple[int, FloatVector]]
"""``(tokens so far, weights)`` after every step or round."""

_CURVE_POINTS = 8
_CURVE_SEQUENCES, _FINAL_SEQUENCES = 256, 1024
_EVALUATION = Execution(micro_batch_sequences=64)


@dataclass(frozen=True)
class Outcome:
    loss: float  # at the end, nats per byte of held-out text
    curve: list[tuple[int, float]]  # (tokens, loss), on fewer sequences but the last
    step_s: float  # processor time of one member's step; evaluation is left out


def run_arm(arm: Arm, *, held_out: int = _FINAL_SEQUENCES) -> Outcome:
    """Train from the start to the end, and evaluate: at the end on ``held_out`` sequences."""
    manifest, text = arm.manifest(), make_text(SEQUENCE_LENGTH, held_out, arm.seed)
    curve: list[tuple[int, float]] = []
    start = weights = initial_weights(manifest)
    wanted = [arm.tokens * n // _CURVE_POINTS for n in range(1, _CURVE_POINTS)]
    started, evaluating_s = time.process_time(), 0.0
    for tokens, weights in _method(arm)(arm, manifest, text, start):
        if wanted and tokens >= wanted[0] and tokens < arm.tokens:
            wanted = [later for later in wanted if later > tokens]
            paused = time.process_time()
            seen = text.validation[:_CURVE_SEQUENCES]
            curve.append((tokens, evaluate(manifest, weights, seen, _EVALUATION)))
            evaluating_s += time.process_time() - paused
    step_s = (time.process_time() - started - evaluating_s) / arm.member_steps
    loss = evaluate(manifest, weights, text.validation, _EVALUATION)
    return Outcome(loss, [*curve, (arm.tokens, loss)], step_s)


def _method(arm: Arm) -> Callable[[Arm, RunManifest, Text, FloatVector], Points]:
    if arm.synchronous:
        return _synchronous
    return _diloco if arm.method == "diloco-adamw" else _ours


def _synchronous(arm: Arm, manifest: RunManifest, text: Text, weights: FloatVector) -> Points:
    """Gradients averaged after every step: one machine with everybody's batch."""
    learner = _Learner(manifest, weights, adamw_only=arm.method == "sync-adamw")
    for step in range(arm.rounds):
        learner.train(text, step * manifest.inner.sequences_per_batch, 1, step)
        yield (step + 1) * manifest.tokens_per_step, learner.weights()


def _diloco(arm: Arm, manifest: RunManifest, text: Text, weights: FloatVector) -> Points:
    """AdamW, kept from round to round; float32 between the members (Douillard et al. 2023)."""
    learners = [_Learner(manifest, weights, adamw_only=True) for _ in range(arm.workers)]
    momentum = np.zeros_like(weights)
    for round_ in range(arm.rounds):
        updates = []
        for learner, start in zip(learners, _starts(arm, round_), strict=True):
            learner.load(weights)
            # A step of the schedule is everybody's.
            learner.train(text, start, arm.steps, round_ * arm.steps, arm.workers)
            updates.append(np.subtract(weights, learner.weights()))
        mean = np.mean(updates, axis=0, dtype=np.float64).astype(np.float32)
        weights, momentum = outer_step(weights, momentum, mean, manifest.outer)
        yield _tokens_after(arm, round_), weights


def _ours(arm: Arm, manifest: RunManifest, text: Text, weights: FloatVector) -> Points:
    """The protocol's rounds; with ``lag1`` a round's mean is applied when the next one is over."""
    momentum, late = np.zeros_like(weights), None
    for round_ in range(arm.rounds):
        base = _tokens_after(arm, round_ - 1)
        units = [
            Unit(start, start + arm.steps * SEQUENCES_PER_BATCH, arm.steps, round_, base)
            for start in _starts(arm, round_)
        ]
        updates = [train(manifest, weights, unit, text).update for unit in units]
        mean = _reduced(manifest, updates, round_)
        ready = [mean]
        if arm.overlap == "lag1":
            last = round_ == arm.rounds - 1
            ready = [each for each in (late, mean if last else None) if each is not None]
            late = mean
        for each in ready:
            weights, momentum = outer_step(weights, momentum, each, manifest.outer)
        yield _tokens_after(arm, round_), weights


def _reduced(manifest: RunManifest, updates: Sequence[FloatVector], round_: int) -> FloatVector:
    """What members hold after the all-reduce: encoded, combined, encoded and decoded."""
    codec = manifest.update.codec
    layout = ChunkLayout(len(updates[0]), manifest.update.chunk_elements)

    def sent(vector: FloatVector, source: str) -> FloatVector:
        encoded = encode_update(
            vector, layout, codec, run_id=manifest.run_id, round_=round_, worker=source
        )
        return decode_update(encoded.chunks, layout, codec)

    received = [sent(update, f"member {n}") for n, update in enumerate(updates)]
    ranges = [slice(*layout.bounds(chunk)) for chunk in range(layout.count)]
    rule, equal = manifest.update.combine, [1] * len(received)
    mean = [combine_chunk(rule, [each[where] for each in received], equal) for where in ranges]
    return sent(np.concatenate(mean), MEAN_SOURCE)


def _starts(arm: Arm, round_: int) -> list[int]:
    """Each member's first sequence in a round: nobody's is another's."""
    size = arm.steps * SEQUENCES_PER_BATCH
    return [(round_ * arm.workers + n) * size for n in range(arm.workers)]


def _tokens_after(arm: Arm, round_: int) -> int:
    steps = (round_ + 1) * arm.workers * arm.steps
    return steps * SEQUENCES_PER_BATCH * SEQUENCE_LENGTH


class _Learner:
    """A model and an optimizer that stay: what the protocol's stateless units are measured by."""

    def __init__(self, manifest: RunManifest, weights: FloatVector, *, adamw_only: bool) -> None:
        self._manifest = manifest
        torch.manual_seed(0)
        self._model = build_model(manifest.model_config_json).train()
        self.load(weights)
        self._optimizers = (
            [self._adamw()] if adamw_only else make_optimizers(self._model, manifest.inner)
        )

    def _adamw(self) -> torch.optim.Optimizer:
        spec = self._manifest.inner.adamw
        return torch.optim.AdamW(
            self._model.parameters(),
            betas=(spec.beta1, spec.beta2),
            eps=spec.eps,
            weight_decay=spec.weight_decay,
        )

    def load(self, weights: FloatVector) -> None:
        load_flat(self._model, weights)

    def weights(self) -> FloatVector:
        return flatten(self._model)

    def train(self, text: Text, start: int, steps: int, done: int, members: int = 1) -> None:
        """Take steps from a sequence on; ``done`` steps of all members went before."""
        inner = self._manifest.inner
        for step in range(steps):
            tokens = (done + step) * members * self._manifest.tokens_per_step
            end = start + inner.sequences_per_batch
            accumulate_gradients(self._model, text.batch(start, end), Execution())
            start = end
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), inner.clip_norm)
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = inner.learning_rate.at(tokens)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
