"""A day's traffic: when it ends, and that nothing but its end gives the quota anew."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from worker.traffic_day import Moment, TrafficDay, next_midnight_s

NOON_S = time.mktime((2026, 3, 10, 12, 0, 0, 0, 0, -1))
NOON = Moment(wall_s=NOON_S, steady_s=5000.0, boot="one")
HOURS = 3600.0


def later(at: Moment, hours: float, *, set_by_h: float = 0.0) -> Moment:
    """Some hours on; ``set_by_h``: and somebody set the clock."""
    wall_s = at.wall_s + (hours + set_by_h) * HOURS
    return replace(at, wall_s=wall_s, steady_s=at.steady_s + hours * HOURS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    day = TrafficDay.beginning(NOON)
    day.up_bytes, day.down_bytes = 100, 200
    day.note_unit(50)
    day.save(tmp_path / "traffic.json")
    return tmp_path / "traffic.json"


def test_a_day_ends_at_local_midnight() -> None:
    assert next_midnight_s(NOON_S) == NOON_S + 12 * HOURS
    day = TrafficDay.beginning(NOON)
    day.up_bytes = 7
    assert not day.roll(later(NOON, 11.99))
    assert day.total_bytes == 7
    assert day.roll(later(NOON, 12.01))
    assert day.total_bytes == 0
    assert day.ends_wall_s == NOON_S + 36 * HOURS


def test_a_restart_goes_on_with_it_and_a_new_day_begins_one(path: Path) -> None:
    kept = TrafficDay.load(path, later(NOON, 3))
    assert (kept.up_bytes, kept.down_bytes, kept.units_bytes) == (100, 200, [50])
    fresh = TrafficDay.load(path, later(NOON, 13))
    assert (fresh.total_bytes, fresh.units_bytes) == (0, [50])


@pytest.mark.parametrize("set_by_h", [-1000.0, -30.0, -5.0, 5.0, 13.0, 30.0, 1000.0])
def test_a_clock_that_is_set_begins_no_day(path: Path, set_by_h: float) -> None:
    restarted = later(NOON, 1, set_by_h=set_by_h)
    day = TrafficDay.load(path, restarted)
    assert day.total_bytes == 300
    assert not day.roll(later(restarted, 10.9))
    assert day.roll(later(restarted, 11.1))


def test_after_a_reboot_the_clock_tells(path: Path) -> None:
    rebooted = replace(later(NOON, 3), steady_s=10.0, boot="two")
    assert TrafficDay.load(path, rebooted).total_bytes == 300
    next_day = replace(later(NOON, 13), steady_s=10.0, boot="two")
    assert TrafficDay.load(path, next_day).total_bytes == 0
    # A clock that was years ahead does not keep the quota used up for years.
    ahead = TrafficDay.beginning(replace(NOON, wall_s=NOON_S + 10_000 * HOURS))
    ahead.up_bytes = 9
    ahead.save(path)
    day = TrafficDay.load(path, rebooted)
    assert day.total_bytes == 9
    assert day.ends_wall_s == next_midnight_s(rebooted.wall_s)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"up_bytes": 1}',
        '{"ends_wall_s": "x", "ends_steady_s": 1, "boot": "", "up_bytes": 1, "down_bytes": 1,'
        ' "units_bytes": []}',
        '{"ends_wall_s": 1, "ends_steady_s": 1, "boot": "", "up_bytes": 1, "down_bytes": 1,'
        ' "units_bytes": 5}',
        '{"ends_wall_s": NaN, "ends_steady_s": NaN, "boot": "one", "up_bytes": 1,'
        ' "down_bytes": 1, "units_bytes": []}',
        "9" * 5000,
        "\x00" * 100,
    ],
)
def test_a_damaged_file_is_none(path: Path, text: str) -> None:
    path.write_text(text)
    day = TrafficDay.load(path, NOON)
    assert day == TrafficDay.beginning(NOON)


def test_a_file_is_replaced_whole_or_not_at_all(path: Path) -> None:
    before = path.read_text()
    path.with_suffix(".new").mkdir()  # what a full disk does, in effect
    day = TrafficDay.load(path, NOON)
    day.up_bytes = 1000
    with pytest.raises(OSError, match="directory"):
        day.save(path)
    assert path.read_text() == before
