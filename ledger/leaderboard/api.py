"""``/api/v1``: what the pages show, as JSON. Described at ``/api/v1/openapi.json``."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ledger import tree
from ledger.leaderboard import audits as audit_models
from ledger.leaderboard import rounds as round_models
from ledger.leaderboard.record import reader_of
from ledger.log import read_leaves
from protocol import merkle

router = APIRouter(prefix="/api/v1", tags=["v1"])

MAX_PAGE = 1_000_000
Page = Annotated[int, Query(ge=1, le=MAX_PAGE)]
PerPage = Annotated[int, Query(ge=1, le=500)]


class Head(BaseModel):
    """The newest signed head."""

    origin: str
    size: int
    root: str = Field(description="base64, as in the checkpoint")
    checkpoint: str = Field(description="C2SP tlog-checkpoint, a signed note")


class LeafProof(BaseModel):
    """A leaf with its audit path in the newest signed head."""

    index: int
    size: int
    leaf: dict[str, Any]
    canonical: str = Field(description="the bytes that are hashed, base64")
    leaf_hash: str = Field(description="hex")
    proof: list[str] = Field(description="audit path, leaf to root, hex")


@router.get("/donors/{donor}/verdicts")
def donor_verdicts(
    request: Request,
    donor: Annotated[str, Path(max_length=64)],
    page: Page = 1,
    per_page: PerPage = 100,
) -> audit_models.Verdicts:
    """Verdicts on a donor's work, newest first."""
    with reader_of(request).read() as reading:
        found = audit_models.verdicts_of(reading, donor, page=page, per_page=per_page)
    if found is None:
        raise HTTPException(404, "The record knows no such donor.")
    return found


@router.get("/rounds")
def rounds(request: Request, page: Page = 1, per_page: PerPage = 100) -> round_models.Rounds:
    """Rounds that are over, newest first."""
    with reader_of(request).read() as reading:
        return round_models.rounds(reading, page=page, per_page=per_page)


@router.get("/rounds/{number}")
def one_round(
    request: Request, number: Annotated[int, Path(ge=0, lt=1 << 53)]
) -> round_models.RoundPage:
    """One round: its members, their chances of an audit, and what audits said."""
    with reader_of(request).read() as reading:
        found = round_models.round_page(reading, number)
    if found is None:
        raise HTTPException(404, f"Round {number} is not over, or never was.")
    return found


@router.get("/audits")
def audits(request: Request) -> audit_models.Audits:
    """The run's audits in numbers."""
    with reader_of(request).read() as reading:
        return audit_models.audits(reading)


@router.get("/verdicts")
def verdicts(request: Request, page: Page = 1, per_page: PerPage = 100) -> audit_models.Verdicts:
    """All verdicts, newest first."""
    with reader_of(request).read() as reading:
        return audit_models.verdicts(reading, page=page, per_page=per_page)


@router.get("/log/head")
def head(request: Request) -> Head:
    """The newest signed head."""
    with reader_of(request).read() as reading:
        at = reading.head
        root = base64.b64encode(at.root).decode()
        return Head(origin=at.origin, size=at.size, root=root, checkpoint=reading.note)


@router.get("/log/leaves/{index}")
def leaf(request: Request, index: Annotated[int, Path(ge=0, lt=1 << 53)]) -> LeafProof:
    """One leaf, and the proof that the newest signed head holds it."""
    with reader_of(request).read() as reading:
        size = reading.head.size
        if index >= size:
            raise HTTPException(404, f"The record has {size} leaves.")
        data = next(read_leaves(reading.session, index, index + 1))
        proof = tree.inclusion_proof(reading.session, index, size)
    return LeafProof(
        index=index,
        size=size,
        leaf=json.loads(data),
        canonical=base64.b64encode(data).decode(),
        leaf_hash=merkle.leaf_hash(data).hex(),
        proof=[step.hex() for step in proof],
    )
