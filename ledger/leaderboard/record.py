"""The record itself over HTTP: checkpoint, tiles, delegations, acts, profiles, receipts.

These are the files that ``ledger export-tiles`` writes, served from the database, so that a
verifier cannot tell a live log from a mirror.
"""

from __future__ import annotations

import re
import time

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from ledger.authority import load_delegations
from ledger.leaderboard.names import names_mark
from ledger.leaderboard.reader import Reader
from ledger.leaderboard.workshop import workshop_of
from ledger.published import load_profiles, load_site
from ledger.receipts import Receipt, make_receipt
from ledger.schema import ActRow, LogLeaf
from ledger.tiles import TILE_WIDTH, Tile, parse_number, read_tile
from protocol.errors import BadRecord, TransientError
from protocol.notes import read_checkpoint

router = APIRouter(include_in_schema=False)

_IMMUTABLE = "public, max-age=31536000, immutable"
_FRESH = "public, max-age=5"
_FEW_NAMES = 1000
_KEPT_S = 60.0
_NAME = re.compile(r"([0-9a-f]{32}|leaf-[0-9]{1,15})\.(tlog-proof|json)")


def reader_of(request: Request) -> Reader:
    """The app's reader."""
    reader: Reader = request.app.state.reader
    return reader


@router.get("/checkpoint")
def checkpoint(request: Request) -> Response:
    """The newest signed head (C2SP tlog-checkpoint)."""
    with reader_of(request).session() as (_, note):
        return Response(
            note, media_type="text/plain; charset=utf-8", headers={"Cache-Control": _FRESH}
        )


@router.get("/delegations")
def delegations(request: Request) -> Response:
    """What the run's root key vouches for (ledger.authority)."""
    with reader_of(request).session() as (session, _):
        records = load_delegations(session)
    if records is None:
        raise HTTPException(404, "No delegations are published with this log.")
    return Response(
        records.dump(), media_type="application/json", headers={"Cache-Control": _FRESH}
    )


@router.get("/acts/{rest:path}")
def act(request: Request, rest: str) -> Response:
    """The signed act behind a leaf, where it is public."""
    try:
        index = parse_number(rest)
    except BadRecord as error:
        raise HTTPException(404, "There is no such act.") from error
    with reader_of(request).session() as (session, note):
        row = session.get(ActRow, index) if index < read_checkpoint(note).size else None
        if row is None or not row.public:
            raise HTTPException(404, "There is no such act.")
        data = row.envelope
    return Response(
        data, media_type="application/octet-stream", headers={"Cache-Control": _IMMUTABLE}
    )


@router.get("/profiles")
def profiles(request: Request) -> Response:
    """What people chose to show, and whom to forget."""
    with reader_of(request).session() as (session, _):
        mark = names_mark(session)
        if sum(count for count, *_ in mark) <= _FEW_NAMES:
            data = load_profiles(session).dump()
        else:  # takes seconds: nobody shall make the site do that again and again
            key = ("profiles", mark, int(time.monotonic() // _KEPT_S))
            data = workshop_of(request).get(key, lambda: load_profiles(session).dump())
    return Response(data, media_type="application/json", headers={"Cache-Control": _FRESH})


@router.get("/site")
def site(request: Request) -> Response:
    """The join link and the organiser's words."""
    with reader_of(request).session() as (session, _):
        found = load_site(session)
    if found is None:
        raise HTTPException(404, "Nothing is said of this run besides its record.")
    return Response(found.dump(), media_type="application/json", headers={"Cache-Control": _FRESH})


@router.get("/tile/{rest:path}")
def tile(request: Request, rest: str) -> Response:
    """Tiles of hashes and bundles of entries, under the newest signed head."""
    try:
        wanted = Tile.parse(f"tile/{rest}")
    except BadRecord as error:
        raise HTTPException(404, "There is no such tile.") from error
    with reader_of(request).session() as (session, note):
        if not wanted.exists_at(read_checkpoint(note).size):
            raise HTTPException(404, "The log is not that large.")
        data = read_tile(session, wanted)
    cache = _IMMUTABLE if wanted.width == TILE_WIDTH else _FRESH
    return Response(data, media_type="application/octet-stream", headers={"Cache-Control": cache})


@router.get("/receipts/{name}")
def receipt(request: Request, name: str) -> Response:
    """A receipt: ``<assignment id>.tlog-proof`` and its leaf ``<assignment id>.json``.

    Leaves without an assignment go by ``leaf-<index>``.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise HTTPException(404, "A receipt is <assignment id>.tlog-proof or .json.")
    with reader_of(request).session() as (session, note):
        made = receipt_of(session, note, _leaf_index(session, match[1]))
    body, kind = (made.leaf, "application/json")
    if match[2] == "tlog-proof":
        body, kind = made.proof.encode(), "text/plain; charset=utf-8"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": _FRESH}
    return Response(body, media_type=kind, headers=headers)


def receipt_of(session: Session, note: str, index: int | None) -> Receipt:
    """A leaf's receipt under the newest head.

    Raises:
        HTTPException: 404, there is no such leaf under it.
    """
    if index is None:
        raise HTTPException(404, "The record holds no such contribution.")
    try:
        return make_receipt(session, read_checkpoint(note).origin, index)
    except TransientError as error:
        raise HTTPException(404, "The record holds no such leaf yet.") from error


def _leaf_index(session: Session, name: str) -> int | None:
    if name.startswith("leaf-"):
        return int(name.removeprefix("leaf-"))
    return session.scalar(
        select(LogLeaf.leaf_index).where(LogLeaf.assignment_id == name, LogLeaf.kind == "credit")
    )
