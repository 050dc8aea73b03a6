"""Processor seconds and memory of processes: of some, or of one with all that it started."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

_LOOK_S = 0.2


def own_cpu_s(*processes: psutil.Process) -> float:
    """Processor seconds of these alone so far, user and system."""
    times = [process.cpu_times() for process in processes]
    return float(sum(taken.user + taken.system for taken in times))


def pss_bytes(*processes: psutil.Process) -> int:
    """Proportional set size: what several of them share counts once."""
    return sum(process.memory_full_info().pss for process in processes)


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and all its children so far, those that ended included."""
    total_s = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += own_cpu_s(process) + times.children_user + times.children_system
    return total_s


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process and all its children."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += pss_bytes(process)
    return total


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


@dataclass
class Peak:
    """The most that was seen."""

    memory_bytes: int = 0


@contextmanager
def watching_memory(pid: int) -> Iterator[Peak]:
    """Look at a process tree's memory while the block runs.

    Looking walks its page tables: not while time is taken.
    """
    peak, over = Peak(), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            peak.memory_bytes = max(peak.memory_bytes, memory_bytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak.memory_bytes = max(peak.memory_bytes, memory_bytes(pid))
