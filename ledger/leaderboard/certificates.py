"""Certificates over HTTP (:mod:`ledger.exports.certificate`), and the page that one prints."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from ledger.exports.certificate import MOST_PARTS
from ledger.exports.certify import State, count_parts, make_certificate, states_of
from ledger.leaderboard.pages import page as fill
from ledger.leaderboard.reader import Reading
from ledger.leaderboard.record import reader_of
from ledger.leaderboard.workshop import workshop_of
from ledger.standing import Standing, standing
from protocol.identity import PeerId

router = APIRouter(include_in_schema=False)

_MOVED = 308
_FRESH = "public, max-age=60"

Part = Annotated[int, Query(ge=1, le=MOST_PARTS)]


@router.get("/certificate/{donor}.json")
def certificate_file(request: Request, donor: str, part: Part = 1) -> Response:
    """One part of a person's certificate."""
    with reader_of(request).read() as reading:
        note, person = reading.note, _person(reading, donor)
        parts = count_parts(reading.session, person.keys, reading.board.size)
        if part > parts:
            raise HTTPException(404, f"This certificate has {parts} parts.")
        states = states_of(reading.session, reading.board, keys=person.keys, part=part)

    def make() -> bytes:
        with reader_of(request).session() as (session, _):
            return _make(session, note, states, person, part, parts)

    body = workshop_of(request).get(("certificate", note, person.owner, part), make)
    name = f"certificate-{person.owner[-8:]}-{part}.json"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": _FRESH}
    return Response(body, media_type="application/json", headers=headers)


@router.get("/certificate/{donor}")
def certificate_page(request: Request, donor: str) -> Response:
    """The certificate to read and print, and how to check it."""
    with reader_of(request).read() as reading:
        person = _person(reading, donor)
        if person.owner != donor:
            return RedirectResponse(f"/certificate/{quote(person.owner)}", _MOVED)
        manifest = reading.board.manifest
        assert manifest is not None
        values: dict[str, Any] = {
            "person": person,
            "name": reading.names.donor(person.owner),
            "run": manifest,
            "run_id": reading.board.run_id,
            "head": reading.head,
            "newest_s": reading.board.newest_s,
            "parts": count_parts(reading.session, person.keys, reading.board.size),
        }
    return fill("certificate.html", request, **values)


def _make(
    session: Session,
    note: str,
    states: dict[int, State],
    person: Standing,
    part: int,
    parts: int,
) -> bytes:
    sponsored, given_away = person.sponsored, person.given_away
    claims = {
        "sponsored_microcredits": sponsored.total_microcredits,
        "given_away_microcredits": given_away.total_microcredits,
    }
    return make_certificate(
        session,
        note,
        states,
        subject=person.owner,
        keys=person.keys,
        part=part,
        parts=parts,
        claims={name: amount for name, amount in claims.items() if amount},
    ).dump()


def _person(reading: Reading, donor: PeerId) -> Standing:
    """Raises HTTPException: 404, the record knows no such donor."""
    owner = reading.snapshot.owner(donor)
    if owner is None:
        raise HTTPException(404, "The record knows no such donor.")
    return standing(reading.board, owner)
