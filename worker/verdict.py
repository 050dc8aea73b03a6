"""What a governor hears from the sensors, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Because(StrEnum):
    """What keeps this machine from working; the first that holds is the one that is told."""

    OWNER = "paused"  # the owner said so
    UNCONFIRMED = "unconfirmed"  # joined without somebody who agreed
    QUOTA = "quota"
    SCHEDULE = "schedule"
    BATTERY = "battery"
    DISK = "disk"
    MEMORY = "memory"
    HOT = "hot"
    IN_USE = "in_use"
    BUSY = "busy"


@dataclass(frozen=True)
class Readings:
    """What the sensors say at one moment; None: this machine does not tell."""

    at_s: float  # Unix time
    steady_s: float  # on a clock that nobody sets
    foreign_cpu_percent: float | None = None  # of all processors, by programs that are not ours
    on_battery: bool | None = None
    battery_percent: float | None = None
    idle_s: float | None = None  # since somebody touched this machine
    gpu_temperature_c: float | None = None
    free_memory_mib: int | None = None
    free_disk_mib: int | None = None
    traffic_today_bytes: int = 0


@dataclass(frozen=True)
class Verdict:
    """What follows from the limits and the readings."""

    works: bool
    because: Because | None = None  # None exactly if it works
    reason: str = ""  # for a person: what is so, and what would end it
    until_s: float | None = None  # Unix time at which it ends; None: when what it names ends
    lasting: bool = False  # for longer than a while: nothing need be kept in memory for the return
    offline: bool = False  # nothing may go over the network either
