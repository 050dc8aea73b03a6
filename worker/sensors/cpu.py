"""How much of the processors other programs take that need the machine now.

What counts, of everything that the kernel accounts for: user time of normal or raised priority,
and system time. Less what this worker and its descendants took. Not counted:

* user time of processes that are *nice*: they step back by themselves, as training does, so two
  workers of one machine do not make each other yield;
* interrupts: nobody can tell whose they are, and our own traffic makes some;
* waiting for disks, and time that a hypervisor gave to others.

From ``/proc/stat`` and ``/proc/PID/stat`` (proc(5)), by psutil where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.clock import steady_s

_LEAST_S = 0.5  # in less time than this, ticks of 10 ms tell nothing


@dataclass(frozen=True)
class Taken:
    """Counters since the machine started, all in the same unit."""

    total: float  # of all processors, idle or not
    busy: float  # by all that counts
    ours: dict[tuple[int, float], float]  # by process and its start: what is in ``busy`` of it


class ForeignCpu:
    """Per cent of all processors since the last look."""

    def __init__(self, proc: Path = Path("/proc"), root_pid: int | None = None) -> None:
        """Look at nothing yet.

        Args:
            proc: the kernel's.
            root_pid: whose descendants are ours; None: this process.
        """
        self._proc = proc
        self._root_pid = os.getpid() if root_pid is None else root_pid
        self._percent: float | None = None
        self._before: Taken | None = None
        self._before_s = 0.0

    def percent(self) -> float | None:
        """None at the first look: a load is the difference of two."""
        now_s = steady_s()
        if self._before is None or now_s - self._before_s >= _LEAST_S:
            now = self._taken()
            if self._before is not None:
                self._percent = foreign_percent(self._before, now)
            self._before, self._before_s = now, now_s
        return self._percent

    def _taken(self) -> Taken:
        if not (self._proc / "stat").exists():
            return _by_psutil(self._root_pid)
        total, busy = _machine((self._proc / "stat").read_text())
        return Taken(total, busy, dict(_ours(self._proc, self._root_pid)))


def foreign_percent(before: Taken, now: Taken) -> float | None:
    """What others took between two looks, 0 to 100; None when the clocks of processors stood."""
    total = now.total - before.total
    if total <= 0:
        return None
    ours = sum(taken - before.ours.get(key, 0.0) for key, taken in now.ours.items())
    return min(max(100 * (now.busy - before.busy - ours) / total, 0.0), 100.0)


def _machine(stat: str) -> tuple[float, float]:
    """All time of all processors, and what counts of it."""
    fields = [float(field) for field in stat.split("\n", 1)[0].split()[1:9]]
    user, _nice, system = fields[:3]
    return sum(fields), user + system


def _ours(proc: Path, root_pid: int) -> Iterator[tuple[tuple[int, float], float]]:
    """Of each process of ours, what the kernel counts among what is not nice."""
    for pid in _family(proc, root_pid):
        try:
            stat = (proc / str(pid) / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
        fields = stat.rpartition(")")[2].split()
        user, system, nice, start = (float(fields[index]) for index in (11, 12, 16, 19))
        yield (pid, start), system + (user if nice <= 0 else 0.0)


def _family(proc: Path, root_pid: int) -> set[int]:
    """A process and its descendants."""
    if not (proc / str(root_pid) / "task" / str(root_pid) / "children").exists():
        import psutil  # looks at every process of the machine: slower

        return {root_pid, *(one.pid for one in psutil.Process(root_pid).children(recursive=True))}
    family, waiting = {root_pid}, [root_pid]
    while waiting:
        with suppress(FileNotFoundError, ProcessLookupError):
            children = {*_children(proc / str(waiting.pop()) / "task")} - family
            family |= children
            waiting += children
    return family


def _children(threads: Path) -> Iterator[int]:
    """Each thread has its own."""
    for thread in threads.iterdir():
        try:
            listed = (thread / "children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield from (int(child) for child in listed.split())


def _by_psutil(root_pid: int) -> Taken:
    import psutil

    times = psutil.cpu_times()
    root = psutil.Process(root_pid)
    ours: dict[tuple[int, float], float] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            taken = process.cpu_times()
            ours[process.pid, process.create_time()] = taken.user + taken.system
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return Taken(sum(times), times.user + times.nice + times.system, ours)
