"""The trainer's side of tuning: loading what units need, and timing steps on noise.

Invariants:

* A try takes what a step of a unit takes: weights, gradients, optimizer states, activations.
* Times are the least of several steps, without those of being frozen: other programs only add.
  One thread's are of the processor, which other programs hardly touch.
* Compiled code is compared with plain code before it is used for units (docs/adr/0037).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import UsageError
from protocol.memory import ran_out
from worker.choice import Choice
from worker.devices import Device, device_class, gpu_index
from worker.heap import give_back_large_blocks

if TYPE_CHECKING:
    from protocol.manifest import RunManifest
    from protocol.training import Execution
    from worker.unit_snapshots import UnitSnapshots

Clock = Callable[[], float]

_STEPS = 6
_ENOUGH_S = 0.7
"""No further step after that long."""

_CHECKED_STEPS = 3

_NEAR, _AS_FAR = 0.005, 1.2
"""Half of what audits grant any honest machine; the least room that they leave beyond honest work
that was measured (coordinator.audit.calibrate). Relative L1."""


class _Noise:
    """Sequences of the right shape that mean nothing."""

    def __init__(self, manifest: RunManifest) -> None:
        self._length = manifest.sequence_length
        self._vocabulary = int(manifest.model_config_json["vocab_size"])

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        shape = (end - start, self._length)
        return np.random.default_rng(start).integers(0, self._vocabulary, shape)


def prepare_device(device: Device, gpu_memory_percent: int) -> None:
    """Load the device's own library: what it takes is not training's.

    From here on ``cuda`` means this one GPU, and no more of its memory than is allowed.
    """
    index = gpu_index(device)
    if index is not None:
        import torch

        torch.cuda.set_device(index)
        torch.cuda.set_per_process_memory_fraction((gpu_memory_percent or 100) / 100, index)
        torch.zeros(1, device=device)


def warm_up(job: dict[str, Any], clock_s: Clock) -> dict[str, Any]:
    """Load the model's classes; where asked for, also :func:`measure`.

    Args:
        job: :class:`worker.trainer.WarmUp`, as the trainer gets it.
        clock_s: seconds for which this process has run.

    Returns:
        ``spec``: names and shapes of the model's parameters; ``device_name``; what was measured.
    """
    import torch

    from protocol.model import parameter_spec

    torch.set_num_threads(job["threads"])
    manifest = _manifest(job)
    spec = parameter_spec(manifest.model_config_json)
    measured = measure(job, clock_s) if job["measure"] else {"tokens_per_s": 0.0}
    return {"spec": spec, "device_name": _device_name(job["device"]), **measured}


def measure(job: dict[str, Any], clock_s: Clock) -> dict[str, Any]:
    """Time some steps in the way that a job names.

    Returns:
        ``tokens_per_s``; ``first_s``: what the first step took; ``peak_bytes``: the most memory
        this process has had so far; ``trusted``: false if its rounding is not that of plain code.

    Raises:
        UsageError: it cannot be compiled here.
        MemoryError, RuntimeError: it does not fit.
    """
    try:
        return _measure(job, clock_s)
    except Exception as error:
        if not job["compile"] or ran_out(error):
            raise
        # The compiler's errors are of many kinds, and pages long.
        raise UsageError(f"cannot be compiled here ({type(error).__name__})") from error


def _measure(job: dict[str, Any], clock_s: Clock) -> dict[str, Any]:
    from protocol.model import build_model
    from protocol.training import accumulate_gradients, arrange, make_optimizers

    manifest, execution = _manifest(job), execution_of(job)
    batch = manifest.inner.sequences_per_batch
    size = min(execution.micro_batch_sequences or batch, batch)
    model = build_model(manifest.model_config_json).to(execution.device).train()
    arrange(model, execution)
    optimizers, part = make_optimizers(model, manifest.inner), _Noise(manifest).batch(0, size)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # whatever the noise would do to the weights
    gradients_s: list[float] = []
    updates_s: list[float] = []
    alone = execution.device == "cpu" and job["threads"] == 1
    step_clock_s = time.process_time if alone else clock_s

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()

    def seconds(work: Callable[[], object]) -> float:
        started_s = step_clock_s()
        work()
        _wait_for(execution.device)
        return step_clock_s() - started_s

    begun_s, first_s = clock_s(), 0.0  # a compiler is another process
    while len(gradients_s) < _STEPS and sum(gradients_s) + sum(updates_s) < _ENOUGH_S:
        gradients_s.append(seconds(lambda: accumulate_gradients(model, part, execution)))
        if len(updates_s) < 2:  # the first one makes the states: memory, and time that is not ours
            updates_s.append(seconds(update))
        first_s = first_s or clock_s() - begun_s
    step_s = min(gradients_s) * batch / size + min(updates_s)
    return {
        "tokens_per_s": manifest.tokens_per_step / max(step_s, 1e-6),
        "first_s": first_s,
        "peak_bytes": _peak_bytes(execution.device),
        "trusted": not execution.compile or _rounds_alike(manifest, execution),
    }


def execution_of(job: dict[str, Any]) -> Execution:
    """How a job is to be computed."""
    from protocol.training import Execution

    if job["compile"]:
        # Before the compiler loads. One job: a pool of processes would each load torch.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = job["compiled"]
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return Execution(
        device=device_class(job["device"]),
        micro_batch_sequences=job["micro_batch_sequences"] or None,
        autocast_bf16=job["autocast_bf16"],
        checkpointing=job["checkpointing"],
        compile=job["compile"],
    )


def lightener(
    batch: int, snapshots: UnitSnapshots, tell: Callable[[Choice], None]
) -> Callable[[Execution], Execution | None]:
    """How a unit goes on whose batch ran out of memory: within it, and nothing is lost.

    Args:
        batch: sequences of a whole one.
        snapshots: of the unit; those to come are of the lighter way.
        tell: what the daemon has to know for the units to come.
    """
    from dataclasses import replace

    def lighten(now: Execution) -> Execution | None:
        if now.compile:
            return None  # compiled code stays where it is: only another process is without it
        choice = Choice(now.micro_batch_sequences or batch, now.checkpointing).lighter()
        if choice is None:
            return None
        _give_back(now.device)
        tell(choice)
        snapshots.lightened(choice.micro_batch_sequences)
        return replace(
            now,
            micro_batch_sequences=choice.micro_batch_sequences,
            checkpointing=choice.checkpointing,
        )

    return lighten


def _manifest(job: dict[str, Any]) -> RunManifest:
    from protocol.manifest import RunManifest

    return RunManifest.parse(Path(job["manifest"]).read_bytes())


def _rounds_alike(manifest: RunManifest, execution: Execution) -> bool:
    """Whether compiled steps end as near to plain ones as plain ones in other micro-batches do.

    That distance is of the honest work that a run's bounds are measured on. Small models may be
    nearer than it says anything about.
    """
    from dataclasses import replace

    from protocol.model import build_model, flatten
    from protocol.training import Unit, train

    whole = manifest.inner.sequences_per_batch
    size = min(execution.micro_batch_sequences or whole, whole)
    batch = max(size, 2)
    if batch > whole:
        return False  # there is no other way to compare with
    inner = manifest.inner.model_copy(update={"sequences_per_batch": batch})
    short = manifest.model_copy(update={"inner": inner})
    steps = min(_CHECKED_STEPS, inner.max_steps)
    unit = Unit(0, steps * batch, steps, 0, inner.learning_rate.warmup_tokens)
    weights = flatten(build_model(manifest.model_config_json))

    def update(size: int, *, compiled: bool) -> NDArray[np.float32]:
        how = replace(execution, micro_batch_sequences=size, compile=compiled)
        return train(short, weights, unit, _Noise(short), how).update

    plain = update(size, compiled=False)
    otherwise = update(1 if size > 1 else 2, compiled=False)
    compiled = update(size, compiled=True)
    size = np.abs(plain).sum()
    most = max(_NEAR, _AS_FAR * float(np.abs(otherwise - plain).sum() / size))
    return bool(np.abs(compiled - plain).sum() / size <= most)


def _wait_for(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _give_back(device: str) -> None:
    """What the allocator keeps in pieces of the old size; on the processor also later: what a
    batch took has to be free for the optimizer's step, which cannot be repeated."""
    import torch

    if device == "cpu":
        give_back_large_blocks()
    elif device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def _peak_bytes(device: str) -> int:
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak << 10 if platform.system() == "Linux" else peak


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
