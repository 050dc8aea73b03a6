"""The pages. Each reads a model (:mod:`ledger.leaderboard.models`) and fills a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from ledger import tree
from ledger.campaigns import permille
from ledger.donors import names_of, short_key
from ledger.leaderboard import audits as audit_models
from ledger.leaderboard import format as text
from ledger.leaderboard import models
from ledger.leaderboard import rounds as round_models
from ledger.leaderboard.api import MAX_PAGE
from ledger.leaderboard.forms import checked_receipt, read_form
from ledger.leaderboard.pictures.gallery import gallery_of
from ledger.leaderboard.pictures.table import table_of
from ledger.leaderboard.record import reader_of
from ledger.log import read_leaves
from ledger.records import parse_leaf
from ledger.schema import LogLeaf
from protocol import merkle

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

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,  # names are hostile until escaped
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "compact": text.compact,
    "credit": text.credit,
    "flops": text.flops,
    "percent": text.percent,
    "chance": text.chance,
    "words": text.words,
    "nats": text.nats,
    "moment": text.moment,
    "day": text.day,
    "iso": text.iso,
    "duration": text.duration,
    "short_key": short_key,
}


def _page(template: str, request: Request, status: int = 200, **values: Any) -> Response:
    body = _templates.get_template(template).render(
        path=request.url.path, base_url=str(request.base_url).rstrip("/"), **values
    )
    return HTMLResponse(body, status_code=status)


def error_page(request: Request, status: int, detail: str) -> Response:
    """Any error, as a page in the site's dress."""
    return _page("error.html", request, status, code=status, detail=detail)


@router.get("/")
def campaign_page(request: Request) -> Response:
    """The campaign: goal, loss, donors, how to join, how to verify."""
    with reader_of(request).read() as reading:
        campaign = models.campaign(reading)
        run_page = reading.run_page
        loss = gallery_of(request).series(reading, "loss")
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
    return _page("campaign.html", request, loss=loss, loss_table=table_of(loss), **values)


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


@router.get("/log")
def log_page(request: Request, page: Page = 1) -> Response:
    """The record's leaves, newest first, and its head."""
    with reader_of(request).read() as reading:
        size = reading.head.size
        end = max(0, size - (page - 1) * _LEAVES_PER_PAGE)
        start = max(0, end - _LEAVES_PER_PAGE)
        leaves = [
            (index, parse_leaf(data))
            for index, data in enumerate(read_leaves(reading.session, start, end), start)
        ]
        head, note, root = reading.head, reading.note, reading.board.manifest
    assert root is not None
    return _page(
        "log.html",
        request,
        head=head,
        checkpoint=note,
        leaves=leaves[::-1],
        root=root.root,
        page=page,
        pages=max(1, -(-size // _LEAVES_PER_PAGE)),
    )


@router.get("/log/{index}")
def leaf_page(request: Request, index: int) -> Response:
    """One leaf and its inclusion proof."""
    with reader_of(request).read() as reading:
        size = reading.head.size
        if not 0 <= index < size:
            raise HTTPException(404, f"The record has {size} leaves, numbered from 0.")
        data = next(read_leaves(reading.session, index, index + 1))
        proof = tree.inclusion_proof(reading.session, index, size)
        root = reading.head.root
    return _page(
        "leaf.html",
        request,
        index=index,
        size=size,
        kind=parse_leaf(data).kind,
        pretty=json.dumps(json.loads(data), indent=2, ensure_ascii=False),
        leaf_hash=merkle.leaf_hash(data).hex(),
        proof=[step.hex() for step in proof],
        root=root.hex(),
    )


@router.get("/receipt")
def receipt_page(request: Request) -> Response:
    """The form to check a receipt."""
    return _page("receipt.html", request, result=None, proof="", leaf="")


@router.post("/receipt")
async def check_receipt(request: Request) -> Response:
    """Check a receipt that was pasted or uploaded, against this run's root key."""
    fields = await read_form(request)
    leaf, proof = fields.get("leaf", ""), fields.get("proof", "")
    result = await run_in_threadpool(_check, request, leaf, proof)
    status = 200 if result.genuine else 422
    return _page("receipt.html", request, status, result=result, proof=proof, leaf=leaf)


def _check(request: Request, leaf: str, proof: str) -> Any:
    with reader_of(request).read() as reading:
        return checked_receipt(reading, leaf, proof)


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
