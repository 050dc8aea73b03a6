"""A simulated round of two levels: groups that reduce inside, then across.

Not in the protocol; ADR 0046 says what it would take. Members are dealt into about sqrt(N) groups,
each with its own roster and inclusion set:

1. In each group, GATHER as now: those that can be dialled are its *holders*, each of a range.
2. A holder combines its range over the group's inclusion set, encodes it a second time (the weight
   of the sum is that of the set), signs it, and sends each chunk of it to the chunk's *top
   reducer*: one of the holders of that chunk, another group's for each; or else one of a few
   machines of the organiser and the best connected.
3. A top reducer combines the groups' chunks over the inclusion set of groups, encodes, signs, and
   sends them back to the holders; each sends them on to its group as they come.

A member checks the top reducer's signature: what a holder relays needs none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import isqrt

from bench.scale_flat import butterfly_shares
from bench.scale_homes import Member
from bench.scale_job import SCREENED_BYTES, Job, Reporter, Round, Share
from bench.scale_network import Action, Transfer
from bench.scale_records import inclusion_bytes, report_bytes, roster_bytes

Counts = dict[int, int]


def deal(members: Sequence[Member], groups: int) -> list[list[int]]:
    """Members into groups, the best connected first, so that each has its part of them."""
    ranked = sorted(
        range(len(members)),
        key=lambda i: (not members[i].reachable, -members[i].slower_bytes_s, i),
    )
    return [sorted(ranked[group::groups]) for group in range(groups)]


class GridRound:
    """One round; about the square root of all members are one group.

    Args:
        tops: who reduces across the groups; without them the groups' holders in turns.
    """

    def __init__(self, job: Job, members: Sequence[Member], tops: Sequence[Share] = ()) -> None:
        self.round = Round.of(job, members)
        self._job = job
        self.groups = deal(members, isqrt(len(members)))
        self.shares = [self._inside(group) for group in self.groups]
        holders = [_by_chunk(shares) for shares in self.shares]
        in_turns = [holders[chunk % len(holders)][chunk] for chunk in range(job.layout.count)]
        self.tops = _by_chunk(tops) or in_turns
        self.to_top = _pairs(holders, self.tops)
        self.back: dict[int, Counts] = {}  # top -> holder -> chunks: the other way round
        for holder, brings in self.to_top.items():
            for top, chunks in brings.items():
                self.back.setdefault(top, {})[holder] = chunks
        self._group_of = {i: g for g, group in enumerate(self.groups) for i in group}
        self._reducers_whole = [0] * len(self.groups)
        self._holders_awaited = {top: len(brings) for top, brings in self.back.items()}
        self._tops_whole = 0
        self._chunks_back: dict[int, int] = dict.fromkeys(self.to_top, 0)
        self._chunks_held = [0] * len(members)
        self.round.connected = self._connections()

    def _connections(self) -> list[int]:
        count = [0] * len(self.round.members)
        for group, shares in zip(self.groups, self.shares, strict=True):
            for member in group:
                count[member] += len(shares)
            for share in shares:
                count[share.member] += len(group) - len(shares)
        for holder, brings in self.to_top.items():
            for top in brings:
                count[holder] += 1
                count[top] += 1
        return count

    def _inside(self, group: Sequence[int]) -> list[Share]:
        shares = butterfly_shares([self.round.members[i] for i in group], self._job.layout.count)
        return [Share(group[share.member], share.chunks) for share in shares]

    def run(self) -> Round:
        """Until the last member has the mean."""
        tells = [tell for number in range(len(self.groups)) for tell in self._rosters_of(number)]
        self.round.tell(0.0, tells)
        self.round.network.run()
        return self.round

    def streams(self) -> list[int]:
        """Opened or served by each member in the round."""
        count = [0] * len(self.round.members)
        for group, shares in zip(self.groups, self.shares, strict=True):
            for member in group:
                count[member] += 2 * len(shares)
            for share in shares:
                count[share.member] += 2 * len(group) - 4  # none to itself
        for holder, brings in self.to_top.items():
            for top in set(brings) - {holder}:
                count[holder] += 2
                count[top] += 2
        return count

    def roster_bytes(self) -> int:
        """Of the largest group's, with the top reducers': what a holder gets."""
        groups = zip(self.groups, self.shares, strict=True)
        chunks = self._job.layout.count
        inside = max(roster_bytes(len(group), len(shares), chunks) for group, shares in groups)
        return inside + roster_bytes(0, len(self.back), chunks)

    def screening_bytes(self) -> int:
        """What the reducers of both levels measured of their inputs, to the coordinator."""
        inputs = len(self.round.members) + len(self.groups)
        return SCREENED_BYTES * inputs * self._job.layout.count

    def held_bytes(self) -> int:
        """Encoded inputs that the reducer with the most holds, inside and across."""
        held = [0] * len(self.round.members)
        for group, shares in zip(self.groups, self.shares, strict=True):
            for share in shares:
                held[share.member] += share.chunks * len(group)
        for top in self.tops:
            held[top] += len(self.groups)
        return max(held) * self._job.chunk_bytes

    # ---- inside a group

    def _rosters_of(self, number: int) -> Iterator[tuple[int, int, Action]]:
        group, shares = self.groups[number], self.shares[number]
        size = roster_bytes(len(group), len(shares), self._job.layout.count)
        top_size = roster_bytes(0, len(self.back), self._job.layout.count)

        def reported(now_s: float) -> None:
            self._reducers_whole[number] += 1
            if self._reducers_whole[number] == len(shares):
                self.round.inside_at_s = now_s
                tells = [(s.member, inclusion_bytes(len(group)), self._up_of(s)) for s in shares]
                self.round.tell(now_s, tells)

        held = {s.member: Reporter(self.round, s.member, len(group), reported) for s in shares}
        for at, member in enumerate(group):
            start = at * len(shares) // len(group)  # each begins with another reducer
            order = (*shares[start:], *shares[:start])
            both = size + top_size if member in held else size
            yield member, both, self._gather_of(member, order, held)

    def _gather_of(self, member: int, order: Sequence[Share], held: dict[int, Reporter]) -> Action:
        def streams() -> Iterator[Transfer]:
            for share in order:
                yield from self.round.stream(
                    member, share, held[share.member].complete, leaves=self._job.layout.count
                )

        return self._dialled(member, streams)

    def _dialled(self, member: int, transfers: Callable[[], Iterator[Transfer]]) -> Action:
        """Send these once the streams are open."""

        def begin(now_s: float) -> None:
            self.round.network.send(now_s + self.round.dialled_s(member), member, transfers())

        return begin

    # ---- up, across, and down

    def _up_of(self, share: Share) -> Action:
        holder = share.member
        inputs = len(self.groups[self._group_of[holder]])

        def partials() -> Iterator[Transfer]:
            yield self.round.combined(holder, share.chunks, inputs)
            for top, chunks in self.to_top[holder].items():
                yield self.round.result(holder, top, chunks, 1, self._top_gets(top))

        return self._dialled(holder, partials)

    def _top_gets(self, top: int) -> Action:
        def arrived(now_s: float) -> None:
            self._holders_awaited[top] -= 1
            if not self._holders_awaited[top]:
                report = Transfer(self.round.coordinator, report_bytes(0), arrived=self._top_told)
                self.round.network.send_first(now_s, top, report)

        return arrived

    def _top_told(self, now_s: float) -> None:
        self._tops_whole += 1
        self.round.load.reports += 1
        self.round.load.statements += len(self.groups)  # as many signed partials stand behind it
        if self._tops_whole == len(self.back):
            self.round.gathered_at_s = now_s
            size = inclusion_bytes(len(self.groups))
            self.round.tell(now_s, [(top, size, self._down_of(top)) for top in self.back])

    def _down_of(self, top: int) -> Action:
        def results() -> Iterator[Transfer]:
            chunks = self.tops.count(top)
            yield self.round.combined(top, chunks, len(self.groups))
            for holder, count in self.back[top].items():
                yield self.round.result(top, holder, count, 1, self._holder_gets(holder, count))

        return self._dialled(top, results)

    def _holder_gets(self, holder: int, chunks: int) -> Action:
        whole = sum(self.to_top[holder].values())
        ends = list(accumulate(self._job.pieces(whole)))

        def arrived(now_s: float) -> None:
            before = self._chunks_back[holder]
            self._chunks_back[holder] = before + chunks
            passed = [end for end in ends if before < end <= before + chunks]
            for end in passed:
                size = end - ([0, *ends])[ends.index(end)]
                relays = self._relays(holder, size, first=end == ends[0])
                self.round.network.send(now_s, holder, relays)

        return arrived

    def _relays(self, holder: int, chunks: int, *, first: bool) -> Iterator[Transfer]:
        group = self.groups[self._group_of[holder]]
        at = group.index(holder)
        for to in (*group[at:], *group[:at]):
            yield self.round.result(holder, to, chunks, first, self._holds(to, chunks))

    def _holds(self, member: int, chunks: int) -> Action:
        def arrived(now_s: float) -> None:
            self._chunks_held[member] += chunks
            if self._chunks_held[member] == self._job.layout.count:
                self.round.finished_at_s[member] = now_s

        return arrived


def _by_chunk(shares: Sequence[Share]) -> list[int]:
    """Who holds each chunk, in order of chunks."""
    return [share.member for share in shares for _ in range(share.chunks)]


def _pairs(holders: Sequence[Sequence[int]], tops: Sequence[int]) -> dict[int, Counts]:
    """How many chunks each holder brings to each top reducer."""
    pairs: dict[int, Counts] = {}
    for of_group in holders:
        for holder, top in zip(of_group, tops, strict=True):
            brings = pairs.setdefault(holder, {})
            brings[top] = brings.get(top, 0) + 1
    return pairs
