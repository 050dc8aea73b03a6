"""One replay: a unit of work done again from public inputs, and encoded as its worker did.

Invariants:

* Everything comes from outside the worker: assignment, weights by digest, data by digest. The
  rounding noise is the worker's (run, round, chunk, PeerID): equal updates encode to equal bytes.
* A shard is read only after its SHA-256 was right, and again when its file has changed.
* A replay that is stopped has no result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from protocol.dataset import SHARDS_NAME, DatasetManifest, SequenceReader, ShardInfo, verify_shard
from protocol.errors import BadDigest, UsageError
from protocol.identity import PeerId
from protocol.manifest import RunManifest
from protocol.training import (
    Device,
    Execution,
    FloatVector,
    OnStep,
    SequenceSource,
    Unit,
    train,
)
from protocol.update import ChunkLayout, EncodedUpdate, encode_update


@dataclass(frozen=True)
class Task:
    """What a unit of work was, without what came of it."""

    round: int
    worker: PeerId
    start_sequence: int
    steps: int  # really done
    seed: int
    tokens_base: int

    def unit(self, manifest: RunManifest) -> Unit:
        """The unit as training takes it."""
        end = self.start_sequence + self.steps * manifest.inner.sequences_per_batch
        return Unit(self.start_sequence, end, self.steps, self.seed, self.tokens_base)


@dataclass(frozen=True)
class Replayed:
    """What came out."""

    update: EncodedUpdate
    steps: int
    mean_loss: float  # nats per predicted token
    compute_s: float


def replay_unit(
    manifest: RunManifest,
    weights: FloatVector,
    task: Task,
    sequences: SequenceSource,
    execution: Execution,
    on_step: OnStep | None = None,
) -> Replayed | None:
    """Train and encode; blocks for as long as the worker trained.

    Args:
        manifest: the run's.
        weights: flat float32, of the state that the assignment names.
        task: which unit.
        sequences: gives the token ids.
        execution: how to compute it here.
        on_step: called after each inner step; returning False stops the replay.

    Returns:
        None when it was stopped.

    Raises:
        Diverged: a loss or the update is not finite.
        BadRecord, BadDigest: the data are not the dataset's.
        UsageError: the device has too little memory.
    """
    started_s = time.monotonic()
    try:
        result = train(manifest, weights, task.unit(manifest), sequences, execution, on_step)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UsageError("not enough memory for a batch: give a smaller --micro-batch") from error
    if result.steps < task.steps:
        return None
    layout = ChunkLayout(result.update.size, manifest.update.chunk_elements)
    update = encode_update(
        result.update,
        layout,
        manifest.update.codec,
        run_id=manifest.run_id,
        round_=task.round,
        worker=task.worker,
    )
    return Replayed(update, result.steps, result.mean_loss, time.monotonic() - started_s)


def choose_execution(device: str, *, bf16: bool, micro_batch: int | None = None) -> Execution:
    """How this machine computes.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        bf16: under bfloat16 autocast.
        micro_batch: sequences at a time; default: whole batches.

    Raises:
        UsageError: there is no such device here.
    """
    here: dict[Device, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    for name, available in here.items():
        if device in ("auto", name) and available():
            return Execution(name, micro_batch, bf16)
    raise UsageError(f"this machine has no {device}: give another --device, or auto")


def execution_class(execution: Execution) -> str:
    """As contributions and audit results name it: which bounds apply."""
    return execution.device + ("-bf16" if execution.autocast_bf16 else "")


def verified_reader(
    dataset: DatasetManifest, folder: Path, fetch: Callable[[ShardInfo], Path] | None = None
) -> SequenceReader:
    """A reader that hashes each shard before its first use.

    Args:
        dataset: the run's.
        folder: of the dataset, with its ``shards``.
        fetch: brings a shard that is not there; it is hashed like any other.

    Returns:
        A reader whose methods raise BadDigest for a shard that is missing or damaged.
    """
    shards = {shard.sha256: shard for shard in (*dataset.shards, dataset.validation)}
    verified: dict[str, tuple[int, int]] = {}
    lock = threading.Lock()

    def resolve(sha256: str) -> Path:
        path = folder / SHARDS_NAME / shards[sha256].file_name
        if fetch is not None and not path.exists():
            path = fetch(shards[sha256])
        with lock:
            stamp = _stamp(path)
            if verified.get(sha256) != stamp:
                verify_shard(path, shards[sha256])
                verified[sha256] = stamp
        return path

    return SequenceReader(dataset, resolve)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise BadDigest(
            f"shard {path} cannot be read ({error.strerror}): restore it from a copy"
        ) from error
    return status.st_size, status.st_mtime_ns
