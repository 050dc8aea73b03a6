"""Who reduces what, and what each member weighs: pure choices, and no more.

Rules (protocol.md section 7, docs/verification.md):

* Anchors and the members that may reduce (publicly reachable, trusted, not suspended: the caller
  says which) share the chunks evenly. One donor holds at most a quarter, anchors apart; what that
  cap leaves over goes to the anchors. Where there is no anchor the cap gives way as far as it must.
* The last attempt uses anchors only. With neither an anchor nor a trusted member nobody reduces.
* A member without enough audited passes weighs at most a share of the median of the trusted ones.

However many there are, at most :data:`MAX_REDUCERS` share: a roster must fit into one record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median_low

MAX_REDUCERS = 64
"""With the most and longest addresses they take 256 KiB of the roster, a quarter of a record; the
members take the rest. Reports, which go by members and reducers, stay small too."""

_DONOR_SHARE = 4
"""One donor holds at most 1/4 of the chunks, anchors apart."""


@dataclass(frozen=True)
class Candidate:
    """Somebody who could reduce; ``trusted``: a member that may, by audits and suspensions."""

    worker: str
    donor: str
    anchor: bool
    multiaddrs: tuple[str, ...]
    trusted: bool = True

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
    """Chunks for each reducer, by the rules of the module."""
    if not reducers:
        return []
    anchors = [i for i, c in enumerate(reducers) if c.anchor]
    devices = Counter(c.donor for c in reducers if not c.anchor)
    cap = chunk_count // _DONOR_SHARE
    if not anchors:
        cap = max(cap, -(-chunk_count // len(devices)))
    even = chunk_count // len(reducers)
    counts = [even if c.anchor else min(even, cap // devices[c.donor]) for c in reducers]
    rest = chunk_count - sum(counts)
    if anchors:
        for position, index in enumerate(anchors):
            counts[index] += rest // len(anchors) + (position < rest % len(anchors))
        return counts
    held = Counter[str]()
    for candidate, count in zip(reducers, counts, strict=True):
        held[candidate.donor] += count
    for _ in range(rest):
        able = [i for i, c in enumerate(reducers) if held[c.donor] < cap]
        least = min(able, key=lambda i: counts[i])
        counts[least] += 1
        held[reducers[least].donor] += 1
    return counts
