"""Memory and file descriptors of the soak's processes, and whether they grow.

A process grows if the line through its samples rises: the median of the slopes between all pairs of
them (Theil and Sen), which a few outliers do not move, times the time that it lived. Samples of the
first part of a life are left out: programs fill their caches then. What is measured is the memory
that would be free without the process (USS): pages that it shares with others are not its growth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from chaos_soak_run import Run

Samples = Sequence[tuple[float, float]]
"""``(seconds, value)``, in order."""

_MOST_SAMPLES = 120  # of one series, for the slope: pairs grow with the square
_EVERY_S = 3.0


@dataclass(frozen=True)
class Growth:
    """How a series rises."""

    first: float  # median of the first third, after the warm-up
    rise: float  # slope times length
    noise: float  # median distance from the line, of the same unit
    samples: int

    def beyond(self, share: float, floor: float) -> bool:
        """Whether it rises by more than a share of where it began, a floor, and its own noise."""
        return self.rise > max(share * self.first, floor, 4 * self.noise)


def growth(samples: Samples, *, warm_up_s: float) -> Growth | None:
    """The rise of a series over its length; None if it is too short to tell."""
    if not samples:
        return None
    begun_s = samples[0][0]
    kept = [(at_s, value) for at_s, value in samples if at_s - begun_s >= warm_up_s]
    kept = kept[:: max(1, len(kept) // _MOST_SAMPLES)]
    if len(kept) < 12:
        return None
    slope = statistics.median(
        (later - value) / (after_s - at_s)
        for (at_s, value), (after_s, later) in combinations(kept, 2)
        if after_s > at_s
    )
    middle = statistics.median(value - slope * at_s for at_s, value in kept)
    noise = statistics.median(abs(value - slope * at_s - middle) for at_s, value in kept)
    first = statistics.median(value for _, value in kept[: len(kept) // 3])
    return Growth(first, slope * (kept[-1][0] - kept[0][0]), noise, len(kept))


@dataclass
class Series:
    """What was seen of one process."""

    name: str
    memory: list[tuple[float, float]] = field(default_factory=list)  # MiB
    descriptors: list[tuple[float, float]] = field(default_factory=list)


class Meter:
    """Samples every process of a run now and then."""

    def __init__(self) -> None:
        self.series: dict[tuple[int, float], Series] = {}  # by pid and time of its start
        self._next_s = 0.0

    def alive(self) -> list[tuple[int, str]]:
        """Processes that were seen and have not ended."""
        left = []
        for (pid, born_s), series in self.series.items():
            try:
                if psutil.Process(pid).create_time() == born_s:
                    left.append((pid, series.name))
            except psutil.NoSuchProcess:
                continue  # as it should be
        return left

    def look(self, run: Run) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        for member in run.members.values():
            for process in member.tree():
                try:
                    self._sample(member.name, process, now_s)
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue  # it has ended meanwhile

    def _sample(self, member: str, process: psutil.Process, now_s: float) -> None:
        key = (process.pid, process.create_time())
        if key not in self.series:
            role = _role(process.cmdline(), process.name())
            if not role:
                return
            self.series[key] = Series(f"{member} {role}")
        memory = process.memory_full_info().uss / 2**20
        self.series[key].memory.append((now_s, memory))
        self.series[key].descriptors.append((now_s, float(process.num_fds())))


def _role(command: Sequence[str], name: str) -> str:
    """What a process is; empty for one that has just been started and is nothing yet."""
    words = " ".join(command)
    for role, sign in (
        ("trainer", "worker.trainer_process"),
        ("evaluation", "coordinator.evaluation"),
        ("anchor", "worker anchor"),
        ("daemon", "chaos_soak_process.py"),
    ):
        if sign in words and "leash.py" not in words:
            return role
    return "p2pd" if name == "p2pd" else ""
