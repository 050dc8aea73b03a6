"""Compute that was promised, and what of it was delivered.

Invariants:

* The newest revision of a pledge counts; a void undoes the pledge. Neither changes what was
  delivered.
* A credit leaf delivers at most one pledge, and whole: the oldest public one of its donor's
  person that is not withdrawn, void or past its ``until_s``, whose campaign counts the credit, and
  that is not delivered in full yet; if all are, the oldest. So nothing is counted twice.
* Forfeited and unpaid credit delivers nothing. Nobody can know what is delivered of a private or
  secret pledge, for the record does not know whose it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from ledger.crowd_records import PledgeLeaf, VoidLeaf
from ledger.people import Join, People
from ledger.records import CreditLeaf
from ledger.tally import Tally
from protocol.errors import BadRecord
from protocol.identity import PeerId

PledgeState = Literal["open", "delivered", "expired", "withdrawn", "void"]


@dataclass
class Pledge:
    """A pledge so far."""

    pledge: str
    revisions: list[tuple[int, PledgeLeaf]]  # (leaf index, leaf), oldest first
    tally: Tally = field(default_factory=Tally)  # what delivers it
    voided: tuple[int, VoidLeaf] | None = None

    @property
    def leaf(self) -> PledgeLeaf:
        """The newest revision."""
        return self.revisions[-1][1]

    @property
    def leaf_index(self) -> int:
        """Of the newest revision: the one that can be voided."""
        return self.revisions[-1][0]

    @property
    def promised_microcredits(self) -> int:
        """What counts as promised; nothing once it is void."""
        return 0 if self.voided else self.leaf.microcredits

    @property
    def delivered_microcredits(self) -> int | None:
        """Pending and final credit that delivers it; None where nobody can know."""
        return self.tally.total_microcredits if self.leaf.visibility == "public" else None

    def outstanding_microcredits(self, now_s: int) -> int:
        """What is still to come; nothing once its time is over."""
        if now_s > self.leaf.until_s:
            return 0
        return max(0, self.promised_microcredits - self.tally.total_microcredits)

    def state(self, now_s: int) -> PledgeState:
        if self.voided:
            return "void"
        if not self.leaf.microcredits:
            return "withdrawn"
        if self.tally.total_microcredits >= self.leaf.microcredits:
            return "delivered"
        return "expired" if now_s > self.leaf.until_s else "open"

    def takes(self, credit: CreditLeaf, campaigns: Collection[str]) -> bool:
        """Whether credit of its donor, which counts for these campaigns, delivers it."""
        wanted = self.promised_microcredits > 0 and credit.at_s <= self.leaf.until_s
        return wanted and self.leaf.campaign in campaigns


@dataclass(frozen=True)
class PledgeSums:
    """All pledges to one campaign together, in microcredits; secret ones too."""

    pledges: int = 0  # that count
    promised_microcredits: int = 0
    delivered_microcredits: int = 0  # of public ones
    outstanding_microcredits: int = 0  # still to come, of those whose time is not over


@dataclass
class Pledges:
    """Every pledge, by its id, in the order in which they came."""

    people: People
    pledges: dict[str, Pledge] = field(default_factory=dict)
    by_campaign: dict[str, list[Pledge]] = field(default_factory=dict)
    _of: dict[PeerId, list[Pledge]] = field(default_factory=dict)  # public ones, by person

    def of(self, owner: PeerId) -> list[Pledge]:
        """The public pledges of a person, oldest first."""
        return self._of.get(owner, [])

    def sums(self, campaign: str, now_s: int) -> PledgeSums:
        """All pledges to a campaign together."""
        counted = [p for p in self.by_campaign.get(campaign, ()) if p.promised_microcredits]
        return PledgeSums(
            pledges=len(counted),
            promised_microcredits=sum(p.promised_microcredits for p in counted),
            delivered_microcredits=sum(p.delivered_microcredits or 0 for p in counted),
            outstanding_microcredits=sum(p.outstanding_microcredits(now_s) for p in counted),
        )

    def check(self, leaf: PledgeLeaf) -> None:
        """Insist that a pledge is a new one, or the next revision of one by the same person.

        Raises:
            BadRecord: it is neither.
        """
        if leaf.donor is not None:
            self.people.check_acts(leaf.donor)
        known = self.pledges.get(leaf.pledge)
        if known is None:
            if leaf.revision:
                raise BadRecord(f"revision {leaf.revision} of a pledge that was never made")
            if not leaf.microcredits:
                raise BadRecord("withdraws a pledge that was never made")
            return
        old = known.leaf
        if leaf.revision != old.revision + 1:
            raise BadRecord(f"revision {leaf.revision} of a pledge comes after {old.revision}")
        if known.voided:
            raise BadRecord(f"leaf {known.voided[0]} made this pledge void")
        if (leaf.campaign, leaf.visibility) != (old.campaign, old.visibility):
            raise BadRecord("a revised pledge keeps its campaign and its visibility")
        if old.donor is not None and self.people.owner_of(old.donor) != leaf.donor:
            raise BadRecord("revises the pledge of another donor")

    def take(self, index: int, leaf: PledgeLeaf) -> Pledge:
        known = self.pledges.get(leaf.pledge)
        if known is not None:
            known.revisions.append((index, leaf))
            return known
        made = self.pledges[leaf.pledge] = Pledge(leaf.pledge, [(index, leaf)])
        self.by_campaign.setdefault(leaf.campaign, []).append(made)
        if leaf.donor is not None:
            self._of.setdefault(leaf.donor, []).append(made)
        return made

    def take_join(self, join: Join) -> None:
        """A person's pledges are delivered by all of its keys."""
        moved = self._of.pop(join.old, None)
        if moved:
            mine = self._of.get(join.new, []) + moved
            self._of[join.new] = sorted(mine, key=lambda pledge: pledge.revisions[0][0])

    def tally_of(
        self, owner: PeerId, credit: CreditLeaf, campaigns: Collection[str]
    ) -> Tally | None:
        """The tally of the pledge that a credit leaf delivers."""
        first = None
        for pledge in self._of.get(owner, ()):
            if pledge.takes(credit, campaigns):
                if pledge.tally.total_microcredits < pledge.promised_microcredits:
                    return pledge.tally
                first = first or pledge
        return first.tally if first else None
