"""Money, the sponsored devices that it pays, and how their credit is divided among who gave it.

A pool is a donor's key whose devices are paid by donations. Its credit belongs to who gave:

* The log is cut into *stretches* at every leaf that adds a donation to the pool or makes one void.
  Credit whose leaf lies in a stretch is divided among the donations that stand in it, in
  proportion of ``amount_minor``; credit in a stretch without any stays with the pool.
* Pending, final, forfeited and unpaid credit of a stretch are each divided by largest remainder:
  everybody has the whole part of the exact share, and the units that are left go one each to the
  largest remainders, ties to the earlier donation. So the shares of each status are, to the unit,
  what the pool has of it.

Shares of donations that name no donor go to *anonymous donors* together.

Invariant: a pool's key is joined with no other and gives no money itself: no credit goes round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ledger.crowd_records import DonationLeaf, PoolLeaf, VoidLeaf
from ledger.people import People
from ledger.tally import Amounts, Tally
from protocol.errors import BadRecord
from protocol.identity import PeerId


def largest_remainder(amount: int, weights: Sequence[int]) -> list[int]:
    """Divide ``amount`` in proportion of positive ``weights``; the parts sum up to it exactly."""
    total = sum(weights)
    parts = [divmod(amount * weight, total) for weight in weights]
    left = amount - sum(whole for whole, _ in parts)
    by_remainder = sorted(range(len(parts)), key=lambda place: -parts[place][1])  # stable: earlier
    lucky = set(by_remainder[:left])
    return [whole + (place in lucky) for place, (whole, _) in enumerate(parts)]


@dataclass
class Donation:
    """Money that arrived, and the credit that it bought so far."""

    leaf_index: int
    leaf: DonationLeaf
    voided: tuple[int, VoidLeaf] | None = None
    sponsored: Amounts = field(default_factory=Amounts)  # as of Pools.refresh


@dataclass
class Stretch:
    """Credit of a pool between two changes of its donations."""

    donations: tuple[Donation, ...]
    tally: Tally = field(default_factory=Tally)
    divided: Amounts = field(default_factory=Amounts)  # as of the last refresh
    shares: tuple[Amounts, ...] = ()

    def divide(self) -> list[tuple[Donation, Amounts]]:
        """Divide what the tally holds now.

        Returns:
            What changed, by donation.
        """
        amounts = Amounts.of(self.tally)
        if amounts == self.divided:
            return []
        weights = [donation.leaf.amount_minor for donation in self.donations]
        parts = (largest_remainder(amount, weights) for amount in amounts.by_status())
        shares = tuple(Amounts(*share) for share in zip(*parts, strict=True))
        before = self.shares or (Amounts(),) * len(shares)
        self.divided, self.shares = amounts, shares
        pairs = zip(self.donations, shares, before, strict=True)
        return [(donation, new - old) for donation, new, old in pairs if new != old]


@dataclass
class Pool:
    """A pool so far."""

    pool: PeerId
    leaf_index: int
    leaf: PoolLeaf
    voided: tuple[int, VoidLeaf] | None = None
    donations: list[Donation] = field(default_factory=list)  # void ones too
    stretches: list[Stretch] = field(default_factory=list)  # that have credit
    given_away: Amounts = field(default_factory=Amounts)  # as of Pools.refresh
    _stretch: Stretch | None = None  # that goes on now

    @property
    def raised_minor(self) -> int:
        """Money that stands, in the smallest unit of the pool's currency."""
        return sum(d.leaf.amount_minor for d in self.donations if not d.voided)

    def tally(self) -> Tally | None:
        """What the next credit of the pool counts in; None: it stays with the pool."""
        if self._stretch is None and not self.voided:
            standing = tuple(d for d in self.donations if not d.voided)
            if standing:
                self._stretch = Stretch(standing)
                self.stretches.append(self._stretch)
        return self._stretch.tally if self._stretch else None

    def cut(self) -> None:
        """A stretch is over: the pool's donations change."""
        self._stretch = None


@dataclass
class Pools:
    """Every pool by its key, every donation by its id."""

    people: People
    pools: dict[PeerId, Pool] = field(default_factory=dict)
    donations: dict[str, Donation] = field(default_factory=dict)
    anonymous: Amounts = field(default_factory=Amounts)  # as of refresh
    givers: dict[PeerId, list[Donation]] = field(default_factory=dict)  # by key that they named
    _sponsored: dict[PeerId, Amounts] = field(default_factory=dict)  # by key, as of refresh
    _refreshed: int = 0  # accounts.changes then

    def sponsored(self, owner: PeerId) -> Amounts:
        """Credit that a person's money bought, as of the last :meth:`refresh`."""
        total = Amounts()
        for key in self.people.keys_of(owner):
            if key in self._sponsored:
                total += self._sponsored[key]
        return total

    def given_away(self, owner: PeerId) -> Amounts:
        """What a pool's credit bought others, as of the last :meth:`refresh`."""
        pool = self.pools.get(owner)
        return pool.given_away if pool else Amounts()

    def donations_of(self, owner: PeerId) -> Iterator[Donation]:
        """Donations that name a person, void ones too."""
        for key in self.people.keys_of(owner):
            yield from self.givers.get(key, ())

    def refresh(self) -> None:
        """Divide what changed since the last time; costs nothing where no credit did."""
        if self._refreshed == self.people.accounts.changes:
            return
        self._refreshed = self.people.accounts.changes
        for pool in self.pools.values():
            for stretch in pool.stretches:
                before = stretch.divided
                changes = stretch.divide()
                pool.given_away += stretch.divided - before
                for donation, change in changes:
                    self._give(donation, change)

    def _give(self, donation: Donation, change: Amounts) -> None:
        donation.sponsored += change
        donor = donation.leaf.donor
        if donor is None:
            self.anonymous += change
            return
        self._sponsored[donor] = self._sponsored.get(donor, Amounts()) + change
        self.people.accounts.touched.add(donor)

    def check_pool(self, leaf: PoolLeaf) -> None:
        if leaf.pool in self.pools:
            raise BadRecord(f"{leaf.pool} was made a pool before")
        if self.people.is_given_up(leaf.pool) or len(self.people.keys_of(leaf.pool)) > 1:
            raise BadRecord(f"a pool has a key of its own; {leaf.pool} is joined with others")
        if leaf.pool in self.givers:
            raise BadRecord(f"{leaf.pool} gave money: it is no pool")
        if leaf.pool in self.people.accounts.donors:
            raise BadRecord(f"{leaf.pool} has devices already: a pool is there before them")

    def take_pool(self, index: int, leaf: PoolLeaf) -> Pool:
        pool = self.pools[leaf.pool] = Pool(leaf.pool, index, leaf)
        self.people.accounts.touched.add(leaf.pool)
        return pool

    def check_donation(self, leaf: DonationLeaf) -> None:
        if leaf.donation in self.donations:
            raise BadRecord(f"donation {leaf.donation} was recorded before")
        if leaf.donor is not None:
            self.people.check_acts(leaf.donor)
            if leaf.donor in self.pools:
                raise BadRecord(f"{leaf.donor} is a pool: it gives no money")
        if leaf.pool is None:
            return
        pool = self.pools.get(leaf.pool)
        if pool is None:
            raise BadRecord(f"there is no pool {leaf.pool}")
        if pool.voided:
            raise BadRecord(f"leaf {pool.voided[0]} made the pool {leaf.pool} void")
        if leaf.currency != pool.leaf.currency:
            raise BadRecord(f"gives {leaf.currency} to a pool of {pool.leaf.currency}")

    def take_donation(self, index: int, leaf: DonationLeaf) -> Donation:
        donation = self.donations[leaf.donation] = Donation(index, leaf)
        if leaf.donor is not None:
            self.givers.setdefault(leaf.donor, []).append(donation)
            self.people.accounts.touched.add(leaf.donor)
        if leaf.pool is not None:
            self.pools[leaf.pool].donations.append(donation)
            self.pools[leaf.pool].cut()
        return donation

    def check_join(self, keys: Sequence[PeerId]) -> None:
        """Insist that none of the keys that are to be joined is a pool's."""
        for key in keys:
            if key in self.pools:
                raise BadRecord(f"{key} is a pool: it is joined with no other key")
