"""The pages of teams and of sponsored pools."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from ledger.leaderboard import teams as models
from ledger.leaderboard.api import MAX_PAGE
from ledger.leaderboard.pages import page as fill
from ledger.leaderboard.record import reader_of

router = APIRouter(include_in_schema=False)

_PER_PAGE = 50

Page = Annotated[int, Query(ge=1, le=MAX_PAGE)]


@router.get("/teams")
def teams_page(request: Request, page: Page = 1) -> Response:
    """The board of teams."""
    with reader_of(request).read() as reading:
        shown = models.teams(reading, page=page, per_page=_PER_PAGE)
    return fill("teams.html", request, shown=shown)


@router.get("/team/{team}")
def team_page(request: Request, team: str, page: Page = 1) -> Response:
    """A team and its members."""
    with reader_of(request).read() as reading:
        found = models.team_page(reading, team, page=page, per_page=_PER_PAGE)
        if found is None:
            raise HTTPException(404, "The record knows no such team.")
        founder = reading.names.donor(found.team.founder)
    return fill("team.html", request, found=found, founder_name=founder)


@router.get("/pools")
def pools_page(request: Request) -> Response:
    """Sponsored pools."""
    with reader_of(request).read() as reading:
        found = models.pools(reading).pools
    return fill("pools.html", request, found=found)
