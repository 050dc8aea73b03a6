"""What a round does when members or reducers are gone, cannot reach each other, or we were away."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.round import tick
from coordinator.round_state import (
    AskHolders,
    Phase,
    Policy,
    ReducerDelivered,
    ReducerReported,
    Restarted,
    ResultsCame,
    Round,
    SignInclusion,
    SignRoster,
    Skip,
    Tick,
)
from coordinator.suspensions import withheld

POLICY = Policy(
    duration_s=100.0,
    grace_s=10.0,
    gather_s=20.0,
    broadcast_s=30.0,
    min_members=2,
    max_members=16,
    max_attempts=3,
)
MEMBERS = tuple("abcdefgh")
NOW_S = 50.0


def gathering(reducers: tuple[str, ...] = ("a", "b"), **changes: object) -> Round:
    base = Round(
        0,
        POLICY,
        phase=Phase.GATHER,
        deadline_s=NOW_S + 20.0,
        broadcast_deadline_s=NOW_S + 50.0,
        committed=MEMBERS,
        attempt=1,
        reducers=reducers,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def holding(**complete: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``holding(a="abc")``: the members complete at each reducer."""
    return tuple((reducer, tuple(members)) for reducer, members in complete.items())


def broadcasting(**changes: object) -> Round:
    state = gathering(complete=holding(a="abcdefgh", b="abcdefgh"), inclusion=MEMBERS)
    return replace(state, phase=Phase.BROADCAST, deadline_s=NOW_S + 50.0, **changes)


def absent(*workers: str) -> Tick:
    return Tick(frozenset(workers))


# ---- senders


def test_a_gather_ends_when_all_that_are_there_are_complete() -> None:
    state = gathering(complete=holding(a="abcdefg", b="abcdefg"))
    waiting, effects = tick(state, Tick(), NOW_S)
    assert (waiting.phase, effects) == (Phase.GATHER, ())
    after, effects = tick(state, absent("h"), NOW_S)
    assert after.phase is Phase.BROADCAST
    assert effects == (SignInclusion(1, tuple("abcdefg")),)


def test_who_sent_everything_before_it_went_is_included() -> None:
    state = gathering(complete=holding(a="abcdefgh", b="abcdefg"))
    assert tick(state, absent("h"), NOW_S)[0].inclusion == tuple("abcdefg")
    state = gathering(complete=holding(a="abcdefgh", b="abcdefgh"), committed=(*MEMBERS, "i"))
    assert tick(state, absent("h", "i"), NOW_S)[0].inclusion == MEMBERS


def test_those_that_are_there_are_waited_for_whoever_is_gone() -> None:
    state = gathering(complete=holding(a="abcdef", b="abcdefg"))
    assert tick(state, absent("h"), NOW_S) == (state, ())


def test_too_few_that_are_there_wait_for_others_to_return() -> None:
    state = gathering(complete=holding(a="a", b="a"), committed=("a", "c", "d"))
    assert tick(state, absent("c", "d"), NOW_S) == (state, ())


# ---- reducers


def test_a_reducer_that_is_lost_in_the_gather_ends_the_attempt_at_once() -> None:
    after, effects = tick(gathering(), absent("b"), NOW_S)
    assert (after.attempt, after.avoid, after.failed) == (2, ("b",), ("b",))
    assert effects == (SignRoster(2, MEMBERS, ("b",), anchors_only=False),)
    assert withheld(gathering(complete=holding(a="ab")), after) == {"b"}


def test_the_last_attempt_waits_for_its_reducer_to_return() -> None:
    state = gathering(attempt=3)
    assert tick(state, absent("b"), NOW_S) == (state, ())
    state = broadcasting(attempt=3)
    asked, effects = tick(state, absent("b"), NOW_S)
    assert effects == (AskHolders(),)
    assert tick(asked, absent("b"), NOW_S + 30.0) == (asked, ())
    after, effects = tick(asked, absent("b"), NOW_S + 50.0)
    assert after.phase is Phase.SKIPPED
    assert isinstance(effects[-1], Skip)


def test_holders_are_asked_before_another_attempt_begins() -> None:
    asked, effects = tick(broadcasting(), absent("b"), NOW_S)
    assert effects == (AskHolders(),)
    assert tick(asked, absent("b"), NOW_S + 2.9) == (asked, ())
    after, effects = tick(asked, absent("b"), NOW_S + 3.0)
    assert (after.phase, after.attempt, after.avoid) == (Phase.GATHER, 2, ("b",))
    # The other one just was not ready yet: it withheld nothing.
    assert withheld(asked, after) == {"b"}


def test_a_rescue_goes_on_as_long_as_it_brings_something() -> None:
    asked, _ = tick(broadcasting(), absent("b"), NOW_S)
    asked, _ = tick(asked, ResultsCame(), NOW_S + 2.5)
    assert tick(asked, absent("b"), NOW_S + 5.0)[0].phase is Phase.BROADCAST
    saved, _ = tick(asked, ReducerDelivered("b"), NOW_S + 5.0)
    assert tick(saved, absent("b"), NOW_S + 20.0)[0].phase is Phase.BROADCAST


def test_a_reducer_that_comes_back_ends_the_rescue() -> None:
    asked, _ = tick(broadcasting(), absent("b"), NOW_S)
    back, effects = tick(asked, Tick(), NOW_S + 10.0)
    assert (back.rescue_until_s, effects) == (None, ())


def test_one_that_had_delivered_may_go() -> None:
    state = broadcasting(delivered=("b",))
    assert tick(state, absent("b"), NOW_S) == (state, ())


# ---- a swarm whose halves do not reach each other


def test_a_split_swarm_merges_one_half_in_the_next_attempt() -> None:
    state = gathering(
        ("a", "b", "e", "f"), complete=holding(a="abcd", b="abcd", e="efgh", f="efgh")
    )
    assert not state.complete_everywhere()
    after, _ = tick(state, Tick(), NOW_S + 20.0)
    assert (after.attempt, after.avoid) == (2, ("e", "f"))


def test_where_both_halves_reach_the_anchor_it_alone_reduces_for_all() -> None:
    state = gathering(("anchor", "a"), complete=holding(anchor="abcdefgh", a="abcd"))
    after, effects = tick(state, Tick(), NOW_S + 20.0)
    assert (after.attempt, after.avoid) == (2, ("a",))
    assert effects == (SignRoster(2, MEMBERS, ("a",), anchors_only=False),)


def test_one_member_alone_makes_nobody_wait() -> None:
    state = gathering(committed=tuple("abc"), complete=holding(a="abc", b="ab"))
    after, _ = tick(state, Tick(), NOW_S + 20.0)
    assert (after.phase, after.inclusion) == (Phase.BROADCAST, ("a", "b"))


def test_the_last_attempt_merges_whom_it_has() -> None:
    state = gathering(attempt=3, complete=holding(a="abcdefgh", b="abcd"))
    after, _ = tick(state, Tick(), NOW_S + 20.0)
    assert (after.phase, after.inclusion) == (Phase.BROADCAST, tuple("abcd"))


held_sets = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.sets(st.sampled_from(MEMBERS)), min_size=1
)


@given(held_sets)
def test_no_other_choice_that_keeps_the_fullest_reducers_reaches_more(
    held: dict[str, set[str]],
) -> None:
    """Of what is done without, nothing was needed: the kept ones have most members in common."""
    complete = tuple((r, tuple(sorted(members))) for r, members in held.items())
    state = gathering(tuple(held), complete=complete, attempt=1)
    after, _ = tick(state, Tick(), NOW_S + 20.0)
    if after.attempt == 1:
        assert len(after.inclusion) >= POLICY.min_members
        return
    kept = [r for r in held if r not in after.avoid]
    reached = len(set.intersection(*(held[r] for r in kept))) if kept else 0
    singles = max(len(held[r]) for r in held)
    assert reached == singles or singles < POLICY.min_members
    for several in combinations(held, len(kept) + 1):
        assert len(set.intersection(*(held[r] for r in several))) <= singles


# ---- we were away


@pytest.mark.parametrize("state", [gathering(), broadcasting()])
def test_a_short_absence_only_moves_the_deadlines(state: Round) -> None:
    after, effects = tick(state, Restarted(5.0), NOW_S + 5.0)
    assert (after.attempt, after.free_attempts, effects) == (1, 0, ())
    assert state.deadline_s is not None
    assert after.deadline_s == state.deadline_s + 5.0


def test_a_gather_whose_roster_has_expired_begins_anew_for_free() -> None:
    state = gathering(attempt=3)
    after, effects = tick(state, Restarted(600.0), NOW_S + 600.0)
    assert (after.phase, after.attempt, after.free_attempts) == (Phase.GATHER, 4, 1)
    assert (after.avoid, after.is_last_attempt) == ((), True)
    assert effects == (SignRoster(4, MEMBERS, (), anchors_only=True),)
    assert not withheld(state, after)


def test_what_members_finished_without_us_is_waited_for() -> None:
    after, effects = tick(broadcasting(), Restarted(600.0), NOW_S + 600.0)
    assert (after.phase, after.attempt, effects) == (Phase.BROADCAST, 1, ())
    assert after.deadline_s == NOW_S + 650.0


def test_a_report_after_the_cutoff_cannot_be() -> None:
    state = gathering(complete=holding(a="abcdefgh"))
    after, effects = tick(state, ReducerReported("b", MEMBERS), NOW_S + 1.0)
    assert after.phase is Phase.BROADCAST
    assert effects == (SignInclusion(1, MEMBERS),)
