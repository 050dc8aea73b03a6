"""Terms of campaigns, as organisers give and change them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from coordinator.crowd.organiser import Organiser
from ledger.campaigns import Campaign, permille, progress
from ledger.money import format_amount
from protocol.envelope import open_envelope
from protocol.errors import UsageError
from protocol.wire import records_pb2 as wire

ID_BYTES = 16


def new_terms(run: Organiser, given: Mapping[str, Any]) -> wire.CampaignTerms:
    """Terms of a campaign that begins.

    Args:
        run: the run.
        given: fields of the record; what is absent has its default.
    """
    fields = {"when_reached": "continue", "when_missed": "close", "starts_s": int(run.now_s)}
    record = wire.CampaignTerms(
        run_id=run.run_id, campaign=secrets.token_bytes(ID_BYTES), **{**fields, **given}
    )
    _check(record, run.now_s)
    return record


def revised_terms(run: Organiser, campaign: str, given: Mapping[str, Any]) -> wire.CampaignTerms:
    """The terms of a campaign with some of them changed.

    Raises:
        UsageError: it is the run's own campaign, or nothing changes.
    """
    record = terms_of(run, campaign)
    before = record.SerializeToString(deterministic=True)
    for name, value in given.items():
        if name == "organisers":
            del record.organisers[:]
            record.organisers.extend(value)
        else:
            setattr(record, name, value)
    if record.SerializeToString(deterministic=True) == before:
        raise UsageError("nothing changes: give the terms that should be other ones")
    record.revision += 1
    _check(record, run.now_s)
    return record


def _check(record: wire.CampaignTerms, now_s: float) -> None:
    if record.ends_s and record.ends_s <= max(record.starts_s, now_s):
        raise UsageError("a campaign ends after it starts, and after now")
    if record.goal_minor and not record.currency:
        raise UsageError("a goal of money needs its --currency, such as EUR")


def terms_of(run: Organiser, campaign: str) -> wire.CampaignTerms:
    """The newest terms of a campaign, from its signed act.

    Raises:
        UsageError: it is the run's own, or its act is not here.
    """
    found = run.board.campaigns.need(campaign)
    if found.is_zero:
        raise UsageError("the run's own campaign is as its manifest says, for ever")
    envelope = run.act_of(found.revisions[-1][0])
    if envelope is None:
        raise UsageError(f"the signed terms of campaign {campaign} are not in this database")
    return open_envelope(envelope, wire.CampaignTerms).record


def describe(run: Organiser, campaign: Campaign) -> dict[str, Any]:
    """A campaign for people and programs."""
    state = progress(run.board, campaign.campaign)
    assert state is not None
    title, purpose = state.title, state.purpose
    if not campaign.is_zero:
        record = terms_of(run, campaign.campaign)
        title, purpose = record.title, record.purpose
    return {
        "campaign": campaign.campaign,
        "title": title or "",
        "purpose": purpose or "",
        "state": campaign.state(int(run.now_s)),
        "outcome": state.outcome,
        "revision": campaign.leaf.revision if campaign.leaf else None,
        "goal_microcredits": state.goal_microcredits,
        "final_microcredits": state.final_microcredits,
        "pending_microcredits": state.pending_microcredits,
        "pledged_microcredits": state.pledged_microcredits,
        "permille": permille(state.final_microcredits, state.goal_microcredits),
        "goal_money": (
            format_amount(state.goal_minor, state.currency)
            if state.goal_minor is not None and state.currency is not None
            else None
        ),
        "raised": [format_amount(n, name) for name, n in sorted(state.raised_minor.items())],
        "donations": campaign.donations,
        "starts_s": state.starts_s,
        "ends_s": state.ends_s,
        "when_reached": campaign.leaf.when_reached if campaign.leaf else None,
        "when_missed": campaign.leaf.when_missed if campaign.leaf else None,
        "news": len(campaign.news),
    }
