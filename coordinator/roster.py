"""Who reduces what, and what each member weighs: pure choices, and no more.

Rules (protocol.md section 7, docs/verification.md):

* Anchors and the members that may reduce (publicly reachable, trusted, not suspended: the caller
  says which) share the chunks in proportion to their measured speeds. A speed counts from a
  sixteenth to four times the (lower) median, which an unknown one is taken for: a lie gains little,
  and the slowest is still measured. One donor holds at most a quarter, anchors apart; what that cap
  leaves over goes to the others. Where there is no anchor the cap gives way as far as it must.
* The last attempt uses anchors only. With neither an anchor nor a trusted member nobody reduces.
* A member without enough audited passes weighs at most a share of the median of the trusted ones.

However many there are, at most :data:`MAX_REDUCERS` share: a roster must fit into one record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from statistics import median_low

MAX_REDUCERS = 64
"""With the most and longest addresses they take 256 KiB of the roster, a quarter of a record; the
members take the rest. Reports, which go by members and reducers, stay small too."""

_DONOR_SHARE = 4
"""One donor holds at most 1/4 of the chunks, anchors apart."""

_SLOWEST, _FASTEST = 16, 4
"""Within which factors of the median a measured speed counts."""


@dataclass(frozen=True)
class Candidate:
    """Somebody who could reduce; ``trusted``: a member that may, by audits and suspensions."""

    worker: str
    donor: str
    anchor: bool
    multiaddrs: tuple[str, ...]
    trusted: bool = True
    speed: float | None = None  # measured chunks a second

    @property
    def able(self) -> bool:
        return bool(self.multiaddrs) and (self.anchor or self.trusted)


@dataclass(frozen=True)
class Share:
    """A reducer with its chunks [first, end)."""

    candidate: Candidate
    first: int
    end: int


@dataclass(frozen=True)
class Claim:
    """What a member brings: tokens really done, and whether its audits make it a trusted one."""

    tokens: int
    trusted: bool


def member_weights(
    claims: Sequence[Claim], *, newcomer_share: float, cap_tokens: int | None
) -> list[int]:
    """Weights of a roster's members, in their order; each at least 1.

    Args:
        claims: of all members.
        newcomer_share: what a newcomer weighs at most, as a part of the trusted members' (lower)
            median. No bound where nobody is trusted: a young run has only newcomers.
        cap_tokens: what anybody weighs at most.
    """
    weights = [c.tokens if cap_tokens is None else min(c.tokens, cap_tokens) for c in claims]
    trusted = [weight for weight, claim in zip(weights, claims, strict=True) if claim.trusted]
    if trusted:
        most = max(1, int(newcomer_share * median_low(trusted)))
        weights = [
            weight if claim.trusted else min(weight, most)
            for weight, claim in zip(weights, claims, strict=True)
        ]
    return weights


def choose_reducers(
    candidates: Sequence[Candidate],
    chunk_count: int,
    *,
    avoid: Collection[str] = (),
    anchors_only: bool = False,
) -> tuple[Share, ...]:
    """Divide the chunks.

    Args:
        candidates: in the order in which ranges are given out.
        chunk_count: chunks of the update vector.
        avoid: reducers that failed an attempt of this round; used only if nobody else is left.
        anchors_only: the last attempt; members are used only if the run has no anchor at all.

    Returns:
        Shares in ascending order that cover [0, chunk_count) without a gap; empty if there is
        nobody.
    """
    able = [c for c in candidates if c.able]
    if anchors_only and any(c.anchor for c in able):
        able = [c for c in able if c.anchor]
    able = [c for c in able if c.worker not in avoid] or able
    able.sort(key=lambda c: not c.anchor)  # anchors first; stable
    able = able[:MAX_REDUCERS]
    counts = _counts(able[:chunk_count], chunk_count)
    shares, first = [], 0
    for candidate, count in zip(able, counts, strict=False):
        if count:
            shares.append(Share(candidate, first, first + count))
            first += count
    return tuple(shares)


def _counts(reducers: Sequence[Candidate], chunk_count: int) -> list[int]:
    """Chunks for each reducer, by the rules of the module: each chunk to the one that would be done
    with it first, of those whose donor has room."""
    room, weights = _room(reducers, chunk_count), _weights(reducers)
    counts, left = [0] * len(reducers), chunk_count if reducers else 0
    waiting = [(1 / weight, index) for index, weight in enumerate(weights)]
    heapify(waiting)
    while left:
        _, index = heappop(waiting)
        candidate = reducers[index]
        if not candidate.anchor:
            if not room[candidate.donor]:
                continue
            room[candidate.donor] -= 1
        counts[index] += 1
        left -= 1
        heappush(waiting, ((counts[index] + 1) / weights[index], index))
    return counts


def _room(reducers: Sequence[Candidate], chunk_count: int) -> Counter[str]:
    """How many chunks each donor may hold, anchors apart."""
    devices = Counter(c.donor for c in reducers if not c.anchor)
    cap = chunk_count // _DONOR_SHARE
    if any(c.anchor for c in reducers):
        return Counter({donor: cap - cap % count for donor, count in devices.items()})
    cap = max(cap, -(-chunk_count // max(1, len(devices))))
    return Counter(dict.fromkeys(devices, cap))


def _weights(reducers: Sequence[Candidate]) -> list[float]:
    known = [c.speed for c in reducers if c.speed is not None]
    median = median_low(known) if known else 1.0
    least, most = median / _SLOWEST, median * _FASTEST
    return [median if c.speed is None else min(max(c.speed, least), most) for c in reducers]
