from __future__ import annotations

import itertools
import threading

import pytest

from coordinator.steady_clock import BELIEVED_AHEAD_S, MOST_DRIFT, SteadyClock, elapsed_s

HOUR_S = 3600.0
START_S = 1_800_000_000.0


class Machine:
    """A wall clock that anybody may set, and a counter that nobody can."""

    def __init__(self) -> None:
        self.wall_s, self.counted_s = START_S, 50.0
        self.clock = SteadyClock(wall=lambda: self.wall_s, elapsed=lambda: self.counted_s)

    def passes(self, seconds: float) -> float:
        self.wall_s += seconds
        self.counted_s += seconds
        return self.clock()


def test_it_is_the_wall_clock_s_time_where_nobody_sets_it() -> None:
    machine = Machine()
    assert machine.clock() == START_S
    assert machine.passes(12.5) == pytest.approx(START_S + 12.5)


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_wall_clock_that_is_set_moves_it_by_the_drift_only(step_s: float) -> None:
    machine = Machine()
    machine.wall_s += step_s
    assert machine.clock() == START_S
    seen = [machine.passes(0.5) for _ in range(200)]
    assert all(later - earlier > 0 for earlier, later in itertools.pairwise(seen))
    assert abs(seen[-1] - (START_S + 100)) <= 100 * MOST_DRIFT + 1e-3


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_it_follows_slowly_until_it_is_right(step_s: float) -> None:
    machine = Machine()
    machine.wall_s += step_s
    for _ in range(110):
        machine.passes(HOUR_S)
    assert machine.clock() == pytest.approx(machine.wall_s, abs=1e-3)


def test_a_counter_that_stands_still_does_not_take_it_back() -> None:
    machine = Machine()
    machine.passes(5.0)
    machine.counted_s -= 3.0
    assert machine.clock() >= START_S + 5.0


def test_a_restart_goes_on_from_what_was_written_down() -> None:
    machine = Machine()
    machine.clock.go_on_from(START_S + HOUR_S)  # the wall clock was set back meanwhile
    assert machine.clock() == START_S + HOUR_S
    machine.clock.go_on_from(START_S)
    assert machine.clock() == START_S + HOUR_S


def test_a_clock_that_was_far_ahead_is_not_believed_for_ever() -> None:
    machine = Machine()
    machine.clock.go_on_from(START_S + BELIEVED_AHEAD_S + 1)
    assert machine.clock() == START_S


def test_threads_never_see_it_go_back() -> None:
    clock, wrong = SteadyClock(), []

    def look() -> None:
        last = 0.0
        for _ in range(2000):
            now = clock()
            if now < last:
                wrong.append((last, now))
            last = now

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert elapsed_s() <= elapsed_s()
