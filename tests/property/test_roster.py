from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.roster import Candidate, choose_reducers


def candidate(name: str, donor: str, *, anchor: bool = False, reachable: bool = True) -> Candidate:
    return Candidate(name, donor, anchor, ("/ip4/10.0.0.1/tcp/1",) if reachable else ())


CANDIDATES = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=8
).map(
    lambda raw: [
        candidate(f"w{i}", donor, anchor=anchor, reachable=reachable)
        for i, (donor, anchor, reachable) in enumerate(raw)
    ]
)


@given(candidates=CANDIDATES, chunks=st.integers(1, 200), last=st.booleans(), avoid=st.booleans())
def test_shares_cover_every_chunk_once(
    candidates: list[Candidate], chunks: int, last: bool, avoid: bool
) -> None:
    avoided = {"w0"} if avoid else set()
    shares = choose_reducers(candidates, chunks, avoid=avoided, anchors_only=last)
    able = [c for c in candidates if c.multiaddrs]
    assert bool(shares) == bool(able)
    position = 0
    for share in shares:
        assert share.first == position < share.end
        position = share.end
    assert position == (chunks if able else 0)
    chosen = [share.candidate for share in shares]
    assert all(c.multiaddrs for c in chosen)
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
