"""The pages. Each reads a model (:mod:`ledger.leaderboard.models`) and fills a template."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from starlette.exceptions import HTTPException

from ledger.campaigns import permille
from ledger.donors import names_of
from ledger.leaderboard import audits as audit_models
from ledger.leaderboard import models
from ledger.leaderboard import rounds as round_models
from ledger.leaderboard.api import MAX_PAGE
from ledger.leaderboard.chart import loss_chart
from ledger.leaderboard.pages import page as _page
from ledger.leaderboard.record import reader_of
from ledger.schema import LogLeaf

router = APIRouter(include_in_schema=False)

_DONORS_PER_PAGE = 50
_ROUNDS_PER_PAGE = 50
_LEAVES_PER_PAGE = 50
_VERDICTS_PER_PAGE = 50
_VERDICTS_OF_DONOR = 20
_TOP = 10
_RECENT = 6
_NEWEST_ROUNDS = 8

Page = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def error_page(request: Request, status: int, detail: str) -> Response:
    """Any error, as a page in the site's dress."""
    return _page("error.html", request, status, code=status, detail=detail)


@router.get("/")
def campaign_page(request: Request) -> Response:
    """The campaign: goal, loss, donors, how to join, how to verify."""
    with reader_of(request).read() as reading:
        campaign = models.campaign(reading)
        run_page = reading.run_page
        points = models.loss_points(reading)
        values: dict[str, Any] = {
            "campaign": campaign,
            "bar": _goal_bar(campaign),
            "top": models.donor_rows(reading, reading.ranking[:_TOP]),
            "recent": models.recent_donors(reading, _RECENT),
            "rounds": round_models.rounds(reading, page=1, per_page=_NEWEST_ROUNDS).rounds,
            "join_link": run_page.join_link if run_page else None,
            "notes": run_page.notes if run_page else "",
            "checkpoint": reading.note,
        }
    charts = [
        ("wide", loss_chart(points, width=760, height=430)),
        ("narrow", loss_chart(points, width=380, height=260)),
    ]
    return _page("campaign.html", request, charts=charts, **values)


@router.get("/donors")
def donors_page(
    request: Request,
    sort: models.Sort = "credit",
    q: Annotated[str, Query(max_length=64)] = "",
    page: Page = 1,
) -> Response:
    """The board: sorted and searched on the server."""
    with reader_of(request).read() as reading:
        board = models.donors(
            reading, sort=sort, search=q.strip(), page=page, per_page=_DONORS_PER_PAGE
        )
    return _page("donors.html", request, board=board, sort=sort, q=q.strip())


@router.get("/donor/{donor}")
def donor_page(request: Request, donor: str, page: Page = 1) -> Response:
    """A donor: credit, devices, receipts."""
    with reader_of(request).read() as reading:
        found = models.donor_page(reading, donor)
        if found is None:
            raise HTTPException(404, "The record knows no such donor.")
        verdicts = audit_models.verdicts_of(reading, donor, page=1, per_page=_VERDICTS_OF_DONOR)
        where = (LogLeaf.donor == donor, LogLeaf.kind == "credit")
        within = LogLeaf.leaf_index < reading.head.size
        total = reading.session.scalar(select(func.count()).where(*where, within)) or 0
        indexes = reading.session.scalars(
            select(LogLeaf.leaf_index)
            .where(*where, within)
            .order_by(LogLeaf.leaf_index.desc())
            .limit(_LEAVES_PER_PAGE)
            .offset((page - 1) * _LEAVES_PER_PAGE)
        )
        receipts = [reading.board.accounts.credits[index] for index in indexes]
    pages = max(1, -(-total // _LEAVES_PER_PAGE))
    return _page(
        "donor.html",
        request,
        found=found,
        verdicts=verdicts,
        receipts=receipts,
        page=page,
        pages=pages,
    )


@router.get("/rounds")
def rounds_page(request: Request, page: Page = 1) -> Response:
    """All rounds, newest first."""
    with reader_of(request).read() as reading:
        board = round_models.rounds(reading, page=page, per_page=_ROUNDS_PER_PAGE)
    return _page("rounds.html", request, board=board)


@router.get("/round/{number}")
def round_page(request: Request, number: int) -> Response:
    """One round: digests, who was in it, and what audits said of them."""
    with reader_of(request).read() as reading:
        found = round_models.round_page(reading, number)
        if found is None:
            raise HTTPException(404, f"Round {number} is not over, or never was.")
        names = names_of(reading.session, (member.donor for member in found.members))
    return _page("round.html", request, found=found, row=found.round, names=names)


@router.get("/audits")
def audits_page(request: Request, page: Page = 1) -> Response:
    """The run's audits: what they cost, what they found, every verdict."""
    with reader_of(request).read() as reading:
        audits = audit_models.audits(reading)
        found = audit_models.verdicts(reading, page=page, per_page=_VERDICTS_PER_PAGE)
        names = names_of(reading.session, (row.donor for row in found.verdicts))
    return _page("audits.html", request, audits=audits, found=found, names=names)


def _goal_bar(campaign: models.Campaign) -> list[tuple[str, int, int]]:
    """``(colour, from, width)`` in permille of the goal: final, then pending, then pledged."""
    segments, start = [], 0
    for name, amount in (
        ("final", campaign.final_microcredits),
        ("pending", campaign.pending_microcredits),
        ("pledged", campaign.pledged_microcredits),
    ):
        width = min(permille(amount, campaign.goal_microcredits), 1000 - start)
        segments.append((name, start, width))
        start += width
    return segments
