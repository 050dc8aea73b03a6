"""Speeds of reducers as the coordinator measures them, and the shares that follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.roster import Candidate, choose_reducers
from coordinator.round_state import Phase, Policy, Round
from coordinator.speeds import KEPT_ROUNDS, LEAST_S, ReducerSpeeds

POLICY = Policy(10, 1, 60, 60, min_members=1, max_members=8, max_attempts=3)
MEMBERS = ("a", "b", "c", "d")
CHUNKS = {"a": 10, "b": 10}


def gathering(number: int = 1, attempt: int = 1) -> Round:
    return Round(
        number, POLICY, Phase.GATHER, committed=MEMBERS, attempt=attempt, reducers=("a", "b")
    )


def reduce(speeds: ReducerSpeeds, number: int, seconds: dict[str, tuple[float, float]]) -> None:
    """One whole reduce from 100 s on: for each reducer how long it gathers and broadcasts."""
    state = gathering(number)
    speeds.begin(number, 1, CHUNKS, 100.0)
    for reducer, (gather_s, _) in seconds.items():
        state = replace(state, complete=(*state.complete, (reducer, MEMBERS)))
        speeds.take_note(state, 100.0 + gather_s)
    state = replace(state, phase=Phase.BROADCAST)
    speeds.take_note(state, 200.0)
    for reducer, (_, broadcast_s) in seconds.items():
        state = replace(state, delivered=(*state.delivered, reducer))
        speeds.take_note(state, 200.0 + broadcast_s)


def test_a_speed_is_chunks_over_gather_and_broadcast() -> None:
    speeds = ReducerSpeeds()
    assert speeds.of("a") is None
    reduce(speeds, 1, {"a": (1.0, 1.0), "b": (1.0, 4.0)})
    assert (speeds.of("a"), speeds.of("b")) == (5.0, 2.0)


def test_half_of_what_was_known_stays() -> None:
    speeds = ReducerSpeeds()
    reduce(speeds, 1, {"a": (1.0, 1.0)})
    reduce(speeds, 2, {"a": (1.0, 9.0)})
    assert speeds.of("a") == 3.0


def test_a_minority_that_sends_late_does_not_make_a_reducer_slow() -> None:
    speeds = ReducerSpeeds()
    speeds.begin(1, 1, CHUNKS, 100.0)
    most = replace(gathering(), complete=(("a", MEMBERS[:3]),))
    speeds.take_note(most, 101.0)
    whole = replace(most, complete=(("a", MEMBERS),))
    speeds.take_note(whole, 150.0)
    speeds.take_note(replace(whole, phase=Phase.BROADCAST), 150.0)
    speeds.take_note(replace(whole, phase=Phase.BROADCAST, delivered=("a",)), 151.0)
    assert speeds.of("a") == 5.0


def test_half_of_the_members_are_not_most() -> None:
    speeds = ReducerSpeeds()
    speeds.begin(1, 1, CHUNKS, 100.0)
    half = replace(gathering(), complete=(("a", MEMBERS[:2]),))
    speeds.take_note(half, 101.0)
    speeds.take_note(replace(half, phase=Phase.BROADCAST, delivered=("a",)), 102.0)
    assert speeds.of("a") is None


def test_notes_are_idempotent() -> None:
    """A transaction that failed is done again, later."""
    speeds = ReducerSpeeds()
    reduce(speeds, 1, {"a": (1.0, 1.0)})
    state = replace(
        gathering(), phase=Phase.BROADCAST, complete=(("a", MEMBERS),), delivered=("a",)
    )
    speeds.take_note(state, 900.0)
    assert speeds.of("a") == 5.0


def test_another_attempt_is_measured_by_itself() -> None:
    speeds = ReducerSpeeds()
    speeds.begin(1, 2, CHUNKS, 100.0)
    late = replace(gathering(attempt=1), complete=(("a", MEMBERS),), phase=Phase.BROADCAST)
    speeds.take_note(replace(late, delivered=("a",)), 101.0)
    assert speeds.of("a") is None


@pytest.mark.parametrize(("rounds", "known"), [(KEPT_ROUNDS, 5.0), (KEPT_ROUNDS + 1, None)])
def test_what_is_not_measured_again_is_forgotten(rounds: int, known: float | None) -> None:
    speeds = ReducerSpeeds()
    reduce(speeds, 1, {"a": (1.0, 1.0)})
    speeds.begin(1 + rounds, 1, {"b": 10}, 100.0)
    assert speeds.of("a") == known


def test_shares_meet_where_all_reducers_take_equally_long() -> None:
    """Lines of 1 to 8 chunks a second, and two seconds that everybody waits for a slow sender."""
    lines = {"a": 1.0, "b": 4.0, "c": 8.0, "d": 8.0}
    speeds, taken_s = ReducerSpeeds(), dict[str, float]()
    for number in range(1, 20):
        candidates = [Candidate(w, w, True, ("x",), speed=speeds.of(w)) for w in lines]
        chunks = {s.candidate.worker: s.end - s.first for s in choose_reducers(candidates, 2100)}
        taken_s = {w: 2 + chunks[w] / lines[w] for w in lines}
        state = replace(gathering(number), reducers=tuple(lines))
        speeds.begin(number, 1, chunks, 0.0)
        state = replace(state, complete=tuple((w, MEMBERS) for w in lines), phase=Phase.BROADCAST)
        speeds.take_note(state, 0.0)
        for worker in lines:
            state = replace(state, delivered=(*state.delivered, worker))
            speeds.take_note(state, taken_s[worker])
    assert max(taken_s.values()) == pytest.approx(2 + 2100 / 21, rel=0.02)
    assert min(taken_s.values()) == pytest.approx(2 + 2100 / 21, rel=0.02)


def test_what_is_over_at_once_says_nothing_of_a_line() -> None:
    speeds = ReducerSpeeds()
    reduce(speeds, 1, {"a": (0.1, LEAST_S - 0.2), "b": (0.1, LEAST_S)})
    assert speeds.of("a") is None
    assert speeds.of("b") is not None
