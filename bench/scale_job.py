"""What every simulated round shares: the vector, the network with its coordinator, the reports.

The coordinator sends rosters and inclusion sets over one uplink, takes reports over one downlink,
and verifies each statement once. A reducer reports as ours does (:mod:`worker.reducer`): 0.2 s
after a member has completed or at once when it was the last, each time with *all* outcomes so far,
and again once that report is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.scale_fit import Fits
from bench.scale_homes import MBIT, Member
from bench.scale_network import Action, Network, Node, Server, Transfer
from bench.scale_records import report_bytes, result_bytes
from protocol.manifest import Codec
from protocol.merkle import HASH_BYTES
from protocol.update import ChunkLayout

DIAL_ROUND_TRIPS = 5.0
"""TCP, its encryption and multiplexing (libp2p), and the opening of a stream."""

REPORT_BATCH_S = 0.2
"""As in :mod:`worker.reducer`."""

SCREENED_BYTES = 8
"""Of each input of each chunk, in a Screening (:mod:`worker.screening`)."""

COORDINATOR = Member(
    up_bytes_s=900 * MBIT,
    down_bytes_s=900 * MBIT,
    latency_s=0.005,
    cores=2,
    reachable=True,
)


@dataclass(frozen=True)
class Job:
    """What is reduced, and in how many pieces a range travels."""

    layout: ChunkLayout
    codec: Codec
    fits: Fits
    most_pieces: int = 2  # of a range on one stream: more are exacter and slower to simulate

    @property
    def chunk_bytes(self) -> int:
        return self.layout.encoded_bytes(self.codec, 0)

    @property
    def vector_bytes(self) -> int:
        return self.layout.count * self.chunk_bytes

    def pieces(self, chunks: int) -> list[int]:
        """Sizes of the pieces of a range, in chunks."""
        count = min(chunks, self.most_pieces)
        ends = [chunks * i // count for i in range(count + 1)] if count else []
        return [end - first for first, end in pairwise(ends)]


@dataclass(frozen=True)
class Share:
    """A reducer, by its number among the members, and how many chunks it reduces."""

    member: int
    chunks: int


def divide(chunks: int, weights: Sequence[float]) -> list[int]:
    """Chunks in proportion to weights: largest remainders, the sum exact."""
    total = sum(weights)
    exact = [chunks * weight / total for weight in weights]
    counts = [int(part) for part in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: chunks - sum(counts)]:
        counts[i] += 1
    return counts


@dataclass
class Load:
    """What the coordinator had to do in a round."""

    sent_bytes: float = 0.0
    reports: int = 0
    report_bytes: float = 0.0
    statements: int = 0


@dataclass
class Round:
    """One round under way: its network, and when who was done with what."""

    job: Job
    members: Sequence[Member]
    nodes: list[Node]
    load: Load = field(default_factory=Load)
    inside_at_s: float = 0.0  # of two levels: the last group has gathered
    gathered_at_s: float = 0.0  # the last inclusion set can be signed
    finished_at_s: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, members: Sequence[Member], shared_cpu: Server | None = None) -> Round:
        """Fresh nodes for the members, the coordinator behind them.

        Args:
            shared_cpu: all of them are on one machine with these processors.
        """
        nodes = [member.node() for member in (*members, COORDINATOR)]
        if shared_cpu is not None:
            for node in nodes:
                node.cpu = shared_cpu
        return cls(job, members, nodes)

    def __post_init__(self) -> None:
        self.network = Network(self.nodes)
        self.coordinator = len(self.members)
        self.connected = [0] * len(self.members)  # connections of each
        self._work: dict[tuple[str, int, int, bool], tuple[float, float]] = {}

    def tell(self, at_s: float, sizes: Sequence[tuple[int, int, Action]]) -> None:
        """The coordinator sends signed records: (member, bytes, what it does with it)."""
        self.load.sent_bytes += sum(size for _, size, _ in sizes)
        transfers = [Transfer(to, size, arrived=then) for to, size, then in sizes]
        self.network.send(at_s, self.coordinator, transfers)

    def dialled_s(self, member: int) -> float:
        """How long it takes to open the streams of a phase, all at once."""
        middle_s = self.members[member].latency_s
        return DIAL_ROUND_TRIPS * 4 * middle_s  # there and back, to one that is as far off

    def stream(
        self, sender: int, share: Share, complete: Action, *, leaves: int
    ) -> Iterator[Transfer]:
        """GATHER: a member's chunks for one reducer, with the leaf hashes before them.

        Args:
            complete: called when the reducer has them all.
            leaves: hashes that go before the chunks.
        """
        own, sizes = share.member == sender, self.job.pieces(share.chunks)
        for number, chunks in enumerate(sizes):
            hashes = 0 if number else leaves
            sending_s, receiving_s = self._gather_work(chunks, hashes, own)
            if hashes and not own:
                sending_s += self.connected[sender] * self.job.fits.gather["listed"]
            size = chunks * self.job.chunk_bytes + hashes * HASH_BYTES
            then = complete if number == len(sizes) - 1 else None
            yield Transfer(share.member, size, sending_s, receiving_s, then)

    def _gather_work(self, chunks: int, hashes: int, own: bool) -> tuple[float, float]:
        key = ("gather", chunks, hashes, own)
        if key not in self._work:
            cost, first = self.job.fits.gather, float(hashes > 0)
            checked = {"chunk_in": chunks, "element_in": chunks * self.job.layout.chunk_elements}
            sent = {"open": first, "chunk_out": float(chunks)}
            served = {"serve": first, "leaf": float(hashes)}
            self._work[key] = (
                (0.0, cost.of(checked))
                if own
                else (cost.of(sent), cost.of(served) + cost.of(checked))
            )
        return self._work[key]

    def combined(self, reducer: int, chunks: int, inputs: int) -> Transfer:
        """A reducer's own work on some chunks before it sends them."""
        elements = chunks * self.job.layout.chunk_elements * inputs
        return Transfer(reducer, 0, self.job.fits.broadcast.of({"combine_element": elements}))

    def result(
        self, sender: int, receiver: int, chunks: int, streams: int, then: Action
    ) -> Transfer:
        """BROADCAST: combined chunks for one member.

        Args:
            streams: 1 with the first piece of a range, else 0.
        """
        sending_s, receiving_s = self._broadcast_work(chunks, streams, sender == receiver)
        if streams and sender != receiver:  # the receiver asks for it
            receiving_s += self.connected[receiver] * self.job.fits.broadcast["listed"]
        size = chunks * (self.job.chunk_bytes + result_bytes())
        return Transfer(receiver, size, sending_s, receiving_s, then)

    def _broadcast_work(self, chunks: int, streams: int, own: bool) -> tuple[float, float]:
        key = ("broadcast", chunks, streams, own)
        if key not in self._work:
            cost = self.job.fits.broadcast
            decoded = {"chunk_in": chunks, "element_in": chunks * self.job.layout.chunk_elements}
            sent = {"serve": float(streams), "chunk_out": float(chunks)}
            self._work[key] = (
                (0.0, cost.of(decoded))
                if own
                else (cost.of(sent), cost.of({"open": float(streams)}) + cost.of(decoded))
            )
        return self._work[key]


class Reporter:
    """A reducer that tells the coordinator whose chunks it holds, one report after the other."""

    def __init__(self, round_: Round, reducer: int, awaited: int, done: Action) -> None:
        self._round, self._reducer, self._awaited, self._done = round_, reducer, awaited, done
        self._complete = self._told = 0
        self._busy = False  # a report is on its way, or waits for others to share it

    def complete(self, now_s: float) -> None:
        """One member more is complete."""
        self._complete += 1
        if not self._busy:
            self._busy = True
            batch_s = 0.0 if self._complete == self._awaited else REPORT_BATCH_S
            self._round.network.at(now_s + batch_s, self._tell)

    def _tell(self, now_s: float) -> None:
        round_, new = self._round, self._complete - self._told
        self._told = self._complete
        size = report_bytes(self._awaited) * self._complete // self._awaited
        round_.load.reports += 1
        round_.load.report_bytes += size
        round_.load.statements += new
        work_s = round_.job.fits.coordinator.of({"report": 1, "statement": new})
        report = Transfer(round_.coordinator, size, 0.0, work_s, self._answered)
        round_.network.send_first(now_s, self._reducer, report)

    def _answered(self, now_s: float) -> None:
        self._busy = False
        if self._told == self._awaited:
            self._done(now_s)
        elif self._complete > self._told:
            self._busy = True
            self._round.network.at(now_s + REPORT_BATCH_S, self._tell)
