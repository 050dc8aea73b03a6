"""One unit of work, computed in every way that this machine has, honestly and not.

Invariants:

* What is measured is what audits compare: encoded chunks, all with the same noise.
* Cheats are the ones that leave an update most like an honest one; harsher ones lie further out.
* Threads are set for each computation and put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from protocol.manifest import RunManifest
from protocol.training import Device, Execution, SequenceSource, Unit, train
from protocol.update import ChunkLayout, encode_update

LAZY, LAZY_SCALED, HALF, OTHER_DATA = "nine_tenths", "nine_tenths_scaled", "half", "other_data"
"""Cheats: a tenth of the steps left out; the same, scaled up to hide it; half; other sequences."""

_SEED = 1
_NOISE_SOURCE = "calibration"

FloatVector = NDArray[np.float32]
Encoded = tuple[bytes, ...]


@dataclass(frozen=True)
class Subject:
    """What is trained from: the run at one of its states, and its data."""

    manifest: RunManifest
    weights: FloatVector  # flat, of that state
    settled_rounds: int
    merged_tokens: int
    sequences: SequenceSource
    sequence_count: int  # that an epoch has

    @property
    def batches(self) -> int:
        return self.sequence_count // self.manifest.inner.sequences_per_batch

    @cached_property
    def layout(self) -> ChunkLayout:
        return ChunkLayout(len(self.weights), self.manifest.update.chunk_elements)


@dataclass(frozen=True)
class Variant:
    """One way to compute a unit."""

    execution: Execution
    threads: int = 1

    @property
    def execution_class(self) -> str:
        """As a contribution names it."""
        return self.execution.device + ("-bf16" if self.execution.autocast_bf16 else "")


def classes_here() -> tuple[str, ...]:
    """Execution classes that this machine has."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return tuple(device + suffix for device in devices for suffix in ("", "-bf16"))


def variants_of(execution_class: str, *, cores: int, thorough: bool) -> list[Variant]:
    """Honest ways to compute within a class, the plainest first.

    Args:
        execution_class: one of :func:`classes_here`.
        cores: of this machine.
        thorough: also with other thread counts.
    """
    name, _, suffix = execution_class.partition("-")
    device: Device = "cuda" if name == "cuda" else "mps" if name == "mps" else "cpu"
    whole = Execution(device, None, bool(suffix))
    single = Execution(device, 1, bool(suffix))
    variants = [Variant(whole), Variant(single)]
    if thorough and device == "cpu" and cores > 1:
        variants.append(Variant(whole, min(cores, 4)))
    return variants


class Bench:
    """Computes variants of one unit."""

    def __init__(self, subject: Subject, start_batch: int, steps: int, sample: int) -> None:
        """Choose the unit.

        Args:
            start_batch: first inner batch, within the epoch.
            steps: inner steps of honest work.
            sample: number of the unit: gives it noise of its own.
        """
        self._subject, self.steps, self._sample = subject, steps, sample
        self._start_batch = start_batch

    def honest(self, variant: Variant) -> Encoded:
        """The update of all steps, encoded."""
        return self._encode(self._train(variant, self._start_batch, self.steps))

    def cheats(self, variant: Variant, *, thorough: bool) -> Iterator[tuple[str, Encoded]]:
        """Updates of less or other work, by name; ``thorough``: also of other data.

        A unit too short for a cheat has none of that name.
        """
        lazy_steps = self.steps - max(1, round(self.steps / 10))
        if lazy_steps > 0:
            update = self._train(variant, self._start_batch, lazy_steps)
            yield LAZY, self._encode(update)
            scale = np.float32(self.steps / lazy_steps)
            yield LAZY_SCALED, self._encode(np.multiply(update, scale))
        if self.steps > 1:
            half = self._train(variant, self._start_batch, self.steps // 2)
            yield HALF, self._encode(half)
        starts = self._subject.batches - self.steps + 1
        other = (self._start_batch + max(self.steps, starts // 2)) % starts
        # Where nothing shorter was possible, other data is all there is to tell apart.
        if (thorough or lazy_steps == 0) and other != self._start_batch:
            yield OTHER_DATA, self._encode(self._train(variant, other, self.steps))

    def _train(self, variant: Variant, start_batch: int, steps: int) -> FloatVector:
        subject = self._subject
        size = subject.manifest.inner.sequences_per_batch
        start = start_batch * size
        unit = Unit(start, start + steps * size, steps, _SEED, subject.merged_tokens)
        with _threads(variant.threads):
            result = train(
                subject.manifest, subject.weights, unit, subject.sequences, variant.execution
            )
        return result.update

    def _encode(self, update: FloatVector) -> Encoded:
        manifest = self._subject.manifest
        return encode_update(
            update,
            self._subject.layout,
            manifest.update.codec,
            run_id=manifest.run_id,
            round_=self._sample,
            worker=_NOISE_SOURCE,
        ).chunks


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
