"""Draws are fair, independent of each other, and the same for everybody."""

from __future__ import annotations

import hashlib
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.audit_policy import PPM
from protocol.draw import (
    DrawChain,
    audited_results,
    check_preimage,
    draw,
    is_selected,
    opened_chunks,
    projection_seed,
    wants_second_auditor,
)

seeds = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=16, max_size=16)


@settings(deadline=None)
@given(seeds, st.integers(1, 5000), st.data())
def test_every_preimage_leads_to_the_tip(seed: bytes, rounds: int, data: st.DataObject) -> None:
    chain = DrawChain.of(seed, rounds)
    round_ = data.draw(st.integers(0, rounds - 1))
    check_preimage(chain.preimage(round_), round_, chain.tip)
    if round_:
        later, earlier = chain.preimage(round_), chain.preimage(round_ - 1)
        assert hashlib.sha256(later).digest() == earlier


@given(seeds, ids, st.integers(0, PPM), st.integers(0, PPM))
def test_a_higher_chance_selects_at_least_as_many(
    drawn: bytes, assignment: bytes, one: int, other: int
) -> None:
    low, high = sorted((one, other))
    assert is_selected(drawn, assignment, low) <= is_selected(drawn, assignment, high)
    assert is_selected(drawn, assignment, PPM)
    assert not is_selected(drawn, assignment, 0)


@given(seeds, ids, st.integers(1, 300), st.integers(0, 64))
def test_chunks_are_distinct_ascending_and_within_the_update(
    drawn: bytes, assignment: bytes, count: int, most: int
) -> None:
    for chosen in (
        opened_chunks(drawn, assignment, count, most),
        audited_results(drawn, count, most),
    ):
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(count, most)
        assert all(0 <= chunk < count for chunk in chosen)


@given(seeds, ids, st.integers(2, 300), st.integers(1, 63))
def test_opening_more_opens_the_same_ones_too(
    drawn: bytes, assignment: bytes, count: int, most: int
) -> None:
    fewer = set(opened_chunks(drawn, assignment, count, most))
    assert fewer <= set(opened_chunks(drawn, assignment, count, most + 1))


@given(seeds, ids)
def test_each_use_has_a_label_of_its_own(drawn: bytes, assignment: bytes) -> None:
    """What is told early (the projection's seed) says nothing of what is told late."""
    assert projection_seed(drawn, assignment) != drawn
    assert opened_chunks(drawn, b"", 1000, 8) != audited_results(drawn, 1000, 8)


def test_chances_are_what_they_say() -> None:
    """20,000 draws, within four standard deviations; selection and second are independent."""
    count, chance = 20_000, 50_000
    base = draw(bytes(32), bytes(32))
    names = [number.to_bytes(16, "big") for number in range(count)]
    selected = [is_selected(base, name, chance) for name in names]
    second = [wants_second_auditor(base, name, chance) for name in names]
    share = chance / PPM
    for hits, expected in (
        (sum(selected), share),
        (sum(second), share),
        (sum(a and b for a, b in zip(selected, second, strict=True)), share**2),
    ):
        spread = math.sqrt(count * expected * (1 - expected))
        assert abs(hits - count * expected) < 4 * spread


def test_every_chunk_is_opened_equally_often() -> None:
    rounds, count, most = 4000, 20, 4
    opened = [0] * count
    for number in range(rounds):
        for chunk in opened_chunks(draw(bytes(32), number.to_bytes(32, "big")), b"a", count, most):
            opened[chunk] += 1
    expected = rounds * most / count
    assert all(abs(times - expected) < 5 * math.sqrt(expected) for times in opened)
