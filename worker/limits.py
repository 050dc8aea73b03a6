"""What the owner of a machine allows: numbers with units, each with what it means and its bounds.

Invariants:

* 0, or an empty list, is "no limit of mine"; a value out of its bounds raises, it never becomes
  another one.
* Nothing here looks at the machine: what a limit means at this moment is the governor's affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from protocol.errors import UsageError
from worker.schedule import Schedule

MAX_PERIODS = 64


def _limit(default: Any, says: str, least: int = 0, most: int = 1 << 31) -> Any:
    return field(default=default, metadata={"says": says, "least": least, "most": most})


@dataclass(frozen=True)
class Limits:
    """The ``[limits]`` of ``worker.toml``."""

    threads: int = _limit(0, "processor threads; 0: all but one", most=1024)
    nice: int = _limit(0, "how far training steps back for other programs", most=19)
    memory_mib: int = _limit(0, "most memory that training may take")
    free_memory_mib: int = _limit(0, "work stops while less memory than this is free for others")
    disk_mib: int = _limit(0, "most disk for data, weights and updates")
    free_disk_mib: int = _limit(1024, "disk that stays free for others")
    gpu_memory_percent: int = _limit(0, "most of the GPU's memory", most=100)
    gpu_power_w: int = _limit(0, "most power that the GPU may draw", most=5000)
    gpu_temperature_c: int = _limit(0, "work stops when the GPU is hotter", most=120)
    upload_kbit_s: int = _limit(0, "most that goes out")
    download_kbit_s: int = _limit(0, "most that comes in")
    daily_mib: int = _limit(0, "most traffic of a day, both ways together")
    schedule: tuple[str, ...] = _limit((), 'when it may work: "mon-fri 22:00-07:00", local time')
    on_battery: bool = _limit(False, "also without mains power")
    battery_percent: int = _limit(0, "on battery: only with at least so much charge", most=100)
    idle_minutes: int = _limit(0, "only when nobody used the machine for so long", most=1440)
    busy_cpu_percent: int = _limit(
        0, "stops while other programs take more of the processors than this", most=100
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if type(value) is int:
                least, most = one.metadata["least"], one.metadata["most"]
                if not least <= value <= most:
                    raise UsageError(f"limits: {one.name} is between {least} and {most}")
        if len(self.schedule) > MAX_PERIODS:
            raise UsageError(f"limits: schedule has at most {MAX_PERIODS} periods")
        Schedule.parse(self.schedule)

    @property
    def cpu_threads(self) -> int:
        """Threads to train with on this machine."""
        return self.threads or default_threads()

    @classmethod
    def from_toml(cls, raw: Mapping[str, Any]) -> Limits:
        """The table as it stands in the file.

        Raises:
            UsageError: a key that is none, a value of another type or out of bounds.
        """
        known = {one.name: one for one in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in known:
                raise UsageError(f"limits: unknown limit {key!r}; known: {', '.join(known)}")
            default = known[key].default
            if isinstance(default, tuple):
                fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
                value = tuple(value) if fits else value
            else:
                fits = type(value) is type(default)
            if not fits:
                raise UsageError(f"limits: {key} = {value!r} has the wrong type")
            values[key] = value
        return cls(**values)


def default_threads() -> int:
    """One core less than this process may use: the machine stays usable."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (count or 1) - 1)
