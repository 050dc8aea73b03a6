"""The pages of rounds and audits. Each reads a model and fills a template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from ledger.leaderboard import audits as audit_models
from ledger.leaderboard import rounds as round_models
from ledger.leaderboard.api import MAX_PAGE
from ledger.leaderboard.pages import page as _page
from ledger.leaderboard.reader import Reading
from ledger.leaderboard.record import reader_of
from protocol.identity import PeerId

router = APIRouter(include_in_schema=False)

_ROUNDS_PER_PAGE = 50
_VERDICTS_PER_PAGE = 50

Page = Annotated[int, Query(ge=1, le=MAX_PAGE)]


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
        names = _names(reading, (member.donor for member in found.members))
    return _page("round.html", request, found=found, row=found.round, names=names)


@router.get("/audits")
def audits_page(request: Request, page: Page = 1) -> Response:
    """The run's audits: what they cost, what they found, every verdict."""
    with reader_of(request).read() as reading:
        audits = audit_models.audits(reading)
        found = audit_models.verdicts(reading, page=page, per_page=_VERDICTS_PER_PAGE)
        names = _names(reading, (row.donor for row in found.verdicts))
    return _page("audits.html", request, audits=audits, found=found, names=names)


def _names(reading: Reading, keys: Iterable[PeerId]) -> dict[PeerId, str | None]:
    """What the persons of these keys are called."""
    owner_of = reading.board.people.owner_of
    return {key: reading.names.donor(owner_of(key)) for key in keys}
