"""The pages of rounds, audits, the log and receipts. Each reads a model and fills a template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ledger import tree
from ledger.leaderboard import audits as audit_models
from ledger.leaderboard import rounds as round_models
from ledger.leaderboard.api import MAX_PAGE
from ledger.leaderboard.forms import checked_receipt, read_form
from ledger.leaderboard.pages import page as _page
from ledger.leaderboard.reader import Reading
from ledger.leaderboard.record import reader_of
from ledger.log import read_leaves
from ledger.records import parse_leaf
from protocol import merkle
from protocol.identity import PeerId

router = APIRouter(include_in_schema=False)

_ROUNDS_PER_PAGE = 50
_LEAVES_PER_PAGE = 50
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


def _names(reading: Reading, keys: Iterable[PeerId]) -> dict[PeerId, str | None]:
    """What the persons of these keys are called."""
    owner_of = reading.board.people.owner_of
    return {key: reading.names.donor(owner_of(key)) for key in keys}


def _check(request: Request, leaf: str, proof: str) -> Any:
    with reader_of(request).read() as reading:
        return checked_receipt(reading, leaf, proof)
