"""Cheating must cost more than it brings: the policy's arithmetic over ten thousand seeds."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bench.economics import Strategy, career, measure
from protocol.manifest import VerificationSpec

POLICY = VerificationSpec()


def test_the_default_policy_makes_a_cheat_lose_twice_what_it_brings() -> None:
    assert POLICY.p_min * POLICY.pending_contributions >= 2 * (1 - POLICY.p_min)


def test_a_policy_under_which_cheating_pays_is_refused() -> None:
    with pytest.raises(ValidationError, match="cheating pays"):
        VerificationSpec(p_min=0.01, pending_contributions=100)


def test_cheating_in_a_tenth_of_the_rounds_after_fifty_good_ones_loses() -> None:
    row = measure(POLICY, Strategy(good_rounds=50, cheat_share=0.1), seeds=10_000)
    gain, loss, winners = row["gain_mean"], row["loss_mean"], row["seeds_that_gained"]
    assert isinstance(gain, float) and isinstance(loss, float) and isinstance(winners, float)
    assert loss > 5 * gain
    assert winners < 0.01


def test_who_always_cheats_is_caught_at_once() -> None:
    one = career(POLICY, Strategy(good_rounds=0, cheat_share=1.0, lag_rounds=1), seed=7)
    assert (one.cheats, one.gain, one.loss) == (1, 0, 0)


def test_who_is_never_drawn_is_never_caught() -> None:
    blind = Strategy(good_rounds=0, cheat_share=1.0, caught_by_audit=0.0)
    one = career(POLICY, blind, seed=7)
    assert one.gain == one.rounds and one.loss == 0
