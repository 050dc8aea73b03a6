"""What the pages of audits show: how much is audited, what was found, what is still open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from ledger.campaigns import permille
from ledger.leaderboard.held import Paged
from ledger.leaderboard.reader import Reading
from ledger.tally import Judgement
from protocol.identity import PeerId


class Audits(BaseModel):
    """The audits of the run, as of ``size`` leaves."""

    size: int
    policy: str
    draws: int = Field(description="published; who they select is recomputed from the record")
    awaited: int = Field(description="rounds that paid for training, their draw not yet published")
    selected: int = Field(description="contributions, by these draws")
    open: int = Field(description="of these, without a verdict yet")
    verdicts: dict[str, int] = Field(description="by what they say, of any kind of work")
    audited_tokens: int = Field(description="of merged contributions that have a verdict")
    merged_tokens: int
    overhead_permille: int = Field(description="audited of merged tokens, in thousandths")
    blocked_keys: int


class VerdictRow(BaseModel):
    """What one audit said."""

    leaf_index: int
    at_s: int
    round: int
    subject: Literal["training", "probation", "reducing"]
    worker: str
    donor: str
    verdict: str
    reason: str = Field(description="a stable word")
    why: str = Field(description="why it was audited")
    assignment_id: str | None
    chunk: int | None
    overturned: bool = Field(description="by an appeal")
    record_digest: str = Field(description="SHA-256 of the signed verdict")


class Verdicts(Paged):
    """One page of verdicts, newest first."""

    verdicts: list[VerdictRow]


def audits(reading: Reading) -> Audits:
    """The run's audits in numbers."""
    board, found = reading.board, reading.board.audits
    return Audits(
        size=board.size,
        policy=found.policy.policy,
        draws=len(found.draws),
        awaited=board.awaited_draws,
        selected=found.selected,
        open=found.unaudited,
        verdicts=dict(found.verdicts),
        audited_tokens=found.audited_tokens,
        merged_tokens=board.merged_tokens,
        overhead_permille=permille(found.audited_tokens, max(1, board.merged_tokens)),
        blocked_keys=len(found.blocked),
    )


def verdicts(reading: Reading, *, page: int, per_page: int) -> Verdicts:
    """One page of all verdicts."""
    return _page(reading, list(reading.board.audits.judgements.values()), page, per_page)


def verdicts_of(reading: Reading, donor: PeerId, *, page: int, per_page: int) -> Verdicts | None:
    """One page of the verdicts on a person's work, or None when the log knows no such key."""
    owner = reading.snapshot.owner(donor)
    if owner is None:
        return None
    board = reading.board
    keys = board.people.keys_of(owner)
    workers = {
        worker for key in keys if key in board.donors for worker in board.donors[key].workers
    }
    mine = (
        judgement
        for worker in workers
        for judgement in board.workers[worker].verdicts
        if judgement.donor in keys
    )
    return _page(reading, sorted(mine, key=lambda one: one.leaf_index), page, per_page)


def _page(reading: Reading, found: Sequence[Judgement], page: int, per_page: int) -> Verdicts:
    first = (page - 1) * per_page
    return Verdicts(
        size=reading.board.size,
        total=len(found),
        page=page,
        per_page=per_page,
        verdicts=[_row(judgement) for judgement in found[::-1][first : first + per_page]],
    )


def _row(judgement: Judgement) -> VerdictRow:
    leaf = judgement.leaf
    return VerdictRow(
        leaf_index=judgement.leaf_index,
        at_s=leaf.at_s,
        round=leaf.round,
        subject=leaf.subject,
        worker=leaf.worker,
        donor=judgement.donor,
        verdict=leaf.verdict,
        reason=leaf.reason,
        why=leaf.why,
        assignment_id=leaf.assignment_id,
        chunk=leaf.chunk,
        overturned=judgement.overturned,
        record_digest=leaf.record_digest,
    )
