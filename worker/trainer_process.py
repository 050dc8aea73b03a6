"""The trainer: runs the unit of work in a process of its own.
``python -m worker.trainer_process``.

Invariants:

* Spawned, never forked: it dies cleanly, frees the device, and cannot starve heartbeats.
* It speaks small JSON lines on stdin and stdout; arrays go by file. Anything that a library
  prints goes to stderr and cannot break the protocol.
* End of stdin means that the daemon is gone: the process ends at once, wherever it is.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ProtocolError
from worker.clock import steady_s

if TYPE_CHECKING:
    from protocol.manifest import RunManifest
    from protocol.training import Execution
    from protocol.update import EncodedUpdate, FloatVector

_PEER_GONE_EXIT_CODE = 0
_DISK_AGAIN_S = 2.0


class Control:
    """Commands from the daemon, read by a thread so that training can be stopped."""

    def __init__(self, commands: TextIO) -> None:
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stop = threading.Event()
        self.frozen_s = 0.0  # in all, of this process's life
        self._commands = commands
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def _read(self) -> None:
        for line in self._commands:
            message = json.loads(line)
            if message["command"] == "stop":
                self.stop.set()
            elif message["command"] == "frozen":
                self.frozen_s += message["seconds"]
            else:
                self.stop.clear()
                self.jobs.put(message)
        # No clean-up is needed: nothing is ours but memory and files in the scratch folder.
        os._exit(_PEER_GONE_EXIT_CODE)

    def trained_s(self) -> float:
        """A clock that stands still while this process is frozen: speed is of the rest."""
        return steady_s() - self.frozen_s


class Events:
    """JSON lines to the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, **event: Any) -> None:
        try:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
        except BrokenPipeError:  # the daemon was killed: noticed here before the commands' end is
            os._exit(_PEER_GONE_EXIT_CODE)


def main() -> None:
    # Ctrl-C in a terminal reaches the whole process group; only the daemon decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nice = max(int(sys.argv[1]), os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    events = Events(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    control = Control(sys.stdin)
    # Loading takes seconds: do it before anybody asks, not within the deadline of the first unit.
    import transformers.modeling_utils  # noqa: F401

    import protocol.training  # noqa: F401

    while True:
        job = control.jobs.get()
        try:
            work = (
                warm_up(job, control) if job["command"] == "warm_up" else run(job, control, events)
            )
            events.send(event="done", **work)
        except ProtocolError as error:
            events.send(event="failed", reason=error.reason, message=str(error))
        except OSError as error:
            events.send(event="failed", reason="UNAVAILABLE", message=f"the disk failed: {error}")
        except MemoryError:
            events.send(event="failed", reason="USAGE", message=_OUT_OF_MEMORY)


_OUT_OF_MEMORY = "not enough memory for a batch: set micro_batch_sequences in the configuration"


_WARM_UP_STEPS = 3
_WARM_UP_S = 2.0
"""No further step after that long: one slow step has been measured well enough."""


class _Noise:
    """Sequences of the right shape that mean nothing."""

    def __init__(self, manifest: RunManifest) -> None:
        self._length = manifest.sequence_length
        self._vocabulary = int(manifest.model_config_json["vocab_size"])

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        shape = (end - start, self._length)
        return np.random.default_rng(start).integers(0, self._vocabulary, shape)


def warm_up(job: dict[str, Any], control: Control) -> dict[str, Any]:
    """Load the model's classes and, where asked for, time a step or a few on noise.

    Returns:
        ``tokens_per_s``: of the last step, for the first one pays for what is loaded lazily;
        ``spec``: names and shapes of the model's parameters.

    Raises:
        ProtocolError: the model does not train at all here.
    """
    import torch

    from protocol.manifest import RunManifest
    from protocol.model import element_count, parameter_spec
    from protocol.training import Unit, train

    torch.set_num_threads(job["threads"])
    manifest = RunManifest.parse(Path(job["manifest"]).read_bytes())
    spec = parameter_spec(manifest.model_config_json)
    if not job["measure"]:
        return {"tokens_per_s": 0.0, "spec": spec}
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(element_count(spec), dtype=np.float32) * np.float32(0.02)
    ends_s = [control.trained_s()]

    def on_step(_steps_done: int, _loss: float) -> bool:
        ends_s.append(control.trained_s())
        return ends_s[-1] - ends_s[0] < _WARM_UP_S

    steps = min(_WARM_UP_STEPS, manifest.inner.max_steps)
    unit = Unit(0, steps * manifest.inner.sequences_per_batch, steps, seed=0, tokens_base=0)
    train(manifest, weights, unit, _Noise(manifest), _execution(job), on_step)
    tokens_per_s = manifest.tokens_per_step / max(ends_s[-1] - ends_s[-2], 1e-6)
    return {"tokens_per_s": tokens_per_s, "spec": spec}


def _execution(job: dict[str, Any]) -> Execution:
    from protocol.training import Execution

    return Execution(
        device=job["device"],
        micro_batch_sequences=job["micro_batch_sequences"] or None,
        autocast_bf16=job["autocast_bf16"],
    )


def run(job: dict[str, Any], control: Control, events: Events) -> dict[str, Any]:
    """Train one unit, encode its update and write the encoded chunks to ``job["output"]``.

    Returns:
        What the Contribution needs.

    Raises:
        ProtocolError: damaged input, or no step was done before the stop.
    """
    started_s = steady_s()
    import torch

    from protocol.dataset import DatasetManifest, SequenceReader
    from protocol.errors import TransientError
    from protocol.manifest import RunManifest
    from protocol.model import parameter_spec
    from protocol.state import read_vector
    from protocol.training import Unit, concluded, train
    from worker.unit_snapshots import UnitSnapshots

    torch.set_num_threads(job["threads"])
    manifest = RunManifest.parse(Path(job["manifest"]).read_bytes())
    dataset = DatasetManifest.parse(Path(job["dataset"]).read_bytes())
    blobs = {digest: Path(path) for digest, path in job["shards"].items()}
    weights = read_vector(Path(job["weights"]), parameter_spec(manifest.model_config_json))
    snapshots = UnitSnapshots(job)
    begun = snapshots.read()
    steps_before = 0 if begun is None else begun.steps
    trains_since_s = control.trained_s()

    def speed(steps_done: int) -> float:
        tokens = (steps_done - steps_before) * manifest.tokens_per_step
        return tokens / max(control.trained_s() - trains_since_s, 1e-6)

    def time_left() -> bool:
        return not control.stop.is_set() and steady_s() - started_s < job["stop_after_s"]

    def on_step(steps_done: int, loss: float) -> bool:
        events.send(event="step", steps=steps_done, loss=loss, tokens_per_s=speed(steps_done))
        return time_left()

    if begun is not None:
        events.send(event="resumed", steps=begun.steps)
    if begun is not None and (begun.steps == job["unit"]["steps"] or not time_left()):
        result = concluded(manifest, weights, begun)
    elif control.stop.is_set():
        raise TransientError("stopped before the first step")
    else:
        reader = SequenceReader(dataset, blobs.__getitem__)
        unit, execution = Unit(**job["unit"]), _execution(job)
        result = train(
            manifest,
            weights,
            unit,
            reader,
            execution,
            on_step,
            resume=begun,
            keep=snapshots.keep,
        )
    encoded = _encode(job, manifest, result.update)
    _write(Path(job["output"]), encoded.chunks, control, events)
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "mean_loss": result.mean_loss,
        "update_norm": result.update_norm,
        "tokens_per_s": speed(result.steps),
        "root": encoded.root.hex(),
        "chunks": len(encoded.chunks),
        "elements": int(result.update.size),
    }


def _encode(job: dict[str, Any], manifest: RunManifest, update: FloatVector) -> EncodedUpdate:
    from protocol.update import ChunkLayout, encode_update

    layout = ChunkLayout(update.size, manifest.update.chunk_elements)
    return encode_update(
        update,
        layout,
        manifest.update.codec,
        run_id=manifest.run_id,
        round_=job["round"],
        worker=job["worker"],
    )


def _write(path: Path, chunks: Sequence[bytes], control: Control, events: Events) -> None:
    """Write until the disk takes it: what was trained is not thrown away for want of space.

    Raises:
        OSError: it does not, and the daemon has asked for an end.
    """
    while True:
        try:
            with path.open("wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            return
        except OSError as error:
            if control.stop.is_set():
                raise
            events.send(event="blocked", reason=f"cannot write {path}: {error.strerror}")
        control.stop.wait(_DISK_AGAIN_S)


if __name__ == "__main__":
    main()
