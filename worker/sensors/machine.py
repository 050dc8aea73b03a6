"""All sensors of this machine, read together.

Invariant: a sensor that fails costs its own reading, and one line of log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from worker.clock import steady_s
from worker.limits import Limits
from worker.rules import missing_sensors
from worker.sensors.battery import Battery, read_battery
from worker.sensors.cpu import ForeignCpu
from worker.sensors.disk import free_disk_mib
from worker.sensors.idle import IdleTime
from worker.sensors.memory import free_memory_mib
from worker.verdict import Readings

log = structlog.get_logger()

Value = TypeVar("Value")

_TWO_LOOKS_S = 1.0  # a load is the difference of two


@dataclass
class Sensors:
    """What the governor goes by; :meth:`read` is for one thread at a time."""

    home: Path  # whose disk is meant
    gpu_temperature_c: Callable[[], float | None] = lambda: None
    cpu: ForeignCpu = field(default_factory=ForeignCpu)
    idle: IdleTime = field(default_factory=IdleTime)
    _failed: set[str] = field(default_factory=set)

    def read(self) -> Readings:
        """One look; takes a few milliseconds, and at most a second or two."""
        battery = self._try("battery", read_battery) or Battery(None)
        return Readings(
            at_s=time.time(),
            steady_s=steady_s(),
            foreign_cpu_percent=self._try("processors", self.cpu.percent),
            on_battery=battery.discharging,
            battery_percent=battery.percent,
            idle_s=self._try("idle time", self.idle.seconds),
            gpu_temperature_c=self._try("GPU", self.gpu_temperature_c),
            free_memory_mib=self._try("memory", free_memory_mib),
            free_disk_mib=self._try("disk", lambda: free_disk_mib(self.home)),
        )

    def without_effect(self, limits: Limits) -> list[str]:
        """Each limit that nothing here tells the measure of; takes a second."""
        self.read()
        time.sleep(_TWO_LOOKS_S)
        return missing_sensors(limits, self.read())

    def close(self) -> None:
        """Hang up on whoever was asked."""
        self.idle.close()

    def _try(self, name: str, read: Callable[[], Value | None]) -> Value | None:
        try:
            return read()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                log.warning("a sensor fails", sensor=name, problem=repr(error))
            return None
