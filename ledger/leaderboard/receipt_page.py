"""Where a receipt is checked: in the browser, or by this server where there is no JavaScript."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from ledger.leaderboard.forms import CheckedReceipt, checked_receipt, read_form
from ledger.leaderboard.pages import page
from ledger.leaderboard.record import reader_of

router = APIRouter(include_in_schema=False)


@router.get("/receipt")
def receipt_page(request: Request) -> Response:
    """The form to check a receipt."""
    return page("receipt.html", request, result=None, proof="", leaf_text="", root=_root(request))


@router.post("/receipt")
async def check_receipt(request: Request) -> Response:
    """Check a receipt that was pasted or uploaded, against this run's root key."""
    fields = await read_form(request)
    leaf, proof = fields.get("leaf", ""), fields.get("proof", "")
    result = await run_in_threadpool(_check, request, leaf, proof)
    root = await run_in_threadpool(_root, request)
    status = 200 if result.genuine else 422
    return page(
        "receipt.html", request, status, result=result, proof=proof, leaf_text=leaf, root=root
    )


def _check(request: Request, leaf: str, proof: str) -> CheckedReceipt:
    with reader_of(request).read() as reading:
        return checked_receipt(reading, leaf, proof)


def _root(request: Request) -> str:
    with reader_of(request).read() as reading:
        assert reading.board.manifest is not None
        return reading.board.manifest.root
