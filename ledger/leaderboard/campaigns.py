"""What the pages of campaigns show: the goal, how far it is, who promised and who gave.

Secret pledges and donations are in the sums and in no list; private ones are listed without a
name. What is not there is of no campaign's page: the record holds no samples of what the model
writes, so none are shown.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from ledger import campaigns as fold
from ledger.campaigns import CampaignState, Progress
from ledger.credit import flops_per_token, working_parameters
from ledger.crowd_records import AtEnd, Outcome, Visibility
from ledger.leaderboard.act_words import acts_of
from ledger.leaderboard.held import Held, held
from ledger.leaderboard.reader import Reading
from ledger.pledges import Pledge, PledgeState
from ledger.pools import Donation
from protocol.wire import records_pb2 as wire

_MOST_LISTED = 100
_MOST_NEWS = 20


class News(BaseModel):
    """What the organisers said; its words are published beside the log."""

    leaf_index: int
    at_s: int
    title: str
    text: str


class CampaignRow(Held):
    """A campaign: its goal, and what counts for it."""

    campaign: str
    title: str
    purpose: str
    state: CampaignState
    outcome: Outcome | None
    starts_s: int
    ends_s: int | None
    when_reached: AtEnd
    when_missed: AtEnd
    goal_microcredits: int
    pledged_microcredits: int = Field(description="promised, secret pledges too")
    outstanding_microcredits: int = Field(description="of these, still to come")
    pledges: int
    donations: int
    goal_minor: int | None = Field(description="of money, in the currency's smallest unit")
    currency: str | None
    raised_minor: dict[str, int] = Field(description="by currency")
    organisers: list[str]
    reference_device: str | None
    reference_microcredits_per_hour: int | None
    rate_microcredits_per_day: int | None
    remaining_s: int | None = Field(description="at that rate, until enough is trained")


class Run(CampaignRow):
    """The run and its own campaign, as of ``size`` leaves."""

    size: int = Field(description="leaves under the signed head that these numbers are folded from")
    run_id: str
    run_name: str
    origin: str
    root: str = Field(description="fingerprint of the run's root key")
    description: str
    licence: str
    model_type: str
    working_parameters: int
    flops_per_token: int
    tokens: int = Field(description="merged into the model")
    donors: int = Field(description="persons")
    devices: int
    active_donors: int = Field(description="credited in the newest 24 hours")
    settled_rounds: int
    skipped_rounds: int
    members_last_round: int
    validation_loss_micronats: int | None
    opened_s: int
    newest_s: int
    released: bool


class PledgeRow(BaseModel):
    """A pledge that may be listed."""

    leaf_index: int = Field(description="of its newest revision")
    campaign: str
    pledge: str
    donor: str | None = Field(description="null: private")
    name: str | None
    visibility: Visibility
    microcredits: int
    delivered_microcredits: int | None = Field(description="null: private, nobody can know")
    until_s: int
    state: PledgeState


class DonationRow(BaseModel):
    """A donation that may be listed."""

    leaf_index: int
    campaign: str
    donor: str | None = Field(description="null: private, or nobody that the record knows")
    name: str | None
    pool: str | None
    amount_minor: int
    currency: str
    received_s: int
    sponsored_microcredits: int = Field(description="pending and final credit that it bought")
    void: str | None = Field(description="why it counts no more")


class CampaignPage(BaseModel):
    """A campaign with what may be listed of it, newest first."""

    size: int
    campaign: CampaignRow
    news: list[News]
    pledges: list[PledgeRow]
    donations: list[DonationRow]


class Campaigns(BaseModel):
    """Every campaign of the run, newest first; the run's own last."""

    size: int
    campaigns: list[CampaignRow]


def run(reading: Reading) -> Run:
    """The run and its own campaign."""
    board, snapshot = reading.board, reading.snapshot
    manifest = board.manifest
    assert manifest is not None
    settled = [entry.leaf for entry in board.rounds.values() if entry.leaf.outcome == "settled"]
    losses = [leaf.validation_loss_micronats for leaf in settled]
    known = [loss for loss in losses if loss is not None]
    return Run(
        **campaign_row(reading, board.campaigns.zero.campaign).model_dump(),
        size=board.size,
        run_id=board.run_id,
        run_name=manifest.name,
        origin=manifest.origin,
        root=manifest.root,
        description=manifest.description,
        licence=manifest.licence,
        model_type=str(manifest.model_config_json["model_type"]),
        working_parameters=working_parameters(manifest.model_config_json),
        flops_per_token=flops_per_token(manifest.model_config_json, manifest.sequence_length),
        tokens=board.merged_tokens,
        donors=len(snapshot.people),
        devices=len(board.workers),
        active_donors=len(snapshot.order("day")),
        settled_rounds=len(settled),
        skipped_rounds=len(board.rounds) - len(settled),
        members_last_round=board.last_round.leaf.members if board.last_round else 0,
        validation_loss_micronats=known[-1] if known else None,
        opened_s=board.opened_s,
        newest_s=board.newest_s,
        released=bool(board.releases),
    )


def campaign_row(reading: Reading, campaign: str) -> CampaignRow:
    """One campaign, which there is."""
    found = reading.board.campaigns.campaigns[campaign]
    state = fold.progress(reading.board, campaign)
    assert state is not None
    terms = acts_of(reading.session, found.revisions[-1:], wire.CampaignTerms)
    said = next(iter(terms.values()), wire.CampaignTerms())
    leaf = found.leaf
    return CampaignRow(
        campaign=campaign,
        title=state.title or said.title or f"Campaign {campaign[:8]}",
        purpose=state.purpose or said.purpose,
        state=state.state,
        outcome=state.outcome,
        starts_s=state.starts_s,
        ends_s=state.ends_s,
        when_reached=leaf.when_reached if leaf else "continue",
        when_missed=leaf.when_missed if leaf else "continue",
        goal_microcredits=state.goal_microcredits,
        **held(found.tally),
        pledged_microcredits=state.pledged_microcredits,
        outstanding_microcredits=state.outstanding_microcredits,
        pledges=state.pledges.pledges,
        donations=found.donations,
        **_money(state),
        organisers=list(said.organisers),
        reference_device=said.reference_device or None,
        reference_microcredits_per_hour=said.reference_microcredits_per_hour or None,
        rate_microcredits_per_day=state.rate_microcredits_per_day,
        remaining_s=state.remaining_s,
    )


def _money(state: Progress) -> dict[str, object]:
    return {
        "goal_minor": state.goal_minor,
        "currency": state.currency,
        "raised_minor": state.raised_minor,
    }


def campaigns(reading: Reading) -> Campaigns:
    """Every campaign of the run."""
    names = reversed(reading.board.campaigns.campaigns)
    return Campaigns(
        size=reading.board.size, campaigns=[campaign_row(reading, name) for name in names]
    )


def campaign_page(reading: Reading, campaign: str) -> CampaignPage | None:
    """One campaign, or None where there is none of that id."""
    crowd = reading.board.crowd
    if campaign not in crowd.campaigns.campaigns:
        return None
    given = [d for d in crowd.pools.donations.values() if d.leaf.campaign == campaign]
    return CampaignPage(
        size=reading.board.size,
        campaign=campaign_row(reading, campaign),
        news=news(reading, campaign),
        pledges=pledge_rows(reading, crowd.pledges.by_campaign.get(campaign, [])[::-1]),
        donations=donation_rows(reading, given[::-1]),
    )


def news(reading: Reading, campaign: str) -> list[News]:
    """What the organisers said last, newest first."""
    leaves = reading.board.campaigns.campaigns[campaign].news[-_MOST_NEWS:]
    said = acts_of(reading.session, leaves, wire.CampaignNews)
    return [
        News(leaf_index=index, at_s=leaf.at_s, title=said[index].title, text=said[index].text)
        for index, leaf in reversed(leaves)
        if index in said
    ]


def pledge_rows(reading: Reading, pledges: list[Pledge]) -> list[PledgeRow]:
    """Those of these pledges that may be listed; withdrawn and void ones are not."""
    listed = [p for p in pledges if p.promised_microcredits and p.leaf.visibility != "secret"]
    return [_pledge_row(reading, pledge) for pledge in listed[:_MOST_LISTED]]


def _pledge_row(reading: Reading, pledge: Pledge) -> PledgeRow:
    leaf = pledge.leaf
    owner = None if leaf.donor is None else reading.board.people.owner_of(leaf.donor)
    return PledgeRow(
        leaf_index=pledge.leaf_index,
        campaign=leaf.campaign,
        pledge=pledge.pledge,
        donor=owner,
        name=None if owner is None else reading.names.donor(owner),
        visibility=leaf.visibility,
        microcredits=leaf.microcredits,
        delivered_microcredits=pledge.delivered_microcredits,
        until_s=leaf.until_s,
        state=pledge.state(reading.board.newest_s),
    )


def donation_rows(reading: Reading, donations: list[Donation]) -> list[DonationRow]:
    """Those of these donations that may be listed."""
    listed = [d for d in donations if d.leaf.visibility != "secret"]
    return [_donation_row(reading, donation) for donation in listed[:_MOST_LISTED]]


def _donation_row(reading: Reading, donation: Donation) -> DonationRow:
    leaf = donation.leaf
    owner = None if leaf.donor is None else reading.board.people.owner_of(leaf.donor)
    return DonationRow(
        leaf_index=donation.leaf_index,
        campaign=leaf.campaign,
        donor=owner,
        name=None if owner is None else reading.names.donor(owner),
        pool=leaf.pool,
        amount_minor=leaf.amount_minor,
        currency=leaf.currency,
        received_s=leaf.received_s,
        sponsored_microcredits=donation.sponsored.total_microcredits,
        void=donation.voided[1].reason if donation.voided else None,
    )
