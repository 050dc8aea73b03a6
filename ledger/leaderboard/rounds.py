"""What the pages of rounds show: who was in one, and what audits said of them.

Who was selected is recomputed from the published draw, never read from anywhere.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from ledger.fold import Round
from ledger.leaderboard.held import Held, held
from ledger.leaderboard.reader import Reading
from ledger.tally import Credit, Status, Tally


class RoundRow(Held):
    """A round that is over."""

    round: int
    outcome: str
    members: int
    tokens: int = Field(description="credited for this round")
    merged_tokens: int = Field(description="of the run, after this round")
    contributions: int
    validation_loss_micronats: int | None
    started_at_s: int
    ended_at_s: int
    state_digest: str
    roster_digest: str | None
    result_digest: str | None
    leaf_index: int


class Rounds(BaseModel):
    """One page of rounds, newest first."""

    size: int
    total: int
    page: int
    per_page: int
    rounds: list[RoundRow]

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.per_page))


class Member(BaseModel):
    """Work that was credited for a round."""

    leaf_index: int = Field(description="of its credit")
    worker: str
    donor: str
    work: Literal["training", "probation", "reducing"]
    tokens: int
    chunks: int
    microcredits: int
    status: Status
    status_leaf: int = Field(description="where the record gives it that status")
    execution: str | None
    audit_ppm: int | None = Field(description="chance of an audit, in millionths")
    selected: bool | None = Field(description="by the draw; null: not published yet, or no draw")
    verdict: str | None
    reason: str | None = Field(description="a stable word")
    why: str | None = Field(description="why it was audited")
    verdict_leaf: int | None


class RoundPage(BaseModel):
    """A round that is over, and who was in it."""

    size: int
    round: RoundRow
    draw_leaf: int | None = Field(description="where its draw is published")
    members: list[Member]
    before: int | None
    after: int | None


def rounds(reading: Reading, *, page: int, per_page: int) -> Rounds:
    """One page of rounds, newest first."""
    numbers = list(reversed(reading.board.rounds))
    first = (page - 1) * per_page
    return Rounds(
        size=reading.board.size,
        total=len(numbers),
        page=page,
        per_page=per_page,
        rounds=[
            round_row(reading, reading.board.rounds[number])
            for number in numbers[first : first + per_page]
        ],
    )


def round_row(reading: Reading, entry: Round) -> RoundRow:
    """One round, with what was credited for it."""
    leaf = entry.leaf
    tally = reading.board.credited.get(leaf.round, Tally())
    return RoundRow(
        round=leaf.round,
        outcome=leaf.outcome,
        members=leaf.members,
        tokens=tally.tokens,
        merged_tokens=leaf.merged_tokens,
        contributions=tally.contributions,
        **held(tally),
        validation_loss_micronats=leaf.validation_loss_micronats,
        started_at_s=leaf.started_at_s,
        ended_at_s=leaf.ended_at_s,
        state_digest=leaf.state_digest,
        roster_digest=leaf.roster_digest,
        result_digest=leaf.result_digest,
        leaf_index=entry.leaf_index,
    )


def round_page(reading: Reading, number: int) -> RoundPage | None:
    """A round with its members, or None when no such round is over."""
    board = reading.board
    entry = board.rounds.get(number)
    if entry is None:
        return None
    return RoundPage(
        size=board.size,
        round=round_row(reading, entry),
        draw_leaf=board.audits.draws.get(number),
        members=[member(credit) for credit in board.accounts.by_round.get(number, ())],
        before=number - 1 if number - 1 in board.rounds else None,
        after=number + 1 if number + 1 in board.rounds else None,
    )


def member(credit: Credit) -> Member:
    """What became of one credit."""
    leaf, verdict = credit.leaf, credit.verdict
    return Member(
        leaf_index=credit.index,
        worker=leaf.worker,
        donor=leaf.donor,
        work=leaf.work,
        tokens=leaf.tokens,
        chunks=leaf.chunks,
        microcredits=leaf.microcredits,
        status=credit.status,
        status_leaf=credit.index if credit.changed_by is None else credit.changed_by,
        execution=leaf.execution,
        audit_ppm=leaf.audit_ppm,
        selected=credit.selected,
        verdict=verdict.leaf.verdict if verdict else None,
        reason=verdict.leaf.reason if verdict else None,
        why=verdict.leaf.why if verdict else None,
        verdict_leaf=verdict.leaf_index if verdict else None,
    )
