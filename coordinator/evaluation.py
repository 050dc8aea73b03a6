"""The validation loss of a state, computed in a process of its own.

Invariants:

* Torch never runs in the server's process: not on its event loop and not in a thread beside it,
  where it would take the interpreter's lock. One evaluation runs at a time, on one thread.
* The child is kept warm, because importing torch takes longer than evaluating a small model. It
  ends when its standard input does, so it never outlives the server.
* Vectors pass through a file of plain numbers (``numpy.save`` without pickle) in a private folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from protocol.errors import TransientError
from protocol.manifest import RunManifest

_STOP_GRACE_S = 5.0


class Evaluator:
    """A warm child process that evaluates states of one run. Methods block; thread-safe."""

    def __init__(
        self, manifest: RunManifest, sequences: npt.NDArray[np.int64], folder: Path
    ) -> None:
        """Prepare; the process starts with the first evaluation.

        Args:
            manifest: the run's.
            sequences: held-out sequences, ``[n, sequence_length]``.
            folder: for the files that pass between the processes; made, emptied of what a killed
                process left, and removed by :meth:`close`.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        self._folder = folder
        (folder / "manifest.json").write_bytes(manifest.canonical())
        np.save(folder / "sequences.npy", sequences, allow_pickle=False)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def loss(self, weights: npt.NDArray[np.float32]) -> float:
        """Mean nats per predicted token; infinite or not a number for a diverged model.

        Args:
            weights: flat float32 vector.

        Raises:
            TransientError: the process died (for example, of lack of memory).
        """
        with self._lock:
            try:
                process = self._running()
                assert process.stdin is not None and process.stdout is not None
                np.save(self._folder / "weights.npy", weights, allow_pickle=False)
                process.stdin.write("evaluate\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            except OSError as error:
                raise TransientError(
                    f"cannot evaluate in {self._folder}: {error.strerror}; free space there"
                ) from error
            if not answer.endswith("\n"):  # killed, perhaps in the middle of the line
                code = self._stop()
                raise TransientError(f"the evaluation ended with exit code {code}: see the log")
            loss = json.loads(answer)["loss"]
            return math.inf if loss is None else float(loss)

    def close(self) -> None:
        """End the process and remove its files."""
        # A process that is in the middle of an evaluation must not hold up the shutdown.
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        with self._lock:
            self._stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coordinator.evaluation", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the server only
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            )
        return self._process

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # it died with our line unread
            process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def validation_loss(
    manifest: RunManifest,
    weights: npt.NDArray[np.float32],
    sequences: npt.NDArray[np.int64],
) -> float:
    """Evaluate once, in a process of its own; see :meth:`Evaluator.loss`."""
    with (
        tempfile.TemporaryDirectory(prefix="barnraise-evaluation-") as scratch,
        Evaluator(manifest, sequences, Path(scratch) / "evaluation") as evaluator,
    ):
        return evaluator.loss(weights)


def _serve(folder: Path) -> None:
    """The child: one line in, one line out, until the input ends."""
    import torch

    from protocol.training import evaluate

    torch.set_num_threads(1)
    manifest = RunManifest.parse((folder / "manifest.json").read_bytes())
    sequences = np.load(folder / "sequences.npy", allow_pickle=False)
    for _ in sys.stdin:
        weights = np.load(folder / "weights.npy", allow_pickle=False)
        loss = evaluate(manifest, weights, sequences)
        # JSON has no infinity.
        answer = json.dumps({"loss": loss if math.isfinite(loss) else None})
        try:
            print(answer, flush=True)
        except BrokenPipeError:  # the server was killed meanwhile
            os._exit(0)  # its buffer would be flushed again at an ordinary end


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
