"""The unit of work: ``update = train(weights, assignment)``, a pure function of public inputs.

Invariants (protocol section 5; a change to any number here is a new ``training_spec``):

* Same inputs, same update, up to floating-point rounding: on any device, with any number of
  threads, in any micro-batches, compiled or not, with or without bfloat16 autocast. Recomputed
  activations do not even change the rounding.
* Nothing is kept between units: both optimizers start empty, all randomness is the seed's.
* The first h of H steps are the same whether or not the rest is done.
* Every optimizer argument is given explicitly: a library's new default must not change a run.

Master weights and gradient accumulation are float32. Labels are the inputs shifted by one
within a sequence: L tokens give L - 1 predictions. ``tokens`` counts L per sequence.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protocol.errors import Diverged
from protocol.manifest import InnerSpec, RunManifest
from protocol.memory import ran_out
from protocol.model import flatten, model_with
from protocol.snapshot import Snapshot, restore, take

FloatVector = NDArray[np.float32]
Device = Literal["cpu", "cuda", "mps"]
OnStep = Callable[[int, float], bool]
"""``(steps_done, loss) -> go on?``, called after every inner step."""

Keep = Callable[[Callable[[], Snapshot]], None]
"""Called after every inner step with what takes a snapshot, should one be wanted now."""

# Newton-Schulz coefficients and floor of Muon, as published (kellerjordan.github.io/posts/muon).
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_EPSILON = 1e-7


class SequenceSource(Protocol):
    """Where a unit's token ids come from."""

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        """Sequences [start, end) of the epoch: ``[end - start, sequence_length]``."""
        ...


@dataclass(frozen=True)
class Unit:
    """What to train on: the part of an Assignment that decides the update."""

    start_sequence: int  # within the epoch
    end_sequence: int  # exclusive
    steps: int
    seed: int
    tokens_base: int  # merged tokens at the start of the round: decides the learning rate


@dataclass(frozen=True)
class Execution:
    """How to compute it: changes speed and rounding, never the meaning."""

    device: Device = "cpu"
    micro_batch_sequences: int | None = None  # whole batches when None
    autocast_bf16: bool = False
    checkpointing: bool = False  # activations are computed twice instead of kept
    compile: bool = False


Lighten = Callable[[Execution], Execution | None]
"""What takes less memory than a way of computing that ran out of it; None: nothing does."""


@dataclass(frozen=True)
class UnitResult:
    update: FloatVector  # flat, weights before minus weights after
    steps: int  # really done
    tokens: int
    mean_loss: float  # nats per predicted token, mean over steps
    update_norm: float  # L2


def train(
    manifest: RunManifest,
    weights: FloatVector,
    unit: Unit,
    sequences: SequenceSource,
    execution: Execution = Execution(),
    on_step: OnStep | None = None,
    *,
    resume: Snapshot | None = None,
    keep: Keep | None = None,
    lighten: Lighten | None = None,
) -> UnitResult:
    """Do one unit of work.

    Args:
        manifest: the run's.
        weights: flat float32, the round's weights; not changed.
        unit: which sequences, and the numbers that go with them.
        sequences: gives the token ids.
        execution: device and memory choices of this machine.
        on_step: called after each inner step; returning False ends the unit there.
        resume: of this very unit, computed in the same way: go on from there.
        keep: may take snapshots to resume from.
        lighten: asked when a batch ran out of memory, which is then computed anew.

    Returns:
        The update of the steps done.

    Raises:
        Diverged: a loss or the update is not finite.
    """
    inner = manifest.inner
    if unit.end_sequence - unit.start_sequence != unit.steps * inner.sequences_per_batch:
        raise ValueError("a unit is a whole number of inner batches")
    if not 0 < unit.steps <= inner.max_steps:
        raise ValueError(f"a unit has between 1 and {inner.max_steps} steps")
    losses: list[float] = []
    with _seeded(unit.seed):
        model = _load(manifest, weights, execution.device).train()
        arrange(model, execution)
        optimizers = make_optimizers(model, inner)
        if resume is not None:
            restore(resume, model, optimizers)
            losses += resume.losses
        gradients = _Gradients(model, execution, lighten)
        for loss in _steps(manifest, model, optimizers, unit, sequences, gradients, len(losses)):
            losses.append(loss)
            if keep is not None:
                keep(partial(take, model, optimizers, losses))
            if on_step is not None and not on_step(len(losses), loss):
                break
    return _result(manifest, weights, model, losses)


def concluded(manifest: RunManifest, weights: FloatVector, snapshot: Snapshot) -> UnitResult:
    """The unit as it is in a snapshot, for want of time to do more of it.

    Raises:
        Diverged: the update is not finite.
    """
    model = _load(manifest, weights, "cpu")
    with _seeded(0):
        restore(snapshot, model, ())
    return _result(manifest, weights, model, snapshot.losses)


def _result(
    manifest: RunManifest, weights: FloatVector, model: nn.Module, losses: Sequence[float]
) -> UnitResult:
    update = np.subtract(weights, flatten(model))
    norm = float(np.sqrt(np.sum(np.square(update, dtype=np.float64))))
    if not math.isfinite(norm):
        raise Diverged("the update is not finite: the learning rate is too high for this state")
    return UnitResult(
        update=update,
        steps=len(losses),
        tokens=len(losses) * manifest.tokens_per_step,
        mean_loss=math.fsum(losses) / len(losses),
        update_norm=norm,
    )


def evaluate(
    manifest: RunManifest,
    weights: FloatVector,
    sequences: NDArray[np.int64],
    execution: Execution = Execution(),
) -> float:
    """Mean loss over held-out sequences, in nats per predicted token.

    Args:
        sequences: ``[count, sequence_length]`` token ids, at least one row.
    """
    if sequences.ndim != 2 or not len(sequences):
        raise ValueError("evaluation needs at least one sequence")
    size = execution.micro_batch_sequences or manifest.inner.sequences_per_batch
    model = _load(manifest, weights, execution.device).eval()
    with torch.no_grad():
        total = math.fsum(
            float(_summed_loss(model, sequences[start : start + size], execution))
            for start in range(0, len(sequences), size)
        )
    return total / _predictions(sequences)


def learning_rates(manifest: RunManifest, unit: Unit) -> Iterator[float]:
    """The learning rate of each inner step: schedule times the round's own warm-up."""
    inner = manifest.inner
    peak = inner.learning_rate.at(unit.tokens_base)
    for step in range(unit.steps):
        yield peak * min(1.0, (step + 1) / (inner.warmup_steps + 1))


def make_optimizers(model: nn.Module, inner: InnerSpec) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, output head and everything not 2-D."""
    hidden, rest = _split_parameters(model)
    muon, adamw = inner.muon, inner.adamw
    rate = inner.learning_rate.peak  # set anew before every step
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            rest,
            lr=rate,
            betas=(adamw.beta1, adamw.beta2),
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
            amsgrad=False,
            maximize=False,
            foreach=None,
            capturable=False,
            differentiable=False,
            fused=None,
        )
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                lr=rate,
                weight_decay=muon.weight_decay,
                momentum=muon.momentum,
                nesterov=muon.nesterov,
                ns_coefficients=_NS_COEFFICIENTS,
                eps=_NS_EPSILON,
                ns_steps=muon.ns_steps,
                adjust_lr_fn=muon.adjust_lr_fn,
            )
        )
    return optimizers


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split by what a module is, not by its name: names differ between architectures."""
    outer_modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()  # type: ignore[operator]
    outer_modules += [model.get_input_embeddings(), head]  # type: ignore[operator]
    outside = {id(value) for module in outer_modules for value in module.parameters()}
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for value in model.parameters():
        (hidden if value.ndim == 2 and id(value) not in outside else rest).append(value)
    return hidden, rest


def _steps(
    manifest: RunManifest,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    unit: Unit,
    sequences: SequenceSource,
    gradients: _Gradients,
    done: int,
) -> Iterator[float]:
    """Do the inner steps that are left, one at a time, yielding each one's loss."""
    inner = manifest.inner
    parameters = list(model.parameters())
    start = unit.start_sequence + done * inner.sequences_per_batch
    for rate in islice(learning_rates(manifest, unit), done, None):
        batch = sequences.batch(start, start + inner.sequences_per_batch)
        if batch.shape != (inner.sequences_per_batch, manifest.sequence_length):
            raise ValueError(f"a batch of shape {batch.shape} is not the manifest's")
        start += inner.sequences_per_batch
        loss = gradients.accumulate(batch)
        nn.utils.clip_grad_norm_(
            parameters, inner.clip_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss


class _Gradients:
    """Those of one batch after another; from one that ran out of memory on, in a lighter way."""

    def __init__(self, model: nn.Module, execution: Execution, lighten: Lighten | None) -> None:
        self._model, self._execution, self._lighten = model, execution, lighten

    def accumulate(self, batch: NDArray[np.int64]) -> float:
        while True:
            try:
                return accumulate_gradients(self._model, batch, self._execution)
            except (MemoryError, RuntimeError) as error:
                lighter = (
                    self._lighten(self._execution) if self._lighten and ran_out(error) else None
                )
                if lighter is None:
                    raise
            # Not within the handler: until it ends, the traceback holds what the batch took.
            self._model.zero_grad(set_to_none=True)
            self._execution = lighter
            arrange(self._model, lighter)


def arrange(model: nn.Module, execution: Execution) -> None:
    """Make a model compute in some way; its parameters, their names and their order stay."""
    if execution.checkpointing:
        # Its name in the library's older and newer versions.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
    if execution.compile:
        # Layer by layer: they are alike, and one of them is compiled for all.
        for layer in _layers(model):
            layer.compile(dynamic=False)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """What a model repeats."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _layers(child)


def accumulate_gradients(model: nn.Module, batch: NDArray[np.int64], execution: Execution) -> float:
    """Gradient of the batch's mean loss, in as many micro-batches as memory asks for."""
    size = execution.micro_batch_sequences or len(batch)
    predictions = _predictions(batch)
    loss = 0.0
    for start in range(0, len(batch), size):
        part = _summed_loss(model, batch[start : start + size], execution) / predictions
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    if not math.isfinite(loss):
        raise Diverged("the loss is not finite: the learning rate is too high for this state")
    return loss


def _summed_loss(model: nn.Module, batch: NDArray[np.int64], execution: Execution) -> Tensor:
    """Cross-entropy summed over the predictions of a micro-batch, in float32."""
    tokens_BL = torch.tensor(batch, device=execution.device)  # noqa: N806 - batch, length
    with _precision(execution):
        logits_BLV = model(input_ids=tokens_BL, use_cache=False).logits  # noqa: N806 - vocabulary
    return nn.functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), tokens_BL[:, 1:].flatten(), reduction="sum"
    )


def _predictions(batch: NDArray[np.int64]) -> int:
    rows, length = batch.shape
    return int(rows * (length - 1))


def _load(manifest: RunManifest, weights: FloatVector, device: Device) -> nn.Module:
    return model_with(manifest.model_config_json, weights).to(device)


def _precision(execution: Execution) -> contextlib.AbstractContextManager[object]:
    if not execution.autocast_bf16:
        return contextlib.nullcontext()
    return torch.autocast(execution.device, dtype=torch.bfloat16)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch for a unit, and give the caller's random state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
