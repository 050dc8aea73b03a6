"""Workers that cheat, in real runs: a representative part of ``make adversary``."""

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
    made = Ground(tmp_path_factory.mktemp("workers") / "run", GROUNDS["plain"])
    made.make()
    made.calibrate()
    yield made


def beat(name: str, ground: Ground) -> Outcome:
    scenario = next(scenario for scenario in ALL if scenario.name == name)
    outcome = play(scenario, ground, horizon=_ROUNDS)
    assert outcome.honest_punished == 0
    assert outcome.seen_units <= outcome.bound_units
    return outcome


def test_who_leaves_out_a_tenth_of_the_steps_is_convicted_by_its_first_unit(
    ground: Ground,
) -> None:
    assert beat("90-percent-of-the-steps", ground).seen_units == 1


def test_one_falsified_chunk_of_17_is_found(ground: Ground) -> None:
    assert beat("one-falsified-chunk", ground).seen_units == 1


def test_other_bytes_than_committed_are_never_merged(ground: Ground) -> None:
    assert beat("other-bytes-in-the-reduce", ground).merged_units == 0
