"""The owner's limits, applied to what the sensors read: one reason, no flapping."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from worker.governor import Because, Governor, Readings, Verdict
from worker.limits import Limits
from worker.rules import missing_sensors

BERLIN = ZoneInfo("Europe/Berlin")
NOON_S = datetime(2026, 11, 26, 12, tzinfo=BERLIN).timestamp()  # a Thursday
CALM = Readings(
    at_s=NOON_S,
    steady_s=1000.0,
    foreign_cpu_percent=3.0,
    on_battery=False,
    battery_percent=90.0,
    idle_s=7200.0,
    gpu_temperature_c=50.0,
    free_memory_mib=8000,
    free_disk_mib=50_000,
)
STRICT = Limits(
    busy_cpu_percent=25,
    idle_minutes=10,
    gpu_temperature_c=80,
    free_memory_mib=1000,
    free_disk_mib=2000,
    daily_mib=500,
    schedule=("08:00-20:00",),
)


class Machine:
    """A governor and the machine that it looks at, once a second."""

    def __init__(self, limits: Limits = STRICT, **now: Any) -> None:
        self.governor = Governor(limits, zone=BERLIN)
        self.now = replace(CALM, **now)
        self.verdict = self.look()

    def look(self) -> Verdict:
        self.verdict = self.governor.decide(self.now)
        return self.verdict

    def after(self, seconds: float, step_s: float = 1.0, **now: Any) -> Verdict:
        """Let time pass with these readings from now on."""
        self.now = replace(self.now, **now)
        passed_s = 0.0
        while passed_s < seconds:
            step_s = min(step_s, seconds - passed_s)
            self.now = replace(
                self.now, at_s=self.now.at_s + step_s, steady_s=self.now.steady_s + step_s
            )
            passed_s += step_s
            self.look()
        return self.verdict

    def until_works(self, most_s: int = 3600) -> int:
        """Seconds until work is allowed again, nothing else changing."""
        for second in range(1, most_s + 1):
            if self.after(1).works:
                return second
        raise AssertionError(f"still {self.verdict}")


BREACHES: dict[Because, dict[str, Any]] = {
    Because.QUOTA: {"traffic_today_bytes": 500 << 20},
    Because.BATTERY: {"on_battery": True},
    Because.DISK: {"free_disk_mib": 1999},
    Because.MEMORY: {"free_memory_mib": 900},
    Because.HOT: {"gpu_temperature_c": 81.0},
    Because.IN_USE: {"idle_s": 599.0},
    Because.BUSY: {"foreign_cpu_percent": 62.0},
}
LASTING = {Because.QUOTA, Because.BATTERY, Because.DISK, Because.MEMORY}


def test_a_calm_machine_works_and_has_no_reason() -> None:
    assert Machine().verdict == Verdict(works=True)


@pytest.mark.parametrize("because", BREACHES)
def test_each_limit_stops_and_lets_go_on(because: Because) -> None:
    machine = Machine()
    verdict = machine.after(4, **BREACHES[because])
    assert (verdict.works, verdict.because) == (False, because)
    assert verdict.reason
    assert verdict.lasting == (because in LASTING)
    assert verdict.offline == (because == Because.QUOTA)
    calm = {name: getattr(CALM, name) for name in BREACHES[because]}
    machine.now = replace(machine.now, **calm)
    assert 110 <= machine.until_works() <= 125


@pytest.mark.parametrize("because", BREACHES)
def test_a_limit_of_nothing_forbids_nothing(because: Because) -> None:
    machine = Machine(Limits(on_battery=True, free_disk_mib=0))
    assert machine.after(30, **BREACHES[because]) == Verdict(works=True)


@pytest.mark.parametrize("because", BREACHES)
def test_a_sensor_that_is_missing_forbids_nothing(because: Because) -> None:
    machine = Machine()
    breach = BREACHES[because]
    unknown = {name: 0 if name == "traffic_today_bytes" else None for name in breach}
    assert machine.after(30, **unknown) == Verdict(works=True)
    assert not machine.after(4, **breach).works
    machine.now = replace(machine.now, **unknown)  # a sensor that breaks does not stop for ever
    assert machine.until_works() <= 125


def test_of_all_that_holds_the_first_is_told() -> None:
    machine = Machine()
    told = [Because.BUSY, Because.IN_USE, Because.HOT, Because.MEMORY, Because.DISK]
    for because in [*told, Because.BATTERY]:
        assert machine.after(4, **BREACHES[because]).because == because
    night_s = datetime(2026, 11, 26, 23, tzinfo=BERLIN).timestamp()
    assert machine.after(1, at_s=night_s).because == Because.SCHEDULE
    assert machine.after(1, **BREACHES[Because.QUOTA]).because == Because.QUOTA
    machine.governor.confirmed = False
    assert machine.after(1).because == Because.UNCONFIRMED
    machine.governor.pause()
    assert machine.after(1).because == Because.OWNER


# ---- busy ------------------------------------------------------------------------------


def test_a_load_that_starts_is_yielded_to_within_seconds() -> None:
    machine = Machine()
    machine.after(1, foreign_cpu_percent=26.0)  # began somewhere within this second
    machine.after(2)
    assert machine.verdict.because == Because.BUSY


def test_a_short_burst_is_no_load() -> None:
    machine = Machine()
    for _ in range(20):
        machine.after(2, foreign_cpu_percent=100.0)
        assert machine.after(8, foreign_cpu_percent=1.0).works


def test_a_load_that_comes_and_goes_every_second_is_a_load() -> None:
    machine = Machine()
    for _ in range(6):
        machine.after(1, foreign_cpu_percent=100.0)
        machine.after(1, foreign_cpu_percent=1.0)
    assert machine.verdict.because == Because.BUSY


@pytest.mark.parametrize("period_s", [2, 7, 20, 60, 130, 240, 250, 300, 600])
def test_an_oscillating_load_switches_at_most_once_a_minute(period_s: int) -> None:
    machine, switches, works = Machine(), 0, True
    for second in range(1800):
        busy = second % period_s < period_s / 2
        now = machine.after(1, foreign_cpu_percent=90.0 if busy else 2.0).works
        switches += now != works
        works = now
    assert 1 <= switches <= 1800 / 60


def test_who_went_on_too_early_waits_twice_as_long() -> None:
    machine = Machine()
    waits = []
    for _ in range(6):
        machine.after(4, foreign_cpu_percent=90.0)
        machine.now = replace(machine.now, foreign_cpu_percent=2.0)
        waits.append(machine.until_works())
    assert waits == [120, 240, 480, 960, 960, 960]
    machine.after(1000)  # worked undisturbed for longer than it had waited
    machine.after(4, foreign_cpu_percent=90.0)
    machine.now = replace(machine.now, foreign_cpu_percent=2.0)
    assert machine.until_works() == 120


def test_a_figure_is_not_told_anew_at_every_look() -> None:
    machine = Machine()
    reasons = set()
    machine.after(3, foreign_cpu_percent=62.0)
    assert machine.verdict.reason == (
        "other programs use 60 % of the processors (your limit is 25 %)"
    )
    for second in range(300):
        reasons.add(machine.after(1, foreign_cpu_percent=30.0 + second * 37 % 60).reason)
    assert 2 <= len(reasons) <= 11
    calming = machine.after(31, foreign_cpu_percent=1.0).reason
    assert calming == (
        "other programs used the processors a moment ago; work goes on after 2 minutes without that"
    )


def test_when_it_goes_on_is_told_once_the_load_is_gone() -> None:
    machine = Machine()
    assert machine.after(60, foreign_cpu_percent=62.0).until_s is None
    quiet_s = machine.now.at_s
    told = {machine.after(1, foreign_cpu_percent=2.0).until_s for _ in range(119)}
    assert told == {None, quiet_s + 120}
    assert machine.verdict.until_s == quiet_s + 120
    again = machine.after(1, foreign_cpu_percent=62.0)
    assert again.until_s is None
    assert again.reason.startswith("other programs use 60 %")


def test_when_it_goes_on_is_told_once_nobody_is_there() -> None:
    machine = Machine()
    machine.after(1, idle_s=0.0)
    came_s = machine.now.at_s
    told = set()
    for second in range(1, 600):
        told.add(machine.after(1, idle_s=float(second)).until_s)
    assert told == {None, came_s + 600}
    assert machine.after(1, idle_s=600.0).works
    assert machine.now.at_s == came_s + 600


def test_a_figure_of_an_old_limit_is_not_told_any_more() -> None:
    machine = Machine()
    machine.after(4, foreign_cpu_percent=62.0)
    machine.governor.change(replace(STRICT, busy_cpu_percent=40))
    assert machine.after(1).reason.endswith("(your limit is 40 %)")


# ---- battery, temperature, use ---------------------------------------------------------


def test_on_battery_a_charge_may_be_asked_for() -> None:
    machine = Machine(Limits(on_battery=True, battery_percent=40), on_battery=True)
    assert machine.verdict.works
    assert machine.after(1, battery_percent=40.0).works
    verdict = machine.after(1, battery_percent=39.0)
    assert verdict.reason == "the battery has 40 % left (your limit is 40 %)"
    assert not machine.after(600, battery_percent=44.0).works  # charge that comes and goes
    machine.now = replace(machine.now, battery_percent=45.0)
    assert machine.until_works() <= 121


def test_a_full_battery_is_enough_for_who_asks_for_a_full_one() -> None:
    machine = Machine(Limits(on_battery=True, battery_percent=100), on_battery=True)
    machine.after(2, battery_percent=99.0)
    assert machine.verdict.because == Because.BATTERY
    machine.now = replace(machine.now, battery_percent=100.0)
    assert machine.until_works() <= 121


def test_a_gpu_has_to_cool_down() -> None:
    machine = Machine()
    assert machine.after(4, gpu_temperature_c=80.0).works
    assert machine.after(4, gpu_temperature_c=84.0).reason == (
        "the GPU has 84 °C (your limit is 80 °C)"
    )
    assert not machine.after(600, gpu_temperature_c=76.0).works
    machine.now = replace(machine.now, gpu_temperature_c=75.0)
    assert machine.until_works() <= 121


def test_who_comes_back_has_the_machine_at_once() -> None:
    machine = Machine()
    assert machine.after(1, idle_s=0.2).because == Because.IN_USE
    machine.after(900, idle_s=30.0)
    machine.now = replace(machine.now, idle_s=599.0)
    assert not machine.look().works
    machine.now = replace(machine.now, idle_s=600.0)
    assert machine.look().works  # the limit itself is a time: nothing is added to it


def test_an_idle_minute_does_not_make_it_flap() -> None:
    machine, switches, works = Machine(replace(STRICT, idle_minutes=1)), 0, True
    for second in range(1800):
        now = machine.after(1, idle_s=float(second % 65)).works  # touched every 65 s
        switches += now != works
        works = now
    assert switches <= 1800 / 60


# ---- hours, quota, clocks --------------------------------------------------------------


def test_a_schedule_opens_to_the_second_and_says_when() -> None:
    evening_s = datetime(2026, 11, 26, 19, 59, 58, tzinfo=BERLIN).timestamp()
    machine = Machine(at_s=evening_s)
    assert machine.after(1).works
    verdict = machine.after(1)
    morning_s = datetime(2026, 11, 27, 8, tzinfo=BERLIN).timestamp()
    assert verdict == Verdict(
        False,
        Because.SCHEDULE,
        "outside of your hours (08:00-20:00)",
        until_s=morning_s,
        lasting=True,
    )
    assert machine.after(morning_s - machine.now.at_s - 1, step_s=5) == verdict
    assert machine.after(1).works


def test_a_schedule_follows_a_clock_that_is_set() -> None:
    night_s = datetime(2026, 11, 26, 3, tzinfo=BERLIN).timestamp()
    machine = Machine(at_s=night_s)
    assert machine.verdict.until_s == night_s + 5 * 3600
    week_s = 7 * 24 * 3600
    assert machine.after(1, at_s=night_s + week_s).until_s == night_s + week_s + 5 * 3600
    assert machine.after(1, at_s=night_s - week_s).until_s == night_s - week_s + 5 * 3600
    assert machine.after(1, at_s=NOON_S).works


def test_the_quota_of_a_day_ends_at_midnight() -> None:
    machine = Machine(replace(STRICT, schedule=()))
    verdict = machine.after(1, traffic_today_bytes=500 << 20)
    assert verdict.reason == "too little of today's traffic is left (your limit is 500 MiB a day)"
    assert verdict.until_s == datetime(2026, 11, 27, tzinfo=BERLIN).timestamp()
    assert not machine.after(11 * 3600 + 3000, step_s=5).works
    assert machine.after(600, traffic_today_bytes=0).works


# ---- the owner -------------------------------------------------------------------------


def test_a_pause_ends_by_itself() -> None:
    machine = Machine()
    machine.governor.pause(NOON_S + 7200)
    verdict = machine.look()
    assert verdict.because == Because.OWNER
    assert (verdict.until_s, verdict.lasting) == (NOON_S + 7200, True)
    assert machine.governor.paused_until_s == NOON_S + 7200
    assert machine.after(7199, step_s=5) == verdict
    assert machine.after(1).works
    assert not machine.governor.paused


@pytest.mark.parametrize("by_s", [-86_400.0, 86_400.0, 5400.0])
def test_a_pause_lasts_as_long_as_was_said_whatever_the_clock_is_set_to(by_s: float) -> None:
    machine = Machine(replace(STRICT, schedule=()))
    machine.governor.pause(NOON_S + 7200)
    machine.after(3600, step_s=5)
    verdict = machine.after(1, at_s=machine.now.at_s + by_s)
    assert verdict.until_s == pytest.approx(machine.now.at_s + 3599)
    assert not machine.after(3598, step_s=1).works
    assert machine.after(1).works


def test_a_pause_without_an_end_ends_by_the_owner_alone() -> None:
    machine = Machine()
    machine.governor.pause()
    assert machine.after(100 * 3600, step_s=60).because == Because.OWNER
    machine.governor.resume()
    assert machine.after(3600 * 20, step_s=60).because != Because.OWNER


def test_a_pause_until_a_time_that_is_over_is_none() -> None:
    machine = Machine()
    machine.governor.pause(NOON_S - 1)
    assert machine.look().works


def test_nothing_is_done_before_somebody_agreed() -> None:
    governor = Governor(Limits(), confirmed=False, zone=BERLIN)
    verdict = governor.decide(CALM)
    assert (verdict.because, verdict.lasting) == (Because.UNCONFIRMED, True)
    governor.confirmed = True
    assert governor.decide(CALM).works


def test_limits_that_change_apply_at_once() -> None:
    machine = Machine()
    machine.after(4, foreign_cpu_percent=62.0)
    machine.governor.change(replace(STRICT, busy_cpu_percent=50))
    assert not machine.after(1).works  # still over, and never let through in between
    machine.governor.change(replace(STRICT, busy_cpu_percent=80))
    assert machine.after(1).works
    machine.governor.change(replace(STRICT, schedule=("22:00-07:00",)))
    assert machine.look().because == Because.SCHEDULE
    machine.governor.change(replace(STRICT, schedule=("22:00-07:00", "12:00-13:00")))
    assert machine.after(1, foreign_cpu_percent=2.0).works
    machine.governor.change(replace(STRICT, free_disk_mib=60_000))
    assert machine.after(1).because == Because.DISK


def test_a_change_of_one_limit_does_not_free_what_another_holds() -> None:
    machine = Machine()
    machine.after(4, foreign_cpu_percent=62.0)
    machine.after(1, foreign_cpu_percent=2.0)
    machine.governor.change(replace(STRICT, idle_minutes=5))
    assert machine.after(1).because == Because.BUSY


# ---- gaps, other processes, other machines ---------------------------------------------


def test_a_night_asleep_is_no_calm_that_was_seen() -> None:
    machine = Machine()
    machine.after(4, foreign_cpu_percent=62.0)
    gap = {"at_s": machine.now.at_s + 3600, "steady_s": machine.now.steady_s + 3600}
    machine.after(1, foreign_cpu_percent=2.0, **gap)
    assert not machine.verdict.works
    assert 100 <= machine.until_works() <= 120


def test_a_process_that_takes_over_goes_on_where_the_other_was() -> None:
    machine = Machine()
    machine.governor.pause(NOON_S + 60)
    machine.after(4, foreign_cpu_percent=62.0)
    other = Machine()
    other.governor.recall(json.loads(json.dumps(machine.governor.remember())))
    other.now = replace(machine.now, foreign_cpu_percent=2.0)
    assert other.look().because == Because.OWNER
    assert other.after(60).because == Because.BUSY
    assert 55 <= other.until_works() <= 62


def test_a_load_that_began_before_the_take_over_counts_from_then() -> None:
    machine = Machine()
    machine.after(2, foreign_cpu_percent=62.0)
    other = Machine()
    other.governor.recall(json.loads(json.dumps(machine.governor.remember())))
    other.now = machine.now
    assert other.after(1).because == Because.BUSY


def test_what_was_remembered_before_the_machine_restarted_holds_nobody_for_ever() -> None:
    machine = Machine(steady_s=9_000_000.0)
    machine.after(4, foreign_cpu_percent=62.0)
    other = Machine()
    other.governor.recall(machine.governor.remember())
    other.now = replace(other.now, steady_s=30.0)
    assert not other.look().works
    assert other.until_works() <= 121


def test_limits_without_a_sensor_are_named() -> None:
    nothing = Readings(0.0, 0.0)
    assert missing_sensors(Limits(free_disk_mib=0), nothing) == []
    limits = replace(STRICT, battery_percent=20)
    assert [problem.split()[0] for problem in missing_sensors(limits, nothing)] == [
        "busy_cpu_percent",
        "idle_minutes",
        "gpu_temperature_c",
        "free_memory_mib",
        "free_disk_mib",
        "battery_percent",
    ]
    assert missing_sensors(limits, CALM) == []
    on_mains = replace(CALM, battery_percent=None)  # a desktop has no charge to tell
    assert missing_sensors(limits, on_mains) == []
