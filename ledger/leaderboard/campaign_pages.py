"""The campaign's page, which is the site's first, and those of every campaign."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from ledger.campaigns import permille
from ledger.leaderboard import campaigns as models
from ledger.leaderboard import rounds as round_models
from ledger.leaderboard.donors import donor_rows
from ledger.leaderboard.pages import page
from ledger.leaderboard.pictures.gallery import gallery_of
from ledger.leaderboard.pictures.table import table_of
from ledger.leaderboard.record import reader_of

router = APIRouter(include_in_schema=False)

_TOP = 10
_RECENT = 6
_NEW = 6
_NEWEST_ROUNDS = 8
_NEWEST_NEWS = 3


@router.get("/")
def campaign_page(request: Request) -> Response:
    """The run and its campaign: goal, loss, donors, how to join, how to verify."""
    with reader_of(request).read() as reading:
        run = models.run(reading)
        loss = gallery_of(request).series(reading, "loss")
        snapshot = reading.snapshot
        newest = snapshot.order("all", "since").page(max(0, run.donors - _NEW), _NEW)[::-1]
        values: dict[str, Any] = {
            "campaign": run,
            "bar": goal_bar(run),
            "top": donor_rows(snapshot, snapshot.order("all").page(0, _TOP)),
            "recent": [
                row
                for row in donor_rows(snapshot, snapshot.order("all", "last").page(0, _RECENT))
                if row.last_credit_s is not None
            ],
            "new": donor_rows(snapshot, newest),
            "others": [
                one for one in models.campaigns(reading).campaigns if one.campaign != run.campaign
            ],
            "news": models.news(reading, run.campaign)[:_NEWEST_NEWS],
            "rounds": round_models.rounds(reading, page=1, per_page=_NEWEST_ROUNDS).rounds,
            "join_link": reading.names.join_link,
            "notes": reading.names.notes,
            "checkpoint": reading.note,
        }
    return page("campaign.html", request, loss=loss, loss_table=table_of(loss), **values)


@router.get("/campaigns")
def campaigns_page(request: Request) -> Response:
    """Every campaign of the run."""
    with reader_of(request).read() as reading:
        found = models.campaigns(reading).campaigns
    return page("campaigns.html", request, found=[(one, goal_bar(one)) for one in found])


@router.get("/campaigns/{campaign}")
def one_campaign_page(request: Request, campaign: str) -> Response:
    """A campaign: its bar, its terms, its news, who promised and who gave."""
    with reader_of(request).read() as reading:
        found = models.campaign_page(reading, campaign)
    if found is None:
        raise HTTPException(404, "The record knows no such campaign.")
    bar = goal_bar(found.campaign)
    return page("one_campaign.html", request, found=found, campaign=found.campaign, bar=bar)


def goal_bar(campaign: models.CampaignRow) -> list[tuple[str, int, int]]:
    """``(colour, from, width)`` in permille of the goal: final, then pending, then promised.

    Of what was promised, only what is still to come: delivered work is pending or final.
    """
    segments, start = [], 0
    for name, amount in (
        ("final", campaign.final_microcredits),
        ("pending", campaign.pending_microcredits),
        ("pledged", campaign.outstanding_microcredits),
    ):
        width = min(permille(amount, campaign.goal_microcredits), 1000 - start)
        segments.append((name, start, width))
        start += width
    return segments
