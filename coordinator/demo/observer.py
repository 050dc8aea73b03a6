"""What the demonstration sees: the coordinator's database, read like any organiser's tool would."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.audit.schema import FINAL, AuditRow, ReducerAuditRow
from coordinator.round_state import Phase
from coordinator.schema import (
    MERGED,
    AssignmentRow,
    ContributionRow,
    ControlRow,
    ReportRow,
    RoundRow,
    StateRow,
    WorkerRow,
)
from protocol.audit_policy import Verdict
from protocol.dataset import SequenceReader


@dataclass(frozen=True)
class WorkerView:
    """One device as it last reported itself."""

    peer_id: str
    steps_done: int
    merged_rounds: tuple[int, ...]


@dataclass(frozen=True)
class RoundView:
    number: int
    phase: str
    members: int
    tokens: int
    loss: float | None  # of the state it led to, nats per token
    reason: str


@dataclass(frozen=True)
class AuditsView:
    """Audits of contributions and of results so far."""

    open: int
    passed: int
    other: int
    final: int  # contributions whose credit is final


@dataclass(frozen=True)
class Snapshot:
    rounds: tuple[RoundView, ...]
    workers: dict[str, WorkerView]  # by display name
    audits: AuditsView
    first_loss: float | None
    finished: bool

    @property
    def current(self) -> RoundView | None:
        return self.rounds[-1] if self.rounds else None

    @property
    def settled(self) -> tuple[RoundView, ...]:
        return tuple(view for view in self.rounds if view.phase == Phase.SETTLED)


def observe(session: Session) -> Snapshot:
    """Read the state of the run."""
    losses = {
        row.settled_rounds: row.validation_loss for row in session.scalars(select(StateRow)).all()
    }
    rounds = tuple(
        RoundView(
            row.number,
            row.phase,
            row.members,
            row.tokens,
            losses.get(row.settled_after or 0) if row.phase == Phase.SETTLED else None,
            row.reason,
        )
        for row in session.scalars(select(RoundRow).order_by(RoundRow.number))
    )
    merged: dict[str, list[int]] = {}
    query = select(AssignmentRow.worker, AssignmentRow.round).where(AssignmentRow.status == MERGED)
    for worker, number in session.execute(query.order_by(AssignmentRow.round)):
        merged.setdefault(worker, []).append(number)
    workers = {
        row.display_name: WorkerView(row.worker, row.steps_done, tuple(merged.get(row.worker, ())))
        for row in session.scalars(select(WorkerRow).where(~WorkerRow.anchor))
    }
    finished = session.scalars(select(ControlRow.finished)).first() or False
    return Snapshot(rounds, workers, _audits(session), losses.get(0), finished)


def _audits(session: Session) -> AuditsView:
    verdicts = Counter[str | None]()
    for table in (AuditRow, ReducerAuditRow):
        verdicts.update(session.scalars(select(table.verdict)))
    final = select(func.count()).where(ContributionRow.credit == FINAL)
    passed, still_open = verdicts[Verdict.PASSED], verdicts[None]
    return AuditsView(
        open=still_open,
        passed=passed,
        other=verdicts.total() - passed - still_open,
        final=session.scalar(final) or 0,
    )


@dataclass(frozen=True)
class Agreement:
    """How the members' own states compare with the coordinator's, over all settled rounds."""

    memberships: int  # merged contributions: each owes one report
    agreeing: int
    differing: int


def agreement(session: Session) -> Agreement:
    """Count members' reports about the rounds in which their work was merged."""
    merged = (
        select(ReportRow.agrees, func.count())
        .select_from(AssignmentRow)
        .outerjoin(
            ReportRow,
            (ReportRow.round == AssignmentRow.round) & (ReportRow.worker == AssignmentRow.worker),
        )
        .where(AssignmentRow.status == MERGED)
        .group_by(ReportRow.agrees)
    )
    counts: dict[bool | None, int] = dict(session.execute(merged).tuples().all())
    return Agreement(sum(counts.values()), counts.get(True, 0), counts.get(False, 0))


def unigram_entropy(reader: SequenceReader) -> float:
    """Cross-entropy of the validation shard under its own token frequencies, nats per token.

    The best that a model without any context could reach on this very text, so a loss below it
    means that the model has learnt from context.
    """
    counts = np.bincount(reader.validation().reshape(-1))
    shares = counts[counts > 0] / counts.sum()
    return float(-math.fsum(share * math.log(share) for share in shares))
