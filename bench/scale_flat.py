"""A simulated round of one level: every member sends to every reducer, as the protocol has it.

With all members that can be dialled as reducers it is the butterfly; with the organiser's anchors
and some of the best connected it is the one with few reducers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.scale_homes import Member
from bench.scale_job import SCREENED_BYTES, Job, Reporter, Round, Share, divide
from bench.scale_network import Action, Server, Transfer
from bench.scale_records import inclusion_bytes, roster_bytes
from coordinator.roster import Candidate, choose_reducers


def todays_shares(members: Sequence[Member], chunks: int) -> list[Share]:
    """What the coordinator chooses: the anchors and the first that can be dialled, in proportion to
    their speeds, all of which it has measured by now."""
    names = [
        Candidate(
            worker=str(i),
            donor=str(i),
            anchor=member.anchor,
            multiaddrs=("somewhere",) if member.reachable else (),
            speed=member.slower_bytes_s,
        )
        for i, member in enumerate(members)
    ]
    chosen = choose_reducers(names, chunks)
    return [Share(int(share.candidate.worker), share.end - share.first) for share in chosen]


def butterfly_shares(members: Sequence[Member], chunks: int) -> list[Share]:
    """All that can be dialled reduce, in proportion to the slower side of their links."""
    able = [i for i, member in enumerate(members) if member.reachable or member.anchor]
    return _shares(members, able, chunks)


def few_shares(members: Sequence[Member], chunks: int, most: int) -> list[Share]:
    """The anchors, and the best connected of the others, ``most`` in all."""
    able = [i for i, member in enumerate(members) if member.reachable or member.anchor]
    able.sort(key=lambda i: (not members[i].anchor, -members[i].slower_bytes_s, i))
    return _shares(members, able[:most], chunks)


def _shares(members: Sequence[Member], able: Sequence[int], chunks: int) -> list[Share]:
    best = sorted(able, key=lambda i: -members[i].slower_bytes_s)[:chunks]
    counts = divide(chunks, [members[i].slower_bytes_s for i in best])
    return [Share(i, count) for i, count in zip(best, counts, strict=True) if count]


class FlatRound:
    """Roster, GATHER, inclusion set, BROADCAST."""

    def __init__(
        self,
        job: Job,
        members: Sequence[Member],
        shares: Sequence[Share],
        shared_cpu: Server | None = None,
    ) -> None:
        self.round = Round.of(job, members, shared_cpu)
        self._job, self._shares = job, shares
        self._size = len(members)
        self._held = [0] * self._size
        self.round.connected = [len(shares)] * self._size
        for share in shares:
            self.round.connected[share.member] = self._size - 1
        self._whole = 0
        self._reporters = {
            share.member: Reporter(self.round, share.member, self._size, self._reported)
            for share in shares
        }

    def run(self) -> Round:
        """Until the last member has the mean."""
        size = self.roster_bytes()
        self.round.tell(0.0, [(i, size, self._gather_of(i)) for i in range(self._size)])
        self.round.network.run()
        return self.round

    def streams(self) -> list[int]:
        """Opened or served by each member in the round."""
        count = [2 * len(self._shares)] * self._size
        for share in self._shares:
            count[share.member] += 2 * self._size - 4  # none to itself
        return count

    @property
    def reducing(self) -> list[int]:
        """The reducers, by their numbers among the members."""
        return [share.member for share in self._shares]

    def roster_bytes(self) -> int:
        """Of the one roster."""
        return roster_bytes(self._size, len(self._shares), self._job.layout.count)

    def screening_bytes(self) -> int:
        """What the reducers measured of their inputs, to the coordinator."""
        return SCREENED_BYTES * self._size * self._job.layout.count

    def held_bytes(self) -> int:
        """Encoded inputs that the reducer with the most holds."""
        most = max(share.chunks for share in self._shares)
        return most * self._size * self._job.chunk_bytes

    def _gather_of(self, member: int) -> Action:
        def begin(now_s: float) -> None:
            at_s = now_s + self.round.dialled_s(member)
            self.round.network.send(at_s, member, self._streams_of(member))

        return begin

    def _streams_of(self, member: int) -> Iterator[Transfer]:
        start = member * len(self._shares) // self._size  # each begins with another reducer
        for share in (*self._shares[start:], *self._shares[:start]):
            complete = self._reporters[share.member].complete
            leaves = self._job.layout.count
            yield from self.round.stream(member, share, complete, leaves=leaves)

    def _reported(self, now_s: float) -> None:
        self._whole += 1
        if self._whole == len(self._shares):
            self.round.gathered_at_s = now_s
            size, shares = inclusion_bytes(self._size), {s.member: s for s in self._shares}
            self.round.tell(
                now_s, [(i, size, self._broadcast_of(shares.get(i))) for i in range(self._size)]
            )

    def _broadcast_of(self, share: Share | None) -> Action:
        def begin(now_s: float) -> None:
            if share is not None:
                at_s = now_s + self.round.dialled_s(share.member)
                self.round.network.send(at_s, share.member, self._results_of(share))

        return begin

    def _results_of(self, share: Share) -> Iterator[Transfer]:
        for number, chunks in enumerate(self._job.pieces(share.chunks)):
            yield self.round.combined(share.member, chunks, self._size)
            for step in range(self._size):
                to = (share.member + step) % self._size  # itself first, then each another one
                then = self._holds(to, chunks)
                yield self.round.result(share.member, to, chunks, number == 0, then)

    def _holds(self, member: int, chunks: int) -> Action:
        def arrived(now_s: float) -> None:
            self._held[member] += chunks
            if self._held[member] == self._job.layout.count:
                self.round.finished_at_s[member] = now_s

        return arrived
