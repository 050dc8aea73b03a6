"""Hours of work, on clocks that are put on and back."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from protocol.errors import UsageError
from worker.schedule import Schedule, local_time, next_midnight_s

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = Schedule.parse(["mon-fri 22:00-07:00"])


def at(text: str, fold: int = 0) -> float:
    """Unix time of what a clock in Berlin shows."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def turns(schedule: Schedule, begin_s: float, end_s: float) -> list[tuple[float, bool]]:
    """The truth, minute by minute."""
    found = []
    allowed = schedule.allows(local_time(begin_s, BERLIN))
    moment_s = begin_s
    while moment_s < end_s:
        moment_s += 60
        now = schedule.allows(local_time(moment_s, BERLIN))
        if now != allowed:
            found.append((moment_s, now))
            allowed = now
    return found


def predicted(schedule: Schedule, begin_s: float, end_s: float) -> list[tuple[float, bool]]:
    found = []
    turn_s: float | None = begin_s
    while (turn_s := schedule.next_change_s(turn_s, BERLIN)) is not None and turn_s <= end_s:
        found.append((turn_s, schedule.allows(local_time(turn_s, BERLIN))))
    return found


def test_a_period_that_ends_before_it_starts_ends_on_the_next_day() -> None:
    assert NIGHTS.allows(datetime(2026, 11, 27, 23, 0))  # Friday
    assert NIGHTS.allows(datetime(2026, 11, 28, 6, 59))  # Saturday
    assert not NIGHTS.allows(datetime(2026, 11, 28, 7, 0))
    assert not NIGHTS.allows(datetime(2026, 11, 28, 23, 0))
    assert not NIGHTS.allows(datetime(2026, 11, 30, 3, 0))  # Monday: Sunday's night is none
    assert NIGHTS.next_change_s(at("2026-11-28 07:00"), BERLIN) == at("2026-11-30 22:00")


def test_a_week_wraps_at_monday() -> None:
    sundays = Schedule.parse(["sun 20:00-08:00"])
    assert sundays.allows(datetime(2026, 11, 30, 7, 59))
    assert sundays.next_change_s(at("2026-11-29 20:00"), BERLIN) == at("2026-11-30 08:00")
    assert sundays.next_change_s(at("2026-11-30 08:00"), BERLIN) == at("2026-12-06 20:00")


def test_always_and_whole_weeks_never_turn() -> None:
    for periods in ([], ["00:00-24:00"], ["mon-thu 00:00-24:00", "fri-sun 00:00-24:00"]):
        schedule = Schedule.parse(periods)
        assert schedule.allows(datetime(2026, 11, 26, 12, 0))
        assert schedule.next_change_s(at("2026-11-26 12:00"), BERLIN) is None


@pytest.mark.parametrize(
    "around", ["2026-03-26 12:00", "2026-10-22 12:00"], ids=["clocks go on", "clocks go back"]
)
@pytest.mark.parametrize(
    "periods",
    [
        ["22:00-07:00"],
        ["02:30-12:00"],  # begins at a time that is skipped, or comes twice
        ["12:00-02:30"],
        ["sun 02:15-02:45"],  # all of it is skipped, or comes twice
        ["sat 00:00-24:00", "sun 03:00-03:01"],
    ],
)
def test_turns_are_foretold_across_a_change_of_the_clocks(around: str, periods: list[str]) -> None:
    begin_s, schedule = at(around), Schedule.parse(periods)
    end_s = begin_s + 6 * 24 * 3600
    assert predicted(schedule, begin_s, end_s) == turns(schedule, begin_s, end_s)


def test_a_turn_is_foretold_from_the_middle_of_a_second() -> None:
    assert NIGHTS.next_change_s(at("2026-11-26 21:59:59") + 0.75, BERLIN) == at("2026-11-26 22:00")


def test_midnight_is_of_that_place_and_day() -> None:
    assert next_midnight_s(at("2026-11-26 23:59:59"), BERLIN) == at("2026-11-27 00:00")
    assert next_midnight_s(at("2026-11-27 00:00"), BERLIN) == at("2026-11-28 00:00")
    short, long = at("2026-03-29 00:00"), at("2026-10-25 00:00")
    assert next_midnight_s(short, BERLIN) - short == 23 * 3600
    assert next_midnight_s(long, BERLIN) - long == 25 * 3600


def test_without_a_zone_it_is_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        sundays = Schedule.parse(["sun 02:30-12:00"])
        assert sundays.next_change_s(at("2026-10-24 12:00")) == at("2026-10-25 02:30")
        assert next_midnight_s(at("2026-10-25 12:00")) == at("2026-10-26 00:00")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "wrong",
    ["", "22-07", "mon 25:00-26:00", "mon 10:60-11:00", "foo 10:00-11:00", "mon- 1:00-2:00"],
)
def test_what_is_no_period_is_refused_by_its_name(wrong: str) -> None:
    with pytest.raises(UsageError, match="schedule"):
        Schedule.parse([wrong])
