"""``/api/v1`` of campaigns, donors, teams and pools: the same models as their pages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ledger.leaderboard import campaigns as campaign_models
from ledger.leaderboard import donor as donor_models
from ledger.leaderboard import donors as board_models
from ledger.leaderboard import teams as team_models
from ledger.leaderboard.api import Page, PerPage
from ledger.leaderboard.record import reader_of
from ledger.leaderboard.snapshot import BoardName, Sort

router = APIRouter(prefix="/api/v1", tags=["v1"])

Search = Annotated[str, Query(max_length=64, description="part of a name or key")]
ActName = Annotated[str, Path(max_length=64, description="id of the act, hex")]


def _json(model: BaseModel) -> Response:
    """As FastAPI would answer, without reading the model a second time."""
    return Response(model.model_dump_json(), media_type="application/json")


@router.get("/campaign", response_model=campaign_models.Run)
def campaign(request: Request) -> Response:
    """The run, and its own campaign."""
    with reader_of(request).read() as reading:
        return _json(campaign_models.run(reading))


@router.get("/campaigns", response_model=campaign_models.Campaigns)
def campaigns(request: Request) -> Response:
    """Every campaign of the run, newest first; the run's own last."""
    with reader_of(request).read() as reading:
        return _json(campaign_models.campaigns(reading))


@router.get("/campaigns/{campaign}", response_model=campaign_models.CampaignPage)
def one_campaign(request: Request, campaign: ActName) -> Response:
    """A campaign, its news, and the pledges and donations that may be listed."""
    with reader_of(request).read() as reading:
        found = campaign_models.campaign_page(reading, campaign)
    if found is None:
        raise HTTPException(404, "The record knows no such campaign.")
    return _json(found)


@router.get("/donors", response_model=board_models.Donors)
def donors(
    request: Request,
    page: Page = 1,
    per_page: PerPage = 100,
    board: BoardName = "all",
    sort: Sort = "credit",
    q: Search = "",
) -> Response:
    """A board of donors: of all time, of 30 days, of 24 hours, or by the recent average."""
    snapshot = reader_of(request).snapshot()
    return _json(
        board_models.donors(
            snapshot, board=board, sort=sort, search=q.strip(), page=page, per_page=per_page
        )
    )


@router.get("/donors/{donor}", response_model=donor_models.DonorPage)
def donor(request: Request, donor: Annotated[str, Path(max_length=64)]) -> Response:
    """One person, by any of its keys."""
    with reader_of(request).read() as reading:
        found = donor_models.donor_page(reading, donor)
    if found is None:
        raise HTTPException(404, "The record knows no such donor.")
    return _json(found)


@router.get("/teams", response_model=team_models.Teams)
def teams(request: Request, page: Page = 1, per_page: PerPage = 100) -> Response:
    """Teams by credit."""
    with reader_of(request).read() as reading:
        return _json(team_models.teams(reading, page=page, per_page=per_page))


@router.get("/teams/{team}", response_model=team_models.TeamPage)
def team(request: Request, team: ActName, page: Page = 1, per_page: PerPage = 100) -> Response:
    """A team and its members."""
    with reader_of(request).read() as reading:
        found = team_models.team_page(reading, team, page=page, per_page=per_page)
    if found is None:
        raise HTTPException(404, "The record knows no such team.")
    return _json(found)


@router.get("/pools", response_model=team_models.Pools)
def pools(request: Request) -> Response:
    """Sponsored pools: money in, devices, and credit that is divided among who gave it."""
    with reader_of(request).read() as reading:
        return _json(team_models.pools(reading))
