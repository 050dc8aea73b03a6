"""What the pages of rounds show: who was in one, and what audits said of them.

Who was selected is recomputed from the published draw, never read from anywhere.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field

from ledger.campaigns import permille
from ledger.fold import Round
from ledger.leaderboard.held import Held, Paged, held
from ledger.leaderboard.reader import Reading
from ledger.tally import Credit, Status, Tally

_DAY_S = 86_400


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


class Machines(BaseModel):
    """Devices of one class."""

    device_class: str
    devices: int = Field(description="ever enrolled")
    active: int = Field(description="credited in the newest 24 hours")


class Overhead(BaseModel):
    """What is not progress of the model, in thousandths."""

    audited_permille: int = Field(description="tokens done again by auditors, of merged ones")
    unmerged_permille: int = Field(description="credit of first units, which no model has, of all")
    rejected_permille: int = Field(description="credit taken back, of all")


class Rounds(Paged):
    """One page of rounds, newest first, and who works."""

    rounds: list[RoundRow]
    machines: list[Machines]
    overhead: Overhead


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
        machines=_machines(reading),
        overhead=_overhead(reading),
    )


def _machines(reading: Reading) -> list[Machines]:
    """Devices by class, most first; ties by name."""
    since_s = reading.board.newest_s - _DAY_S
    every, active = Counter[str](), Counter[str]()
    for worker in reading.board.workers.values():
        every[worker.device_class] += 1
        active[worker.device_class] += (worker.last_credit_s or 0) > since_s
    return [
        Machines(device_class=name, devices=count, active=active[name])
        for name, count in sorted(every.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def _overhead(reading: Reading) -> Overhead:
    board, total = reading.board, reading.board.total
    credited = total.training_microcredits + total.reducing_microcredits
    credited = max(1, credited + total.probation_microcredits)
    taken = total.forfeited_microcredits + total.unpaid_microcredits
    return Overhead(
        audited_permille=permille(board.audits.audited_tokens, max(1, board.merged_tokens)),
        unmerged_permille=permille(total.probation_microcredits, credited),
        rejected_permille=permille(taken, credited),
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
