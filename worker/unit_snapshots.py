"""The trainer's snapshots of the unit under way: a kill costs seconds of training, not the unit.

Invariants:

* What is read is of this very unit, computed in this very way, from files that nobody has written
  to since: else training begins anew.
* A snapshot that cannot be written, or for which the owner allows no disk, costs nothing but the
  snapshot.
* Little of the time, the processor's work and the disk's life goes into them: large models get few
  or none, and so does a trainer to which other programs leave little of the processor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import snapshot
from protocol.snapshot import Snapshot

LEAST_S = 0.5
"""Between two snapshots, however small they are."""

BYTES_PER_S = 2 << 20
"""Written at most, on average: 180 GB in a day of nothing but training."""

_TIME_SHARE = 0.02  # of the training time, at most
_CPU_SHARE = 0.01  # of this process's processor time, at most
_DISK_AGAIN_S = 60.0

_DECIDES = (
    *("unit", "round", "worker"),
    *("threads", "device", "micro_batch_sequences", "autocast_bf16", "compile"),
)
"""Fields of a job that the update's bits depend on, besides the files."""


class UnitSnapshots:
    """Reads and writes the one snapshot of a job."""

    def __init__(self, job: dict[str, Any]) -> None:
        """Args:
        job: :class:`worker.trainer.Job` as the trainer gets it.
        """
        self._path = Path(job["snapshot"])
        self._keeps = job["keep_snapshots"]
        self._about = {name: job.get(name) for name in _DECIDES}
        read = (job["weights"], *job["shards"].values())
        self._about["read"] = {path: _stamp(path) for path in read}
        self._next_s, self._next_cpu_s = time.monotonic() + LEAST_S, 0.0

    @property
    def _of(self) -> str:
        return json.dumps(self._about, sort_keys=True)

    def lightened(self, micro_batch_sequences: int) -> None:
        """The unit goes on in smaller micro-batches, and so will who reads the next snapshots."""
        self._about["micro_batch_sequences"] = micro_batch_sequences

    def read(self) -> Snapshot | None:
        """The newest one, if the unit was begun before."""
        return snapshot.read(self._path, self._of)

    def keep(self, take: Callable[[], Snapshot]) -> None:
        """Take one and write it, if it is time to."""
        begun_s, begun_cpu_s = time.monotonic(), time.process_time()
        if not self._keeps or begun_s < self._next_s or begun_cpu_s < self._next_cpu_s:
            return
        try:
            size_bytes = snapshot.write(self._path, take(), self._of)
        except OSError:
            self._path.with_name(self._path.name + ".new").unlink(missing_ok=True)
            self._next_s = begun_s + _DISK_AGAIN_S
            return
        now_s = time.monotonic()
        pause_s = max(LEAST_S, size_bytes / BYTES_PER_S, (now_s - begun_s) / _TIME_SHARE)
        self._next_s = now_s + pause_s
        now_cpu_s = time.process_time()
        self._next_cpu_s = now_cpu_s + (now_cpu_s - begun_cpu_s) / _CPU_SHARE


def _stamp(path: str) -> list[int]:
    """Another one when the file is another, or was written to: what was trained may be worthless.

    Raises:
        OSError: it is gone.
    """
    found = Path(path).stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]
