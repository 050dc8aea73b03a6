"""The owner's limit on memory, kept in the trainer by the kernel (docs/tuning.md).

Invariants:

* The limit is on what only this process has, and a fixed share of it is set aside for the code of
  libraries. How much of that code is resident hangs on the machine, and so do pages of the files
  that are read (shards, weights): the kernel takes both back at will, neither is counted.
* The kernel can only limit what is mapped privately and writable (RLIMIT_DATA), so it is told how
  much of that may still be added once everything is loaded.
* Beyond the limit an allocation fails, which training lives through; nothing is killed for it.
* When the machine itself runs out of memory, the kernel kills the trainer before others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from protocol.errors import UsageError

MEMORY_VARIABLE = "BARNRAISE_TRAINER_MEMORY_MIB"
"""Environment of the trainer: the limit; 0: none."""

LEAST_MIB = 448
"""Loaded and idle, the trainer has 270 to 280 MiB of its own (torch for CPUs)."""

CODE_MIB = 144
"""Set aside for the code of libraries: 105 MiB of it were measured as resident once they are
loaded, 132 MiB while they are used."""

_SHARED_FATE = 500  # of 1000: killed before what the owner works with

_STATUS = Path("/proc/self/status")


class OutOfMemory(UsageError):
    """Training does not fit into this machine's memory, or into what its owner gives."""

    reason = "MEMORY"


def too_little(memory_mib: int) -> str:
    """What is wrong with a limit that nothing can be loaded into."""
    return (
        f"limits.memory_mib is {memory_mib}: loading the training code alone takes more. Set it "
        f"to {LEAST_MIB} or more and what the model needs, or to 0 for no limit"
    )


class MemoryLimit:
    """Held over this process, in two steps."""

    def __init__(self, memory_mib: int) -> None:
        """Take the limit; 0: there is none."""
        self._memory_mib = memory_mib
        self._settled = memory_mib == 0

    @property
    def problem(self) -> str:
        """Why nothing can be loaded at all; empty when it can."""
        return too_little(self._memory_mib) if 0 < self._memory_mib < LEAST_MIB else ""

    def begin(self) -> None:
        """Before anything large is loaded."""
        be_killed_first()
        if self._memory_mib:
            _limit_data(self._memory_mib << 20)

    def settle(self) -> None:
        """When everything is loaded, the device's library too: what is left is for training."""
        if self._settled:
            return
        self._settled = True
        found = _own_status() if sys.platform == "linux" else None
        if found is not None:
            own, data = found
            left = (self._memory_mib - CODE_MIB << 20) - own
            _limit_data(data + max(left, 0))


def be_killed_first() -> None:
    """Tell the kernel that this process is the one to end when the machine has no memory left."""
    path = Path("/proc/self/oom_score_adj")
    try:
        if int(path.read_text()) < _SHARED_FATE:
            path.write_text(str(_SHARED_FATE))
    except OSError:
        return  # no Linux: nothing to tell


def _own_status() -> tuple[int, int]:
    """Bytes resident that belong to no file, and bytes that RLIMIT_DATA counts."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "VmData"))  # type: ignore[return-value]


def _limit_data(size_bytes: int) -> None:
    import resource  # POSIX only; where there is no POSIX, there is no limit either

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
