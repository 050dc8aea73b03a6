"""What the daemon's benchmark makes of its turns."""

from __future__ import annotations

import pytest

from bench.daemon_turns import Turn, Work, fixed_cpu_s, ratios, units

STEADY = Turn(Work(970, 1.0), Work(1000, 1.0))
BUSY = Turn(Work(970, 2.0), Work(1000, 2.0))  # other programs slow both of them
END = Turn(Work(970, 1.5), Work(1000, 1.0), units_ended=1)


def test_rates_are_compared_within_a_turn() -> None:
    assert ratios([STEADY, BUSY, Turn(Work(800, 1.0), Work(1000, 1.0))]) == (0.97, 0.8, 0.97)


def test_what_a_unit_costs_beside_its_steps_is_told_apart() -> None:
    assert fixed_cpu_s([STEADY, END, BUSY, STEADY, END]) == pytest.approx(0.5, abs=0.02)
    assert fixed_cpu_s([STEADY, STEADY, Turn(Work(970, 1.0), Work(1000, 1.0), 1)]) == pytest.approx(
        0.0, abs=1e-9
    )


def test_units_are_whole() -> None:
    found = list(units([STEADY, END, STEADY, STEADY, END, END, STEADY]))
    assert [(one.ours, one.bare.tokens) for one in found] == [
        (Work(2910, 3.5), 3000),
        (Work(970, 1.5), 1000),
    ]
