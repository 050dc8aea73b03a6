"""The pages of donors: the boards, and one for everybody."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from ledger.leaderboard import audits as audit_models
from ledger.leaderboard.api import MAX_PAGE
from ledger.leaderboard.donor import donor_page
from ledger.leaderboard.donor_check import donor_check
from ledger.leaderboard.donors import donors, place_of
from ledger.leaderboard.pages import page as fill
from ledger.leaderboard.pictures.gallery import gallery_of
from ledger.leaderboard.pictures.table import table_of
from ledger.leaderboard.reader import Reading
from ledger.leaderboard.record import reader_of
from ledger.leaderboard.snapshot import BoardName, Sort
from ledger.schema import LogLeaf
from ledger.tally import Credit
from protocol.identity import PeerId

router = APIRouter(include_in_schema=False)

_PER_PAGE = 50
_VERDICTS = 20
_SEE_OTHER = 303
_MOVED = 308

Page = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Wanted = Annotated[str, Query(max_length=64)]


@router.get("/donors")
def donors_page(
    request: Request,
    board: BoardName = "all",
    sort: Sort = "credit",
    q: Wanted = "",
    me: Wanted = "",
    page: Annotated[int | None, Query(ge=1, le=MAX_PAGE)] = None,
) -> Response:
    """A board: sorted and searched on the server. ``me`` alone leads to the page with that row."""
    snapshot, me = reader_of(request).snapshot(), me.strip()
    if me and page is None:
        found = place_of(snapshot, board, sort, me)
        if found is None:
            raise HTTPException(404, "Nobody on this board has such a name or key.")
        key, place = found
        query = {"board": board, "sort": sort, "page": 1 + place // _PER_PAGE, "me": key}
        return RedirectResponse(f"/donors?{urlencode(query)}#{quote(key)}", _SEE_OTHER)
    shown = donors(
        snapshot, board=board, sort=sort, search=q.strip(), page=page or 1, per_page=_PER_PAGE
    )
    return fill("donors.html", request, shown=shown, q=q.strip(), me=me)


@router.get("/donor/{donor}")
def one_donor_page(request: Request, donor: str, page: Page = 1) -> Response:
    """A person: credit, pledges, gifts, receipts. A key that was given up leads to its owner."""
    with reader_of(request).read() as reading:
        found = donor_page(reading, donor)
        if found is None and donor in reading.board.crowd.pools.pools:
            return RedirectResponse("/pools", _SEE_OTHER)  # it has no device yet
        if found is None:
            raise HTTPException(404, "The record knows no such donor.")
        if found.donor.donor != donor:
            return RedirectResponse(f"/donor/{quote(found.donor.donor)}", _MOVED)
        verdicts = audit_models.verdicts_of(reading, donor, page=1, per_page=_VERDICTS)
        total, receipts = _receipts(reading, found.keys, page)
        team = found.donor.team
        team_name = None if team is None else reading.names.team(team)
        check = donor_check(reading, found.donor.donor)
        history = gallery_of(request).history(reading, donor)
    assert history is not None
    return fill(
        "donor.html",
        request,
        found=found,
        verdicts=verdicts,
        receipts=receipts,
        team_name=team_name,
        check=check,
        history=history,
        history_table=table_of(history),
        page=page,
        pages=max(1, -(-total // _PER_PAGE)),
    )


def _receipts(reading: Reading, keys: list[PeerId], page: int) -> tuple[int, list[Credit]]:
    """How many credit leaves a person has, and a page of them, newest first."""
    where = (
        LogLeaf.donor.in_(keys),
        LogLeaf.kind == "credit",
        LogLeaf.leaf_index < reading.head.size,
    )
    total = reading.session.scalar(select(func.count()).where(*where)) or 0
    indexes = reading.session.scalars(
        select(LogLeaf.leaf_index)
        .where(*where)
        .order_by(LogLeaf.leaf_index.desc())
        .limit(_PER_PAGE)
        .offset((page - 1) * _PER_PAGE)
    )
    return total, [reading.board.accounts.credits[index] for index in indexes]
