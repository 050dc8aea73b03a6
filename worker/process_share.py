"""How much of the processors another process of ours gets: none, a lower rank, fewer of them.

All of it takes effect at once and changes nothing of what the process computes. Methods do nothing
for a process that is gone; where the system lacks a means, they say so by their result.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def freeze(group: int) -> None:
    """Stop every process of a process group where it stands; it keeps its memory."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGSTOP)


def thaw(group: int) -> None:
    """Let it go on."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)


def renice(pid: int, nice: int) -> bool:
    """Give every thread of a process a niceness.

    Returns:
        Whether it has it now: who is not root may step back, but not forward again.
    """
    try:
        for thread in _threads(pid):
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, nice)
    except PermissionError:
        return False
    return True


@dataclass(frozen=True)
class Share:
    """Which of how many daemons that divide this machine between them."""

    index: int = 0
    count: int = 1

    def processors(self, ours: Sequence[int], wanted: int) -> Sequence[int]:
        """So many of ours that no other share takes; all where its own are too few for that."""
        own = ours[self.index % self.count :: self.count]
        # The last ones: interrupts and whoever came first tend to be on the first.
        return own[-wanted:] if 0 < wanted <= len(own) else ours


WHOLE = Share()


def restrict(pid: int, processors: int | None, share: Share = WHOLE) -> None:
    """Run all threads of a process on so many processors of those that we may use; None: all."""
    if not hasattr(os, "sched_setaffinity"):
        return
    ours = sorted(os.sched_getaffinity(0))
    chosen = ours if processors is None else share.processors(ours, processors)
    for thread in _threads(pid):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, chosen)


def _threads(pid: int) -> Iterator[int]:
    """Twice: a thread that was made meanwhile has what its maker had before."""
    if not _PROC.is_dir():  # there it is the process that has a rank, not its threads
        yield pid
        return
    for _ in range(2):
        with suppress(OSError):
            yield from [int(entry.name) for entry in (_PROC / str(pid) / "task").iterdir()]
