from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.roster import MAX_REDUCERS, Candidate, Claim, choose_reducers, member_weights


def candidate(
    name: str, donor: str, *, anchor: bool = False, reachable: bool = True, trusted: bool = True
) -> Candidate:
    addresses = ("/ip4/10.0.0.1/tcp/1",) if reachable else ()
    return Candidate(name, donor, anchor, addresses, trusted)


CANDIDATES = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans(), st.booleans()), max_size=8
).map(
    lambda raw: [
        candidate(f"w{i}", donor, anchor=anchor, reachable=reachable, trusted=trusted)
        for i, (donor, anchor, reachable, trusted) in enumerate(raw)
    ]
)
CLAIMS = st.lists(
    st.builds(Claim, tokens=st.integers(1, 10**12), trusted=st.booleans()), min_size=1, max_size=20
)


@given(candidates=CANDIDATES, chunks=st.integers(1, 200), last=st.booleans(), avoid=st.booleans())
def test_shares_cover_every_chunk_once(
    candidates: list[Candidate], chunks: int, last: bool, avoid: bool
) -> None:
    avoided = {"w0"} if avoid else set()
    shares = choose_reducers(candidates, chunks, avoid=avoided, anchors_only=last)
    able = [c for c in candidates if c.multiaddrs and (c.anchor or c.trusted)]
    assert bool(shares) == bool(able)
    position = 0
    for share in shares:
        assert share.first == position < share.end
        position = share.end
    assert position == (chunks if able else 0)
    chosen = [share.candidate for share in shares]
    assert all(c in able for c in chosen)
    if last and any(c.anchor for c in able):
        assert all(c.anchor for c in chosen)
    held = Counter[str]()
    for share in shares:
        if not share.candidate.anchor:
            held[share.candidate.donor] += share.end - share.first
    if any(c.anchor for c in chosen):
        assert all(count <= chunks // 4 for count in held.values())


def test_who_failed_is_avoided_unless_nobody_else_is_left() -> None:
    two = [candidate("w0", "a", anchor=True), candidate("w1", "b", anchor=True)]
    assert [s.candidate.worker for s in choose_reducers(two, 8, avoid={"w0"})] == ["w1"]
    assert len(choose_reducers(two, 8, avoid={"w0", "w1"})) == 2


def test_an_anchor_alone_holds_everything_that_the_cap_leaves() -> None:
    members = [candidate(f"m{i}", "same") for i in range(3)]
    shares = choose_reducers([*members, candidate("anchor", "org", anchor=True)], 100)
    held = {share.candidate.worker: share.end - share.first for share in shares}
    assert held == {"anchor": 76, "m0": 8, "m1": 8, "m2": 8}


def test_without_an_anchor_members_share_evenly() -> None:
    shares = choose_reducers([candidate(f"m{i}", f"d{i}") for i in range(2)], 9)
    assert sorted(share.end - share.first for share in shares) == [4, 5]


def test_with_neither_an_anchor_nor_trust_nobody_reduces() -> None:
    newcomers = [candidate(f"m{i}", f"d{i}", trusted=False) for i in range(5)]
    assert choose_reducers(newcomers, 9) == ()
    assert choose_reducers(newcomers, 9, anchors_only=True) == ()


SPEEDS = st.lists(
    st.none() | st.floats(1e-300, 1e300, allow_nan=False), min_size=1, max_size=MAX_REDUCERS
)


@given(speeds=SPEEDS, chunks=st.integers(1, 5000))
def test_shares_are_in_proportion_to_speeds_within_bounds(
    speeds: list[float | None], chunks: int
) -> None:
    anchors = [
        replace(candidate(f"a{i}", "org", anchor=True), speed=speed)
        for i, speed in enumerate(speeds)
    ]
    shares = choose_reducers(anchors, chunks)
    counts = Counter({s.candidate.worker: s.end - s.first for s in shares})
    chosen = anchors[:chunks]
    known = sorted(c.speed for c in chosen if c.speed is not None)
    median = known[(len(known) - 1) // 2] if known else 1.0
    weights = {
        c.worker: 1.0 if c.speed is None else min(max(c.speed / median, 1 / 16), 4.0)
        for c in chosen
    }
    total = sum(weights.values())
    for name, weight in weights.items():  # off by at most what rounding can move
        assert counts[name] <= chunks * weight / total + len(chosen)
        assert counts[name] >= chunks * weight / total - len(chosen)


@given(others=st.lists(st.floats(1, 2), min_size=2, max_size=20), chunks=st.integers(200, 2000))
def test_a_member_that_lies_about_its_speed_gains_a_bounded_share(
    others: list[float], chunks: int
) -> None:
    members = [replace(candidate(f"m{i}", f"d{i}"), speed=speed) for i, speed in enumerate(others)]
    liar = replace(candidate("liar", "liar"), speed=1e300)
    anchor = replace(candidate("anchor", "org", anchor=True), speed=1.0)
    shares = choose_reducers([*members, liar, anchor], chunks)
    held = {s.candidate.worker: s.end - s.first for s in shares}
    assert held["liar"] <= chunks // 4
    median = sorted([1.0, *others])[(len(others) + 1) // 2]
    fair = chunks * 4 * median / (sum(others) + 1.0)
    assert held["liar"] <= fair + len(others) + 2


@given(claims=CLAIMS, share=st.floats(0.01, 1.0), cap=st.none() | st.integers(1, 10**12))
def test_weights_are_bounded_by_cap_and_by_the_trusted_median(
    claims: list[Claim], share: float, cap: int | None
) -> None:
    weights = member_weights(claims, newcomer_share=share, cap_tokens=cap)
    assert len(weights) == len(claims)
    assert all(isinstance(weight, int) and weight >= 1 for weight in weights)
    capped = [c.tokens if cap is None else min(c.tokens, cap) for c in claims]
    assert all(weight <= most for weight, most in zip(weights, capped, strict=True))
    trusted = sorted(most for most, c in zip(capped, claims, strict=True) if c.trusted)
    for weight, most, claim in zip(weights, capped, claims, strict=True):
        if claim.trusted or not trusted:
            assert weight == most
        else:
            assert weight <= max(1, share * trusted[(len(trusted) - 1) // 2])


@given(claims=CLAIMS, share=st.floats(0.01, 1.0))
def test_newcomers_cannot_move_what_newcomers_weigh(claims: list[Claim], share: float) -> None:
    """The median is of the trusted alone, so a flood of keys does not raise it."""
    flood = [*claims, *(Claim(10**12, False) for _ in range(50))]
    before = member_weights(claims, newcomer_share=share, cap_tokens=None)
    if any(claim.trusted for claim in claims):
        after = member_weights(flood, newcomer_share=share, cap_tokens=None)
        assert after[: len(claims)] == before
