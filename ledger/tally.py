"""What was credited, to whom, and what became of it.

Invariants, of every tally at every moment:

* no amount is negative;
* ``training + reducing + probation == pending + final + forfeited + unpaid``: credit changes its
  status, and never appears or vanishes;
* ``total = pending + final`` is what somebody has.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ledger.audit_records import VerdictLeaf
from ledger.records import CreditLeaf
from protocol.identity import PeerId

Status = Literal["pending", "final", "forfeited", "unpaid"]
"""``forfeited``: taken with everything pending of a proven cheat. ``unpaid``: the bytes that an
audit needed could not be had; it costs that unit and nothing else."""


@dataclass
class Tally:
    """What somebody, or a round, was credited with. Amounts in microcredits."""

    training_microcredits: int = 0
    reducing_microcredits: int = 0
    probation_microcredits: int = 0
    pending_microcredits: int = 0
    final_microcredits: int = 0
    forfeited_microcredits: int = 0
    unpaid_microcredits: int = 0
    tokens: int = 0  # merged into the model
    contributions: int = 0  # merged
    chunks: int = 0

    @property
    def total_microcredits(self) -> int:
        return self.pending_microcredits + self.final_microcredits

    def add(self, leaf: CreditLeaf) -> None:
        """Count one credit leaf, pending."""
        if leaf.work == "training":
            self.training_microcredits += leaf.microcredits
            self.tokens += leaf.tokens
            self.contributions += 1
        elif leaf.work == "probation":
            self.probation_microcredits += leaf.microcredits  # its tokens are in no model
        else:
            self.reducing_microcredits += leaf.microcredits
            self.chunks += leaf.chunks
        self.pending_microcredits += leaf.microcredits

    def move(self, microcredits: int, old: Status, new: Status) -> None:
        """Credit changes its status."""
        self._change(old, -microcredits)
        self._change(new, microcredits)

    def _change(self, status: Status, by: int) -> None:
        if status == "pending":
            self.pending_microcredits += by
        elif status == "final":
            self.final_microcredits += by
        elif status == "forfeited":
            self.forfeited_microcredits += by
        else:
            self.unpaid_microcredits += by


@dataclass(frozen=True, slots=True)
class Amounts:
    """Credit by its status, in microcredits."""

    pending_microcredits: int = 0
    final_microcredits: int = 0
    forfeited_microcredits: int = 0
    unpaid_microcredits: int = 0

    @classmethod
    def of(cls, tally: Tally) -> Amounts:
        return cls(
            tally.pending_microcredits,
            tally.final_microcredits,
            tally.forfeited_microcredits,
            tally.unpaid_microcredits,
        )

    @property
    def total_microcredits(self) -> int:
        return self.pending_microcredits + self.final_microcredits

    def by_status(self) -> tuple[int, int, int, int]:
        return (
            self.pending_microcredits,
            self.final_microcredits,
            self.forfeited_microcredits,
            self.unpaid_microcredits,
        )

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*map(operator.add, self.by_status(), other.by_status()))

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(*map(operator.sub, self.by_status(), other.by_status()))


@dataclass(slots=True)
class Judgement:
    """A verdict, and where the log says it."""

    leaf_index: int
    leaf: VerdictLeaf
    donor: PeerId  # who answers for the worker's work
    overturns: frozenset[int] = frozenset()  # leaves of the verdicts that it undoes
    overturned: bool = False  # a later one undid it

    @property
    def convicts(self) -> bool:
        return self.leaf.verdict == "failed" and not self.overturned


@dataclass(slots=True)
class Paid:
    """What later leaves and pages ask of a credit leaf. The leaf itself takes six times the memory,
    and a record holds millions."""

    at_s: int
    work: Literal["training", "probation", "reducing"]
    round: int
    assignment_id: str | None
    worker: PeerId
    donor: PeerId
    tokens: int
    chunks: int
    microcredits: int
    execution: str | None
    audit_ppm: int | None


@dataclass(slots=True)
class Credit:
    """One credit leaf, and what became of it."""

    index: int
    leaf: Paid
    place: int  # contributions of its donor so far, itself included
    status: Status = "pending"
    selected: bool | None = None  # by its round's draw; None: not published, or not drawn for
    verdict: Judgement | None = None  # of training and probation
    reversed_by: int | None = None  # leaf of the verdict that took it back
    changed_by: int | None = None  # leaf that gave it its present status; None: its own
    also: tuple[Tally, ...] = ()  # that it counts in: of campaigns, teams, pledges, pools


@dataclass
class Worker:
    """A device."""

    worker: PeerId
    donor: PeerId  # whom it works for now
    device_class: str
    donors: set[PeerId]  # whom it ever worked for
    enrolled_s: int
    tally: Tally = field(default_factory=Tally)
    verdicts: list[Judgement] = field(default_factory=list)
    passes: Counter[str] = field(default_factory=Counter)  # consecutive, audited; by execution
    last_credit_s: int | None = None
    last_round: int | None = None


@dataclass
class Donor:
    """A person or group, by key."""

    donor: PeerId
    enrolled_s: int
    workers: list[PeerId] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    convictions: list[Judgement] = field(default_factory=list)  # not overturned, oldest first
    last_credit_s: int | None = None
    last_contribution_s: int | None = None


@dataclass
class Accounts:
    """Every credit, and the tallies that it counts in."""

    total: Tally = field(default_factory=Tally)
    donors: dict[PeerId, Donor] = field(default_factory=dict)
    workers: dict[PeerId, Worker] = field(default_factory=dict)
    rounds: dict[int, Tally] = field(default_factory=dict)
    credits: dict[int, Credit] = field(default_factory=dict)  # by leaf index, ascending
    by_assignment: dict[str, Credit] = field(default_factory=dict)  # training, probation
    by_round: dict[int, list[Credit]] = field(default_factory=dict)
    touched: set[PeerId] = field(default_factory=set)  # donors whose credit changed lately

    def pay(
        self,
        index: int,
        leaf: CreditLeaf,
        verdict: Judgement | None,
        also: tuple[Tally, ...] = (),
    ) -> None:
        """Count a credit leaf that was found right.

        Args:
            index: of the leaf.
            leaf: what is paid.
            verdict: what an audit said of it before.
            also: tallies besides the donor's, the device's, the round's and the run's.
        """
        donor, worker = self.donors[leaf.donor], self.workers[leaf.worker]
        donor.last_credit_s = worker.last_credit_s = leaf.at_s
        if leaf.work == "training":
            donor.last_contribution_s = leaf.at_s
        if leaf.work != "probation":
            worker.last_round = leaf.round
        by_round = self.rounds.setdefault(leaf.round, Tally())
        for tally in (self.total, donor.tally, worker.tally, by_round, *also):
            tally.add(leaf)
        self.touched.add(donor.donor)
        paid = Paid(
            at_s=leaf.at_s,
            work=leaf.work,
            round=leaf.round,
            assignment_id=leaf.assignment_id,
            worker=worker.worker,  # the same text, once in memory
            donor=donor.donor,
            tokens=leaf.tokens,
            chunks=leaf.chunks,
            microcredits=leaf.microcredits,
            execution=leaf.execution,
            audit_ppm=leaf.audit_ppm,
        )
        credit = Credit(index, paid, donor.tally.contributions, verdict=verdict, also=also)
        self.credits[index] = credit
        self.by_round.setdefault(leaf.round, []).append(credit)
        if leaf.assignment_id is not None:
            self.by_assignment[leaf.assignment_id] = credit

    def move(self, credits: Iterable[Credit], status: Status, index: int) -> None:
        """Give credits another status by the leaf ``index``, in every tally that counts them."""
        for credit in credits:
            leaf = credit.leaf
            tallies = (
                self.total,
                self.donors[leaf.donor].tally,
                self.workers[leaf.worker].tally,
                self.rounds[leaf.round],
                *credit.also,
            )
            self.touched.add(leaf.donor)
            for tally in tallies:
                tally.move(leaf.microcredits, credit.status, status)
            credit.status, credit.changed_by = status, index

    def last_contribution_s(self, donor: PeerId, end: int) -> int | None:
        """When a donor's newest contribution before the leaf ``end`` was credited."""
        times = (
            credit.leaf.at_s
            for credit in self.credits.values()
            if credit.index < end and credit.leaf.donor == donor and credit.leaf.work == "training"
        )
        return max(times, default=None)

    def training_of(self, round_: int) -> list[Credit]:
        """The contributions that were credited for a round."""
        return [c for c in self.by_round.get(round_, ()) if c.leaf.work == "training"]
