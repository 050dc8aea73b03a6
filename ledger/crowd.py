"""What people do besides training, as the record shows it: keys, campaigns, pledges, money, teams.

:meth:`Crowd.check` says whether a leaf may come next and changes nothing; :meth:`Crowd.take` counts
it. What a signed act must look like is another matter (:mod:`ledger.acts`).

Invariants:

* A signed act is recorded once.
* Nothing is edited: a void is a leaf of its own, and what it undoes stays to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ledger.audits import Audits
from ledger.campaigns import Campaign, Campaigns, campaign_zero
from ledger.crowd_records import (
    ActLeaf,
    CampaignEndLeaf,
    CampaignLeaf,
    CrowdLeaf,
    DelegationLeaf,
    DonationLeaf,
    KeyRotationLeaf,
    MembershipLeaf,
    MergeLeaf,
    NewsLeaf,
    PledgeLeaf,
    PoolLeaf,
    TeamLeaf,
    VoidLeaf,
)
from ledger.people import People, ends_of
from ledger.pledges import Pledge, Pledges
from ledger.pools import Donation, Pool, Pools
from ledger.records import CreditLeaf, EnrolLeaf, RunLeaf
from ledger.tally import Accounts, Tally
from ledger.teams import Teams
from protocol.errors import BadRecord
from protocol.manifest import RunManifest


@dataclass
class Crowd:
    """All of it so far. Pages read the parts; only the fold changes them."""

    audits: Audits
    people: People
    campaigns: Campaigns
    pledges: Pledges
    pools: Pools
    teams: Teams
    delegations: dict[int, tuple[int, DelegationLeaf]] = field(default_factory=dict)  # by serial
    revocations: dict[int, tuple[int, DelegationLeaf]] = field(default_factory=dict)
    voidable: dict[int, Pledge | Donation | Pool] = field(default_factory=dict)  # by leaf index
    _digests: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, leaf: RunLeaf, manifest: RunManifest, accounts: Accounts, audits: Audits) -> Crowd:
        """Of a run that begins."""
        people = People(accounts)
        goal = manifest.campaign.goal_microcredits
        zero = Campaign(campaign_zero(leaf.run_id), goal, leaf.at_s, accounts.total)
        return cls(audits, people, Campaigns(zero), Pledges(people), Pools(people), Teams(people))

    def check_enrol(self, leaf: EnrolLeaf) -> None:
        """Insist that a device joins somebody who is still there.

        Raises:
            BadRecord: the donor's key was given up.
        """
        if self.people.is_given_up(leaf.donor):
            self.people.check_acts(leaf.donor)

    def counted_in(self, leaf: CreditLeaf) -> tuple[Tally, ...]:
        """What credit counts in besides its accounts: campaign, team, pledge and pool of now."""
        owner = self.people.owner_of(leaf.donor)
        counting = self.campaigns.counting(leaf.at_s)
        tallies = [campaign.tally for campaign in counting]
        tallies += self.teams.tallies_of(owner, leaf.donor)
        if self.pledges.of(owner):
            names = [self.campaigns.zero.campaign, *(campaign.campaign for campaign in counting)]
            pledge = self.pledges.tally_of(owner, leaf, names)
            if pledge is not None:
                tallies.append(pledge)
        pool = self.pools.pools.get(leaf.donor)
        sponsored = pool.tally() if pool else None
        if sponsored is not None:
            tallies.append(sponsored)
        return tuple(tallies)

    def check(self, leaf: CrowdLeaf) -> None:
        """Insist that this leaf may come next.

        Raises:
            BadRecord: naming the reason.
        """
        if leaf.record_digest in self._digests:
            raise BadRecord("the same signed act was recorded before")
        if isinstance(leaf, CampaignLeaf):
            self.campaigns.check(leaf)
        elif isinstance(leaf, CampaignEndLeaf):
            self.campaigns.check_end(leaf)
        elif isinstance(leaf, NewsLeaf):
            self.campaigns.need(leaf.campaign)
        elif isinstance(leaf, PledgeLeaf):
            self._check_pledge(leaf)
        elif isinstance(leaf, DonationLeaf | PoolLeaf):
            self._check_money(leaf)
        elif isinstance(leaf, TeamLeaf):
            self.teams.check_team(leaf)
        elif isinstance(leaf, MembershipLeaf):
            self.teams.check_membership(leaf)
        elif isinstance(leaf, VoidLeaf):
            self._check_void(leaf)
        elif isinstance(leaf, KeyRotationLeaf | MergeLeaf):
            self.pools.check_join(ends_of(leaf))
            self.people.check_join(leaf, self.audits)
        else:
            self._check_delegation(leaf)

    def take(self, index: int, leaf: CrowdLeaf) -> None:
        """Count the next leaf; a leaf that is refused changes nothing.

        Raises:
            BadRecord: see :meth:`check`.
        """
        self.check(leaf)
        self._digests.add(leaf.record_digest)
        if isinstance(leaf, CampaignLeaf):
            self.campaigns.take(index, leaf)
        elif isinstance(leaf, CampaignEndLeaf):
            self.campaigns.take_end(index, leaf)
        elif isinstance(leaf, NewsLeaf):
            self.campaigns.need(leaf.campaign).news.append((index, leaf))
        elif isinstance(leaf, PledgeLeaf):
            self.voidable[index] = self.pledges.take(index, leaf)
        elif isinstance(leaf, PoolLeaf):
            self.voidable[index] = self.pools.take_pool(index, leaf)
        elif isinstance(leaf, DonationLeaf):
            self.campaigns.take_donation(leaf)
            self.voidable[index] = self.pools.take_donation(index, leaf)
        elif isinstance(leaf, TeamLeaf):
            self.teams.take_team(index, leaf)
        elif isinstance(leaf, MembershipLeaf):
            self.teams.take_membership(leaf)
        elif isinstance(leaf, VoidLeaf):
            self._take_void(index, leaf)
        elif isinstance(leaf, KeyRotationLeaf | MergeLeaf):
            join = self.people.take_join(index, leaf)
            self.teams.take_join(join)
            self.pledges.take_join(join)
        else:
            (self.revocations if leaf.revoked else self.delegations)[leaf.serial] = (index, leaf)

    def is_public(self, leaf: ActLeaf) -> bool:
        """Whether the signed act behind a leaf is published. A void is as what it undoes."""
        if isinstance(leaf, VoidLeaf):
            undone = self.voidable[leaf.leaf]
            return self.is_public(undone.leaf)
        return not isinstance(leaf, PledgeLeaf | DonationLeaf) or leaf.visibility == "public"

    def _check_pledge(self, leaf: PledgeLeaf) -> None:
        if leaf.microcredits:
            self.campaigns.need_open(leaf.campaign)
        else:
            self.campaigns.need(leaf.campaign)  # nobody is held to a campaign that is over
        self.pledges.check(leaf)

    def _check_money(self, leaf: PoolLeaf | DonationLeaf) -> None:
        self.campaigns.need_open(leaf.campaign)
        if isinstance(leaf, PoolLeaf):
            self.pools.check_pool(leaf)
        else:
            self.pools.check_donation(leaf)

    def _check_void(self, leaf: VoidLeaf) -> None:
        undone = self.voidable.get(leaf.leaf)
        if undone is None:
            raise BadRecord(
                f"leaf {leaf.leaf} is no pledge, donation or pool: nothing to make void"
            )
        if undone.voided:
            raise BadRecord(f"leaf {undone.voided[0]} made it void before")
        if undone.leaf_index != leaf.leaf:
            raise BadRecord(f"leaf {undone.leaf_index} revised it: make that one void")

    def _take_void(self, index: int, leaf: VoidLeaf) -> None:
        undone = self.voidable[leaf.leaf]
        undone.voided = (index, leaf)
        if isinstance(undone, Pool):
            undone.cut()
        elif isinstance(undone, Donation):
            self.campaigns.take_donation(undone.leaf, -1)
            if undone.leaf.pool is not None:
                self.pools.pools[undone.leaf.pool].cut()

    def _check_delegation(self, leaf: DelegationLeaf) -> None:
        known = self.delegations.get(leaf.serial)
        if leaf.revoked:
            if known is None:
                raise BadRecord(f"revokes the delegation {leaf.serial}, which was never recorded")
            if leaf.serial in self.revocations:
                raise BadRecord(f"the delegation {leaf.serial} was revoked before")
        elif known is not None:
            raise BadRecord(f"the delegation {leaf.serial} was recorded before")
