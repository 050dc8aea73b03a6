"""What a run is trained for: the campaigns, and how far each one is.

Invariants:

* Campaign zero is the run manifest's own: it has no end, and all credit counts for it. At most one
  other is open at a time.
* Credit counts for a campaign whose leaf comes while it is open, from ``starts_s`` on. A later
  verdict on that credit counts there too, whenever it comes.
* A campaign is over by its own terms before the first leaf at which its goal has been reached by
  final credit and ``when_reached`` is ``close``, or which comes after ``ends_s`` and it has been
  reached or not and the word for that (``when_reached``, ``when_missed``) is ``close``. It is over
  by its organisers with a ``campaign_end``. It is never open again.
* The goal is met by final credit alone: only verified work counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ledger.crowd_records import CampaignEndLeaf, CampaignLeaf, DonationLeaf, NewsLeaf, Outcome
from ledger.pledges import PledgeSums
from ledger.tally import Tally
from protocol.errors import BadRecord

if TYPE_CHECKING:
    from ledger.fold import Board

CampaignState = Literal["announced", "open", "over"]

_RATE_ROUNDS = 20
_SECONDS_PER_DAY = 86_400
_ID_CHARS = 32


def campaign_zero(run_id: str) -> str:
    """Id of the run manifest's own campaign: the first 16 bytes of the run id, hex."""
    return run_id[:_ID_CHARS]


@dataclass
class Campaign:
    """A campaign so far. Its title and purpose are in its signed act, or in the manifest."""

    campaign: str
    goal_microcredits: int
    starts_s: int
    tally: Tally = field(default_factory=Tally)  # what counts for it
    revisions: list[tuple[int, CampaignLeaf]] = field(default_factory=list)  # none: campaign zero
    news: list[tuple[int, NewsLeaf]] = field(default_factory=list)
    raised_minor: Counter[str] = field(default_factory=Counter)  # by currency; what stands
    donations: int = 0  # that stand
    over_at: int | None = None  # first leaf that counts no more for it
    end: tuple[int, CampaignEndLeaf] | None = None

    @property
    def leaf(self) -> CampaignLeaf | None:
        """The newest terms; None: campaign zero."""
        return self.revisions[-1][1] if self.revisions else None

    @property
    def is_zero(self) -> bool:
        return not self.revisions

    @property
    def is_over(self) -> bool:
        return self.over_at is not None

    @property
    def is_reached(self) -> bool:
        """Whether final credit meets the goal."""
        return self.tally.final_microcredits >= self.goal_microcredits

    @property
    def outcome(self) -> Outcome | None:
        """What came of a campaign that is over.

        The organisers' word; without one what final credit says: it still rises while audits of
        what was done in time go on.
        """
        if self.end is not None:
            return self.end[1].outcome
        if self.over_at is None:
            return None
        return "reached" if self.is_reached else "missed"

    def state(self, now_s: int) -> CampaignState:
        if self.is_over:
            return "over"
        return "open" if now_s >= self.starts_s else "announced"

    def ends_by_terms(self, now_s: int) -> bool:
        """Whether nothing that comes at ``now_s`` counts any more."""
        terms = self.leaf
        if terms is None:
            return False
        if self.is_reached and terms.when_reached == "close":
            return True
        late = terms.ends_s is not None and now_s > terms.ends_s
        return late and not self.is_reached and terms.when_missed == "close"


@dataclass
class Campaigns:
    """Every campaign by its id; campaign zero first."""

    zero: Campaign
    campaigns: dict[str, Campaign] = field(default_factory=dict)
    current: Campaign | None = None  # the open one other than zero

    def __post_init__(self) -> None:
        self.campaigns[self.zero.campaign] = self.zero

    def pass_time(self, index: int, now_s: int) -> Campaign | None:
        """Note before the leaf ``index`` that the open campaign is over by its own terms.

        Returns:
            The campaign, if it is; :meth:`reopen` takes it back.
        """
        found = self.current
        if found is None or not found.ends_by_terms(now_s):
            return None
        self._close(index)
        return found

    def reopen(self, campaign: Campaign | None) -> None:
        """The leaf before which it was over never came."""
        if campaign is not None:
            campaign.over_at, self.current = None, campaign

    def counting(self, at_s: int) -> tuple[Campaign, ...]:
        """Campaigns other than zero that credit of ``at_s`` counts for, now."""
        if self.current is None or at_s < self.current.starts_s:
            return ()
        return (self.current,)

    def need_open(self, campaign: str) -> Campaign:
        """The campaign of that id.

        Raises:
            BadRecord: there is none, or it is over.
        """
        found = self.need(campaign)
        if found.is_over:
            raise BadRecord(f"campaign {campaign} is over")
        return found

    def need(self, campaign: str) -> Campaign:
        """Likewise, over or not."""
        found = self.campaigns.get(campaign)
        if found is None:
            raise BadRecord(f"there is no campaign {campaign}")
        return found

    def check(self, leaf: CampaignLeaf) -> None:
        if leaf.campaign == self.zero.campaign:
            raise BadRecord("the run manifest's own campaign is as the manifest says")
        known = self.campaigns.get(leaf.campaign)
        if known is None:
            if leaf.revision:
                raise BadRecord(f"revision {leaf.revision} of a campaign that never began")
            if self.current is not None:
                raise BadRecord(f"campaign {self.current.campaign} is still open")
            return
        newest = known.revisions[-1][1].revision
        if leaf.revision != newest + 1:
            raise BadRecord(f"revision {leaf.revision} of a campaign comes after {newest}")
        self.need_open(leaf.campaign)

    def take(self, index: int, leaf: CampaignLeaf) -> None:
        found = self.campaigns.get(leaf.campaign)
        if found is None:
            found = Campaign(leaf.campaign, leaf.goal_microcredits, leaf.starts_s)
            self.current = self.campaigns[leaf.campaign] = found
        found.goal_microcredits, found.starts_s = leaf.goal_microcredits, leaf.starts_s
        found.revisions.append((index, leaf))

    def check_end(self, leaf: CampaignEndLeaf) -> None:
        """Insist that a campaign may end so.

        Raises:
            BadRecord: it ended before, never ends, or the record says otherwise.
        """
        found = self.need(leaf.campaign)
        terms = found.leaf
        if terms is None:
            raise BadRecord("the run manifest's own campaign has no end")
        if found.end is not None:
            raise BadRecord(f"leaf {found.end[0]} ended this campaign")
        final, goal = found.tally.final_microcredits, found.goal_microcredits
        if leaf.outcome == "reached" and not found.is_reached:
            raise BadRecord(f"says that {goal} microcredits were reached; {final} are final")
        if leaf.outcome == "missed":
            if found.is_reached:
                raise BadRecord(f"says that {goal} microcredits were missed; {final} are final")
            if terms.ends_s is None or leaf.at_s <= terms.ends_s:
                raise BadRecord("a campaign misses its goal when its time is over, not before")

    def take_end(self, index: int, leaf: CampaignEndLeaf) -> None:
        found = self.campaigns[leaf.campaign]
        found.end = (index, leaf)
        if found is self.current:
            self._close(index)

    def take_donation(self, leaf: DonationLeaf, sign: int = 1) -> None:
        """Count money, or no more (``sign`` = -1)."""
        found = self.campaigns[leaf.campaign]
        found.raised_minor[leaf.currency] += sign * leaf.amount_minor
        found.donations += sign

    def _close(self, index: int) -> None:
        assert self.current is not None
        self.current.over_at = index
        self.current = None


@dataclass(frozen=True)
class Progress:
    """How far a campaign is. Amounts in microcredits."""

    campaign: str
    title: str | None  # None: in the campaign's signed act
    purpose: str | None
    state: CampaignState
    outcome: Outcome | None
    starts_s: int
    ends_s: int | None
    goal_microcredits: int
    pledged_microcredits: int  # by all pledges that count, delivered or not
    outstanding_microcredits: int  # of these, still to come
    pledges: PledgeSums
    pending_microcredits: int
    final_microcredits: int
    goal_minor: int | None
    currency: str | None  # of that goal
    raised_minor: dict[str, int]  # by currency
    rate_microcredits_per_day: int | None  # of the run's last rounds; None before there are any
    remaining_s: int | None  # at that rate, until enough is trained; it is verified later


def permille(microcredits: int, goal_microcredits: int) -> int:
    """Share of a goal in thousandths, rounded down."""
    return 1000 * microcredits // goal_microcredits


def progress(board: Board, campaign: str | None = None) -> Progress | None:
    """A campaign's state (campaign zero's, if none is named), or None where there is none."""
    if board.manifest is None:
        return None
    name = campaign or campaign_zero(board.run_id)
    found = board.crowd.campaigns.campaigns.get(name)
    if found is None:
        return None
    terms, tally, own = found.leaf, found.tally, board.manifest.campaign
    pledges = board.crowd.pledges.sums(name, board.newest_s)
    rate = None if found.is_over else _rate(board)
    left = max(0, found.goal_microcredits - tally.total_microcredits)
    return Progress(
        campaign=name,
        title=own.title if found.is_zero else None,
        purpose=own.purpose if found.is_zero else None,
        state=found.state(board.newest_s),
        outcome=found.outcome,
        starts_s=found.starts_s,
        ends_s=terms.ends_s if terms else None,
        goal_microcredits=found.goal_microcredits,
        pledged_microcredits=pledges.promised_microcredits,
        outstanding_microcredits=pledges.outstanding_microcredits,
        pledges=pledges,
        pending_microcredits=tally.pending_microcredits,
        final_microcredits=tally.final_microcredits,
        goal_minor=terms.goal_minor if terms else None,
        currency=terms.currency if terms else None,
        raised_minor={name: money for name, money in found.raised_minor.items() if money},
        rate_microcredits_per_day=rate,
        remaining_s=-(-left * _SECONDS_PER_DAY // rate) if rate else None,
    )


def _rate(board: Board) -> int | None:
    """Microcredits per day over the last rounds, idle time between them included."""
    recent = list(board.rounds)[-_RATE_ROUNDS:]
    if not recent:
        return None
    span_s = board.rounds[recent[-1]].leaf.ended_at_s - board.rounds[recent[0]].leaf.started_at_s
    earned = sum(
        board.credited[number].total_microcredits for number in recent if number in board.credited
    )
    return earned * _SECONDS_PER_DAY // max(1, span_s)
