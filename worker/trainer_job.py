"""What daemon and trainer say to each other, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.choice import Choice
from worker.devices import Device

if TYPE_CHECKING:
    from protocol.model import ParameterSpec


@dataclass(frozen=True)
class Job:
    """One unit with everything it reads, by file."""

    manifest: str
    dataset: str
    shards: dict[str, str]  # sha256 hex -> verified file
    weights: str
    unit: dict[str, int]  # fields of protocol.training.Unit
    round: int
    worker: str
    output: str  # where the encoded chunks go, concatenated
    snapshot: str  # where the unit is kept now and then while it is trained
    threads: int
    device: Device
    stop_after_s: float  # the step that is under way then is the last one
    keep_snapshots: bool = True
    micro_batch_sequences: int = 0
    autocast_bf16: bool = False
    checkpointing: bool = False
    compile: bool = False
    compiled: str = ""  # folder of compiled code
    gpu_memory_percent: int = 0
    gpu_power_w: int = 0


@dataclass(frozen=True)
class WarmUp:
    """What a first unit would meet: loaded beforehand and, if asked for, timed."""

    manifest: str
    threads: int
    device: Device
    micro_batch_sequences: int = 0
    autocast_bf16: bool = False
    checkpointing: bool = False
    compile: bool = False
    compiled: str = ""
    gpu_memory_percent: int = 0
    measure: bool = True


@dataclass(frozen=True)
class Warm:
    """What a warm-up found out."""

    tokens_per_s: float  # roughly; 0 when that was not asked for
    spec: ParameterSpec  # the model's, so that the daemon need not load the library itself


@dataclass(frozen=True)
class Measured:
    """Some steps in one way of computing."""

    tokens_per_s: float
    first_s: float  # the first step, with whatever is made once
    peak_bytes: int  # of the process so far
    trusted: bool  # its rounding is that of plain code


@dataclass(frozen=True)
class Trained:
    """What came out; the encoded chunks are in the job's output file."""

    steps: int
    tokens: int
    mean_loss: float
    update_norm: float
    tokens_per_s: float
    root: bytes
    chunks: int
    elements: int


@dataclass
class Progress:
    """The unit under way, for status and heartbeat."""

    steps_done: int = 0
    steps: int = 0
    loss: float = float("nan")
    tokens_per_s: float = 0.0
    problem: str = ""  # why a trained update waits to be written
    lighter: Choice | None = None  # what the unit goes on as since it ran out of memory
