"""Whatever sensors and clocks say: never more than one switch a minute, always one reason."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.governor import Because, Governor, Readings
from worker.limits import Limits

BERLIN = ZoneInfo("Europe/Berlin")
BEGIN_S = 1_792_800_000.0  # a Saturday; on Sunday the clocks go back
LIMITS = Limits(
    busy_cpu_percent=25,
    idle_minutes=1,
    gpu_temperature_c=80,
    free_memory_mib=1000,
    free_disk_mib=2000,
    daily_mib=500,
    on_battery=True,
    battery_percent=40,
    schedule=("00:00-12:00", "12:01-12:02", "12:03-24:00"),
)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


MOMENTS = st.fixed_dictionaries(
    {
        "passed_s": st.sampled_from([0.0, 0.3, 1.0, 1.0, 1.0, 1.7, 5.0, 59.0, 121.0, 9000.0]),
        "clock_set_s": st.sampled_from([0.0] * 8 + [-86_400.0, -90.0, 60.0, 43_200.0, 6e8]),
        "times": st.sampled_from([1, 1, 2, 3, 5, 30, 61, 125]),
    },
    optional={
        "foreign_cpu_percent": maybe(st.floats(0, 100)),
        "on_battery": maybe(st.booleans()),
        "battery_percent": maybe(st.floats(0, 100)),
        "idle_s": maybe(st.floats(0, 1e6) | st.sampled_from([0.0, 59.0, 60.0, 61.0])),
        "gpu_temperature_c": maybe(st.floats(0, 120) | st.floats(74, 81)),
        "free_memory_mib": maybe(st.integers(0, 3000)),
        "free_disk_mib": maybe(st.integers(0, 5000)),
        "traffic_today_bytes": st.sampled_from([0, 499 << 20, 500 << 20]),
    },
)


def history(moments: list[dict[str, Any]]) -> list[Readings]:
    """What the sensors of one machine read, one look after the other."""
    now, looks = Readings(BEGIN_S, 1000.0), []
    for moment in moments:
        told = dict(moment)
        passed_s, times = told.pop("passed_s"), told.pop("times")
        now = replace(now, at_s=max(now.at_s + told.pop("clock_set_s"), 0.0))
        for _ in range(times):
            now = replace(now, at_s=now.at_s + passed_s, steady_s=now.steady_s + passed_s, **told)
            looks.append(now)
    return looks


def switches(looks: Iterable[Readings], governor: Governor) -> list[float]:
    """When it began to work, or ended."""
    times_s, works = [], None
    for readings in looks:
        now = governor.decide(readings).works
        if works is not None and now != works:
            times_s.append(readings.steady_s)
        works = now
    return times_s


def check_rate(times_s: list[float]) -> None:
    for first, begin_s in enumerate(times_s):
        for minutes in (1, 2, 3, 5, 10, 30):
            within = bisect_right(times_s, begin_s + 60 * minutes) - first
            assert within <= minutes + 1


@settings(deadline=None, max_examples=40)
@given(moments=st.lists(MOMENTS, max_size=20))
def test_it_never_flaps_whatever_is_read(moments: list[dict[str, Any]]) -> None:
    check_rate(switches(history(moments), Governor(LIMITS, zone=BERLIN)))


CALM = {
    "foreign_cpu_percent": 1.0,
    "on_battery": False,
    "battery_percent": 90.0,
    "idle_s": 1e5,
    "gpu_temperature_c": 40.0,
    "free_memory_mib": 9000,
    "free_disk_mib": 9000,
    "traffic_today_bytes": 0,
    "clock_s": 0.0,
}
BREACHES = {
    "foreign_cpu_percent": 100.0,
    "battery_percent": 10.0,
    "idle_s": 0.0,
    "gpu_temperature_c": 99.0,
    "free_memory_mib": 1,
    "free_disk_mib": 1,
    "traffic_today_bytes": 1 << 40,
    "clock_s": -1e9,  # the wall clock is set, to a Tuesday, and back
}


@settings(deadline=None, max_examples=30)
@given(
    bouts=st.lists(
        st.tuples(st.sampled_from(sorted(BREACHES)), st.integers(0, 70), st.integers(1, 70)),
        min_size=2,
        max_size=4,
    ),
    pace_s=st.sampled_from([0.5, 1.0, 5.0]),
)
def test_it_never_flaps_for_who_watches_it(
    bouts: list[tuple[str, int, int]], pace_s: float
) -> None:
    """The worst there is: whatever disturbs it comes as soon as it works, and goes again."""
    governor = Governor(replace(LIMITS, schedule=("sat-sun 00:00-24:00",)), zone=BERLIN)
    steady_s, works, times_s = 1000.0, True, []

    def look(**read: Any) -> bool:
        nonlocal steady_s, works
        steady_s += pace_s
        told = CALM | {"on_battery": True} | read
        at_s = BEGIN_S + told.pop("clock_s")
        now = governor.decide(Readings(at_s, steady_s, **told)).works
        if now != works:
            times_s.append(steady_s)
        works = now
        return now

    for name, works_for, lasts_for in bouts:
        while not look():
            assert steady_s - times_s[-1] <= 1000 + pace_s  # it does go on
        for _ in range(works_for):
            look()
        for _ in range(lasts_for):
            look(**{name: BREACHES[name]})
    check_rate(times_s)
    stops_s = times_s[::2]
    assert all(later - sooner >= 120 for sooner, later in pairwise(stops_s))


@settings(deadline=None, max_examples=40)
@given(
    spans=st.lists(
        st.tuples(st.sampled_from([0.0, 20.0, 26.0, 100.0]), st.integers(1, 400)), max_size=20
    )
)
def test_a_load_is_yielded_to_and_never_flaps(spans: list[tuple[float, int]]) -> None:
    looks = history(
        [
            {"passed_s": 1.0, "clock_set_s": 0.0, "times": times, "foreign_cpu_percent": percent}
            for percent, times in spans
        ]
    )
    governor, over_for_s = Governor(Limits(busy_cpu_percent=25)), 0
    for readings in looks:
        over_for_s = over_for_s + 1 if (readings.foreign_cpu_percent or 0) > 25 else 0
        verdict = governor.decide(readings)
        assert not (verdict.works and over_for_s > 4)  # the first look knows no time before it
    times_s = switches(looks, Governor(Limits(busy_cpu_percent=25)))
    check_rate(times_s)
    assert len(times_s) <= 1 + len(looks) / 60


@settings(deadline=None, max_examples=40)
@given(
    moments=st.lists(MOMENTS, max_size=12),
    confirmed=st.booleans(),
    pause_s=st.none() | st.floats(-100, 1e5),
)
def test_who_does_not_work_has_one_reason(
    moments: list[dict[str, Any]], confirmed: bool, pause_s: float | None
) -> None:
    governor = Governor(LIMITS, confirmed=confirmed, zone=BERLIN)
    governor.pause(None if pause_s is None else BEGIN_S + pause_s)
    for readings in history(moments):
        verdict = governor.decide(readings)
        assert verdict.works == (verdict.because is None) == (verdict.reason == "")
        assert not (verdict.works and (verdict.until_s is not None or verdict.lasting))
        assert verdict.offline == (verdict.because == Because.QUOTA)
        assert not (verdict.works and not confirmed)
        if verdict.until_s is not None:
            assert verdict.until_s >= readings.at_s - 2


@settings(deadline=None, max_examples=40)
@given(moments=st.lists(MOMENTS, max_size=10), cut=st.integers(0, 200))
def test_another_process_goes_on_as_if_it_were_the_same(
    moments: list[dict[str, Any]], cut: int
) -> None:
    looks = history(moments)
    one, other = Governor(LIMITS, zone=BERLIN), Governor(LIMITS, zone=BERLIN)
    for readings in looks[:cut]:
        one.decide(readings)
    other.recall(json.loads(json.dumps(one.remember())))
    for readings in looks[cut:]:
        kept, taken_over = one.decide(readings), other.decide(readings)
        assert (kept.works, kept.because, kept.until_s) == (
            taken_over.works,
            taken_over.because,
            taken_over.until_s,
        )
