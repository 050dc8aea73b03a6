"""What a soak decides by: its plan, the slope of a series, losses, the count of what was lost."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter

import numpy as np
import pytest
from chaos_soak_checks import LOSS_TOLERANCE, enough_is_merged, learns_as_in_peace
from chaos_soak_goodput import Goodput, works
from chaos_soak_meter import growth
from chaos_soak_plan import (
    COORDINATOR,
    FIRST_ROUND,
    MEAN_LIFE_ROUNDS,
    Do,
    Place,
    make_plan,
    of,
)

WORKERS = tuple(f"w{number:02}" for number in range(12))

# ---- the plan


def test_the_same_seed_is_the_same_plan() -> None:
    assert make_plan(7, WORKERS, 100) == make_plan(7, WORKERS, 100)
    assert make_plan(7, WORKERS, 100) != make_plan(8, WORKERS, 100)


def test_a_process_has_its_own_plan() -> None:
    """More rounds, or other workers, change nothing of it."""
    whole = make_plan(7, WORKERS, 100)
    short = make_plan(7, WORKERS[:3], 20)
    for who in (*WORKERS[:3], COORDINATOR):
        assert of(short, who) == tuple(fault for fault in of(whole, who) if fault.round < 20)


def test_every_fault_has_one_name_and_a_place_of_its_process() -> None:
    plan = make_plan(7, WORKERS, 500)
    assert max(Counter(fault.name for fault in plan).values()) == 1
    places = list(Place)
    of_coordinator = set(places[places.index(Place.LEASE) :])
    for fault in plan:
        assert fault.round >= FIRST_ROUND
        assert (fault.place in of_coordinator) == (fault.who == COORDINATOR)
    assert {fault.do for fault in plan} == set(Do)
    assert {fault.place for fault in plan} == set(Place)


def test_a_worker_lives_five_rounds_on_average() -> None:
    lives = []
    for seed in range(20):
        plan = make_plan(seed, WORKERS, 500)
        for name in WORKERS:
            deaths = [fault.round for fault in of(plan, name) if fault.do is Do.KILL]
            lives += [after - before for before, after in itertools.pairwise(deaths)]
    # Memoryless: the deviation is nearly the mean, so the error is the mean by the root of n.
    error = 3 * MEAN_LIFE_ROUNDS / len(lives) ** 0.5
    assert statistics.mean(lives) == pytest.approx(MEAN_LIFE_ROUNDS, abs=error)


# ---- what grows


def series(
    rise: float, noise: float, *, seed: int = 1, first: float = 200.0
) -> list[tuple[float, float]]:
    """An hour in looks of ten seconds; a program that fills its caches in the first minute."""
    generator = np.random.default_rng(seed)
    return [
        (
            float(at_s),
            first * min(1.0, 0.5 + at_s / 120)
            + rise * at_s / 3600
            + noise * float(generator.standard_normal()),
        )
        for at_s in range(0, 3600, 10)
    ]


def grows(samples: list[tuple[float, float]]) -> bool:
    found = growth(samples, warm_up_s=60.0)
    assert found is not None
    return found.beyond(0.1, 12.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_series_with_noise_does_not_grow(seed: int) -> None:
    assert not grows(series(0.0, 5.0, seed=seed))
    assert not grows(series(0.0, 50.0, seed=seed))


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_leak_does(seed: int) -> None:
    assert grows(series(40.0, 5.0, seed=seed))


def test_outliers_are_no_leak_and_hide_none() -> None:
    flat, leaking = series(0.0, 1.0), series(40.0, 1.0)
    for number in range(100, 360, 7):
        flat[number] = (flat[number][0], 900.0)
        leaking[number] = (leaking[number][0], 0.0)
    assert not grows(flat)
    assert grows(leaking)


def test_a_step_in_the_middle_of_the_noise_is_not_taken_for_a_leak_of_everything() -> None:
    stepped = [(at_s, value + 5.0 * (at_s > 1800)) for at_s, value in series(0.0, 1.0)]
    assert not grows(stepped)


def test_a_short_life_says_nothing() -> None:
    assert growth([], warm_up_s=60.0) is None
    assert growth(series(0.0, 1.0)[:15], warm_up_s=60.0) is None


def test_the_size_of_the_rise_is_right() -> None:
    found = growth(series(36.0, 2.0), warm_up_s=60.0)
    assert found is not None
    assert found.rise == pytest.approx(36.0, abs=3.0)
    assert found.first == pytest.approx(200.0, abs=10.0)


# ---- losses and goodput


def test_the_loss_is_measured_against_peace() -> None:
    calm = [3.0, 3.1]
    assert learns_as_in_peace(3.05 * (1 + LOSS_TOLERANCE) - 0.001, calm) == []
    assert learns_as_in_peace(2.0, calm) == []
    assert "above 3.050" in learns_as_in_peace(3.05 * (1 + LOSS_TOLERANCE) + 0.001, calm)[0]


def test_goodput_has_its_least() -> None:
    assert enough_is_merged(Goodput(1000, 900, {"killed in training": 100})) == []
    assert (
        "killed in training" in enough_is_merged(Goodput(1000, 899, {"killed in training": 1}))[0]
    )


def test_steps_are_counted_over_all_lives() -> None:
    def step(unit: str, steps: int) -> dict[str, object]:
        return {"event": "step", "unit": unit, "steps": steps}

    def life(number: int) -> dict[str, object]:
        return {"event": "life", "number": number}

    resumed = {"event": "training resumed", "steps": 2}
    done = works(
        [
            *(life(1), step("a", 1), step("a", 2), step("a", 3)),
            *(life(2), resumed, step("a", 2), step("a", 3), step("a", 4), step("b", 1)),
            *(life(3), step("b", 1), step("b", 2)),
        ]
    )
    assert (done["a"].computed, done["a"].lives) == (5, 2)
    assert (done["b"].computed, done["b"].lives) == (3, 2)


def test_a_trainer_that_died_within_a_life_is_counted_too() -> None:
    told = [1, 2, 3, 4, 1, 2, 3, 4, 5]
    lines = [{"event": "life", "number": 1}]
    lines += [{"event": "step", "unit": "a", "steps": steps} for steps in told]
    assert works(lines)["a"].computed == 9
