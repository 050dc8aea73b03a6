"""Reducers and auditors that cheat, and members that vanish: a part of ``make adversary``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from catalogue import ALL
from ground import GROUNDS, Ground
from outcome import Outcome, play

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

_ROUNDS = 3


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    # A second auditor for every unit, so that a liar among them is soon outvoted.
    settings = GROUNDS["plain"] | {"p_second_auditor": 1.0, "audited_results": 17}
    made = Ground(tmp_path_factory.mktemp("helpers") / "run", settings)
    made.make()
    made.calibrate()
    yield made


def beat(name: str, ground: Ground) -> Outcome:
    scenario = next(scenario for scenario in ALL if scenario.name == name)
    outcome = play(scenario, ground, horizon=_ROUNDS)
    assert outcome.honest_punished == 0
    assert outcome.seen_units <= outcome.bound_units
    return outcome


def test_a_wrong_mean_convicts_its_reducer(ground: Ground) -> None:
    assert beat("wrong-mean", ground).seen_units == 1


def test_an_auditor_that_says_yes_is_outvoted(ground: Ground) -> None:
    assert beat("auditor-that-says-yes", ground).seen_units == 1


def test_a_reducer_that_vanishes_in_the_broadcast_costs_nobody_anything(ground: Ground) -> None:
    assert beat("drop-in-the-broadcast", ground).merged_units == 0
