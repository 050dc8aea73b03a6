"""Processor seconds and memory of a process with everything that it started (its p2pd, forks)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

_LOOK_S = 0.2


def cpu_s(pid: int) -> float:
    """Processor seconds so far, user and system, children that have ended included."""
    total_s = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
            total_s += times.children_user + times.children_system
    return total_s


def memory_bytes(pid: int) -> int:
    """Proportional set size: what several of the processes share counts once."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
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
