"""The log, leaf by leaf: to read, and to check in the reader's own browser.

Invariants:

* A leaf is shown as the bytes that are hashed, and never without its place under a signed head.
* Nothing here needs the fold: a page costs the leaves that it shows, however long the log is.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from ledger import tree
from ledger.authority import load_delegations, log_keys
from ledger.leaderboard.acts import signed_act
from ledger.leaderboard.leaf_fields import KINDS, rows_of
from ledger.leaderboard.leaf_list import Wanted, is_any, listed
from ledger.leaderboard.pages import page
from ledger.leaderboard.record import reader_of
from ledger.log import read_leaves
from ledger.records import Leaf, ReversalLeaf, RunLeaf, parse_leaf
from ledger.schema import LogHead, LogLeaf, RunPage
from protocol import merkle
from protocol.errors import BadSignature
from protocol.manifest import RunManifest
from protocol.notes import Checkpoint, read_checkpoint

router = APIRouter(include_in_schema=False)
api_router = APIRouter(prefix="/api/v1", tags=["v1"])

_HEADS = 20
_MAX_OF_DONOR = 5000
_SEE_OTHER = 303
_OF_DONOR = ("credit", "final", "reversal", "merge", "key_rotation")
_KINDS = tuple(one.model_fields["kind"].default for one in get_args(Leaf))

Index = Annotated[int, Query(ge=0, lt=1 << 53)]
Key = Annotated[str, Path(max_length=64)]


class LeavesOfDonor(BaseModel):
    """Indexes of the leaves from which a donor's totals follow."""

    size: int = Field(description="leaves of the record that were looked through")
    leaves: list[int] = Field(
        description="its credit, and what changed it: final, reversal and their verdicts, "
        "restores, merges and rotations of its key; ascending"
    )
    more: bool = Field(description="there are more than this lists")


@router.get("/log")
def log_page(
    request: Request,
    kind: Annotated[str, Query(pattern=f"^({'|'.join(_KINDS)})?$")] = "",
    donor: Annotated[str, Query(pattern="^[1-9A-HJ-NP-Za-km-z]{0,64}$")] = "",
    round: Annotated[str, Query(pattern="^[0-9]{0,15}$")] = "",
    before: Index | None = None,
    after: Index | None = None,
) -> Response:
    """Leaves, newest first: of one kind, donor or round, or all."""
    wanted = Wanted(kind, donor, int(round) if round else None)
    with reader_of(request).session() as (session, note):
        head = _head(note)
        found = listed(session, wanted, size=head.size, before=before, after=after)
        leaves = [(index, parse_leaf(data)) for index, data in found.leaves]
        rounds = _Rounds(session, head.size)
        shown = [(index, leaf, rounds.page_of(leaf)) for index, leaf in leaves]
    return page(
        "log.html",
        request,
        leaves=shown,
        kinds=KINDS,
        wanted=wanted,
        size=head.size,
        older=found.older,
        newer=found.newer,
    )


@router.get("/log/jump")
def jump(
    request: Request, index: Annotated[str, Query(pattern=r"^\s*[0-9]{0,15}\s*$")] = ""
) -> Response:
    """From the field on the list to a leaf; an empty field leads back to the list."""
    return RedirectResponse(f"/log/{int(index)}" if index.strip() else "/log", _SEE_OTHER)


@router.get("/log/heads")
def heads_page(request: Request) -> Response:
    """The newest signed head, the keys behind it, and how to verify and mirror it all."""
    with reader_of(request).session() as (session, note):
        head = _head(note)
        manifest = _manifest(session)
        heads = session.scalars(
            select(LogHead).order_by(LogHead.tree_size.desc()).limit(_HEADS)
        ).all()
        earlier = [(row.signed_at_s, read_checkpoint(row.checkpoint)) for row in heads]
        vkeys, problem = _verifier_keys(session, head, manifest)
        run_page = session.scalar(select(RunPage).where(RunPage.run_id == manifest.run_id.hex()))
    return page(
        "heads.html",
        request,
        head=head,
        note=note,
        earlier=earlier,
        root=manifest.root,
        vkeys=vkeys,
        problem=problem,
        join_link=run_page.join_link if run_page else None,
    )


@router.get("/log/{index}")
def leaf_page(request: Request, index: Annotated[int, Path(lt=1 << 53)]) -> Response:
    """One leaf: what it says, what it leads to, who signed it, and its proof."""
    with reader_of(request).session() as (session, note):
        head = _head(note)
        if not 0 <= index < head.size:
            raise HTTPException(404, f"The record has {head.size} leaves, numbered from 0.")
        data = next(read_leaves(session, index, index + 1))
        leaf = parse_leaf(data)
        values: dict[str, Any] = {
            "rows": rows_of(leaf, _Rounds(session, head.size).is_over),
            "proof": [step.hex() for step in tree.inclusion_proof(session, index, head.size)],
            "act": signed_act(session, index),
            "root_key": _manifest(session).root,
        }
    return page(
        "leaf.html",
        request,
        index=index,
        size=head.size,
        leaf=leaf,
        meaning=KINDS[leaf.kind],
        raw=data.decode(),
        manifest=json.dumps(leaf.manifest, indent=2, ensure_ascii=False)
        if isinstance(leaf, RunLeaf)
        else None,
        leaf_hash=merkle.leaf_hash(data).hex(),
        root=head.root.hex(),
        **values,
    )


@api_router.get("/donors/{donor}/leaves")
def leaves_of_donor(
    request: Request,
    donor: Key,
    size: Annotated[int, Query(ge=1, lt=1 << 53, description="of an older head")] = (1 << 53) - 1,
) -> LeavesOfDonor:
    """Where the record speaks of a donor's credit: to recompute its totals leaf by leaf."""
    reader = reader_of(request)
    if reader.snapshot().owner(donor) is None:
        raise HTTPException(404, "The record knows no such donor.")
    with reader.session() as (session, note):
        head = _head(note)
        within = min(size, head.size)
        rows = session.execute(
            select(LogLeaf.leaf_index, LogLeaf.kind, LogLeaf.data)
            .where(LogLeaf.donor == donor, LogLeaf.leaf_index < within)
            .where(func.coalesce(LogLeaf.kind, "").in_(_OF_DONOR))  # the donor's index is better
            .order_by(LogLeaf.leaf_index)
            .limit(_MAX_OF_DONOR + 1)
        ).all()
        restores = session.scalars(
            select(LogLeaf.leaf_index).where(LogLeaf.kind == "restore", LogLeaf.leaf_index < within)
        ).all()
    listed = {row.leaf_index for row in rows[:_MAX_OF_DONOR]} | set(restores)
    reversals = [parse_leaf(row.data) for row in rows[:_MAX_OF_DONOR] if row.kind == "reversal"]
    listed |= {leaf.verdict_leaf for leaf in reversals if isinstance(leaf, ReversalLeaf)}
    return LeavesOfDonor(size=within, leaves=sorted(listed), more=len(rows) > _MAX_OF_DONOR)


class _Rounds:
    """Which rounds are over: only these have pages, and work is paid before."""

    def __init__(self, session: Session, size: int) -> None:
        self._session, self._size = session, size
        self._known: dict[int, bool] = {}

    def is_over(self, number: int) -> bool:
        if number not in self._known:
            wanted = Wanted("round", round=number)
            self._known[number] = is_any(self._session, wanted, self._size)
        return self._known[number]

    def page_of(self, leaf: Leaf) -> str | None:
        number = getattr(leaf, "round", None)
        return None if number is None or not self.is_over(number) else f"/round/{number}"


def _head(note: str) -> Checkpoint:
    head = read_checkpoint(note)
    if not head.size:
        raise HTTPException(503, "The record of this run has not begun yet.")
    return head


def _manifest(session: Session) -> RunManifest:
    leaf = parse_leaf(next(read_leaves(session, 0, 1)))
    assert isinstance(leaf, RunLeaf)
    return leaf.run_manifest()


def _verifier_keys(
    session: Session, head: Checkpoint, manifest: RunManifest
) -> tuple[list[str], str | None]:
    """Keys that may sign this log at its newest leaf, or why there is none."""
    records = load_delegations(session)
    if records is None:
        return [], "No delegations are published with this log."
    newest = parse_leaf(next(read_leaves(session, head.size - 1, head.size)))
    try:
        keys = log_keys(
            records, manifest.root, head.origin, run_id=manifest.run_id, at_s=newest.at_s
        )
    except BadSignature as error:
        return [], f"{error}"
    return [key.vkey for key in keys], None
