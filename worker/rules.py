"""What each limit that hangs on a sensor asks for, and how its breach is told to a person.

A rule says whether its limit is passed by what was read. What is passed only while the rule is not
held yet (a band) keeps it from going to and fro; how long it must be so is the affair of
:mod:`worker.hysteresis`. A value that this machine does not tell passes no limit.

Figures are rounded, so that a sentence does not change with every look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worker.hysteresis import Hold
from worker.limits import Limits
from worker.verdict import Because, Readings

COOLER_C = 5
CHARGE_PERCENT = 5
ROOMIER = 1.25  # times what shall stay free

_TELL_AGAIN_S = 30.0  # how long a figure is told before another one is
_CALMING_S = 10.0  # a shorter break is not told
_SAME_S = 2.0  # two ways to reckon the same moment differ by less


@dataclass
class Rule:
    """One reason that a sensor may give."""

    because: Because
    limits: tuple[str, ...]  # the names of those that it goes by
    passed: Callable[[Limits, Readings, bool], bool]
    says: Callable[[Limits, Readings], str]
    said: str  # what is told while it waits whether that stays so
    hold: Hold
    lasting: bool = False
    ends_in_s: Callable[[Limits, Readings], float | None] = lambda limits, seen: None
    reason: str = ""
    until_s: float | None = None  # when it ends if nothing comes between; Unix time
    _told_at_s: float = field(default=-math.inf)

    def see(self, limits: Limits, readings: Readings) -> None:
        """Look, and keep the sentence that tells it."""
        before = self.hold.held
        passed = self.passed(limits, readings, before)
        if not self.hold.see(passed, readings.steady_s):
            return
        if passed:
            old = readings.steady_s - self._told_at_s >= _TELL_AGAIN_S
            if old or not before or not self.reason or self._is_calming:
                self.reason, self._told_at_s = self.says(limits, readings), readings.steady_s
            ends_in_s = self.ends_in_s(limits, readings)
        else:
            if self.hold.calm_s >= _CALMING_S or not self.reason:
                self.reason = self._calming
            ends_in_s = self.hold.left_s(readings.steady_s) if self._is_calming else None
        self.until_s = moment_s(readings.at_s, ends_in_s, self.until_s)

    def changed(self) -> None:
        """Its limit is another one now."""
        self.hold.rule_changed()
        self.reason = ""

    def remember(self) -> dict[str, Any]:
        """What it tells, so that a process that takes over tells the same; as JSON."""
        return {"reason": self.reason, "until_s": self.until_s}

    def recall(self, kept: dict[str, Any]) -> None:
        """Tell on what another process told.

        Raises:
            KeyError, TypeError, ValueError: it is of another version; nothing was taken over.
        """
        until_s = None if kept["until_s"] is None else float(kept["until_s"])
        self.reason, self.until_s = str(kept["reason"]), until_s

    @property
    def _calming(self) -> str:
        minutes = math.ceil(self.hold.wait_s / 60)
        return f"{self.said} a moment ago; work goes on after {minutes} minutes without that"

    @property
    def _is_calming(self) -> bool:
        return self.reason == self._calming


def moment_s(at_s: float, in_s: float | None, told_s: float | None) -> float | None:
    """The moment so long from now; that which was told already, if it is about the same."""
    if in_s is None:
        return None
    then_s = at_s + in_s
    return told_s if told_s is not None and abs(then_s - told_s) <= _SAME_S else then_s


def sensed_rules() -> list[Rule]:
    """Each rule that hangs on a sensor, in the order of what is told first."""
    return [
        Rule(
            Because.BATTERY,
            ("on_battery", "battery_percent"),
            _battery_passed,
            _battery_says,
            "this machine ran on its battery",
            Hold(),
            lasting=True,
        ),
        Rule(
            Because.DISK,
            ("free_disk_mib",),
            lambda limits, seen, held: _short(seen.free_disk_mib, limits.free_disk_mib, held),
            lambda limits, seen: (
                f"only {_mib(seen.free_disk_mib)} of disk are free "
                f"(your limit is {limits.free_disk_mib} MiB)"
            ),
            "the disk was too full",
            Hold(),
            lasting=True,
        ),
        Rule(
            Because.MEMORY,
            ("free_memory_mib",),
            lambda limits, seen, held: _short(seen.free_memory_mib, limits.free_memory_mib, held),
            lambda limits, seen: (
                f"only {_mib(seen.free_memory_mib)} of memory are free "
                f"(your limit is {limits.free_memory_mib} MiB)"
            ),
            "memory was short",
            Hold(on_after_s=2.5, patient=True),
            lasting=True,  # what a trainer holds is what others lack
        ),
        Rule(
            Because.HOT,
            ("gpu_temperature_c",),
            _hot_passed,
            lambda limits, seen: (
                f"the GPU has {_rounded(seen.gpu_temperature_c, 1)} °C "
                f"(your limit is {limits.gpu_temperature_c} °C)"
            ),
            "the GPU was too hot",
            Hold(on_after_s=2.5),
        ),
        Rule(
            Because.IN_USE,
            ("idle_minutes",),
            lambda limits, seen, held: (
                seen.idle_s is not None and seen.idle_s < 60 * limits.idle_minutes
            ),
            lambda limits, seen: (
                "somebody uses this machine "
                f"(you allow work once nobody did for {limits.idle_minutes} minutes)"
            ),
            "somebody used this machine",
            Hold(off_after_s=0.0),  # the limit itself is a time
            ends_in_s=_left_alone_in_s,
        ),
        Rule(
            Because.BUSY,
            ("busy_cpu_percent",),
            _busy_passed,
            lambda limits, seen: (
                f"other programs use {_rounded(seen.foreign_cpu_percent, 5)} % of the processors "
                f"(your limit is {limits.busy_cpu_percent} %)"
            ),
            "other programs used the processors",
            Hold(on_after_s=2.5, patient=True),
        ),
    ]


def _battery_passed(limits: Limits, seen: Readings, held: bool) -> bool:
    if not seen.on_battery:
        return False
    return not limits.on_battery or _too_low(limits, seen, held)


def _too_low(limits: Limits, seen: Readings, held: bool) -> bool:
    if seen.battery_percent is None or not limits.battery_percent:
        return False
    return seen.battery_percent < min(100, limits.battery_percent + held * CHARGE_PERCENT)


def _battery_says(limits: Limits, seen: Readings) -> str:
    if not limits.on_battery:
        return "this machine runs on its battery (you allow work on mains power only)"
    return (
        f"the battery has {_rounded(seen.battery_percent, 5)} % left "
        f"(your limit is {limits.battery_percent} %)"
    )


def _hot_passed(limits: Limits, seen: Readings, held: bool) -> bool:
    if seen.gpu_temperature_c is None or not limits.gpu_temperature_c:
        return False
    return seen.gpu_temperature_c > limits.gpu_temperature_c - held * COOLER_C


def _left_alone_in_s(limits: Limits, seen: Readings) -> float | None:
    if seen.idle_s is None or seen.idle_s < _CALMING_S:
        return None
    return 60 * limits.idle_minutes - seen.idle_s


def _busy_passed(limits: Limits, seen: Readings, held: bool) -> bool:
    if seen.foreign_cpu_percent is None or not limits.busy_cpu_percent:
        return False
    return seen.foreign_cpu_percent > limits.busy_cpu_percent


def _short(free_mib: int | None, wanted_mib: int, held: bool) -> bool:
    return free_mib is not None and free_mib < wanted_mib * (ROOMIER if held else 1)


def _rounded(value: float | None, step: int) -> int:
    return step * round((value or 0) / step)


def _mib(value: int | None) -> str:
    """Two digits tell how little there is."""
    value = value or 0
    step = 10 ** max(0, len(str(value)) - 2)
    return f"{value // step * step} MiB"


def missing_sensors(limits: Limits, readings: Readings) -> list[str]:
    """Each limit that has no effect on this machine, because nothing tells what it goes by.

    Args:
        limits: the owner's.
        readings: of the second look or a later one: a load is the difference of two.
    """
    unknown = [
        (limits.busy_cpu_percent, readings.foreign_cpu_percent, "busy_cpu_percent", "its load"),
        (limits.idle_minutes, readings.idle_s, "idle_minutes", "when somebody used it last"),
        (
            limits.gpu_temperature_c,
            readings.gpu_temperature_c,
            "gpu_temperature_c",
            "how hot its GPU is",
        ),
        (limits.free_memory_mib, readings.free_memory_mib, "free_memory_mib", "its free memory"),
        (limits.free_disk_mib, readings.free_disk_mib, "free_disk_mib", "its free disk"),
        (
            limits.battery_percent and readings.on_battery is not False,
            readings.battery_percent,
            "battery_percent",
            "how full its battery is",
        ),
    ]
    return [
        f"{name} has no effect: this machine does not tell {what}"
        for limit, value, name, what in unknown
        if limit and value is None
    ]
