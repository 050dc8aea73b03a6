"""When pending credit becomes final.

The rule, from the run's ``verification`` section: ``pending_s`` have passed since it was credited,
and either ``pending_contributions`` later contributions of its donor were credited or
``last_pending_s`` have passed since the donor's last one.

Invariants:

* Credit of training waits until its round's draw is published and, if it was drawn, until the
  audit is decided. What an audit spoke against is pending no more, so it never gets here.
* Times are taken so that the public record, which rounds them down to seconds, agrees.
* One look costs one query over what is pending, once in a while.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import structlog
from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from coordinator.audit.reversal import CreditRow
from coordinator.audit.schema import (
    DECIDED,
    FINAL,
    FORFEITED,
    PENDING,
    UNPAID,
    AuditRow,
    DrawRow,
    OtherCreditRow,
    ReducerAuditRow,
)
from coordinator.schema import ContributionRow, ControlRow, WorkerRow
from coordinator.turn import Turn
from ledger.leaf import MAX_CREDITS_IN_LEAF
from ledger.records import FinalLeaf
from protocol.identity import PeerId
from protocol.manifest import VerificationSpec

_LOOK_EVERY_S = 5.0

_COUNTED = (PENDING, UNPAID, FORFEITED)
"""Contributions that are looked at. Later ones that are final already are not counted, so that a
look costs what is pending and not what ever was; that only makes us wait longer."""

_log = structlog.get_logger()


def finish_credit(turn: Turn) -> None:
    """Make credit final whose time has come; does nothing more often than every few seconds."""
    policy = turn.context.manifest.verification
    control = turn.session.get_one(ControlRow, 1)
    # A run with short times, as in a demonstration, is looked at as often as it takes.
    every_s = min(_LOOK_EVERY_S, policy.last_pending_s / 100)
    if 0 <= turn.now_s - control.finality_at_s < every_s:
        return
    control.finality_at_s = turn.now_s
    due = _due(turn.session, policy, int(turn.now_s))
    leaves = [
        FinalLeaf(
            run_id=turn.context.run_id.hex(),
            at_s=int(turn.now_s),
            donor=donor,
            credits=tuple(sorted(row.leaf_index or 0 for row in rows)),
        )
        for donor, rows in due.items()
    ]
    for rows in due.values():
        for row in rows:
            row.credit = FINAL
    if leaves:
        turn.context.log.append(turn.session, leaves)
        turn.then.leaves_added = True
        _log.info("credit_final", donors=len(leaves), credits=sum(map(len, due.values())))


def _due(session: Session, policy: VerificationSpec, now_s: int) -> dict[PeerId, list[CreditRow]]:
    """Credit to make final now, by donor; the oldest first, as much as leaves hold."""
    due: dict[PeerId, list[CreditRow]] = defaultdict(list)
    for row, donor in _due_training(session, policy, now_s):
        due[donor].append(row)
    for other in _due_other(session, policy, now_s):
        if len(due[other.donor]) < MAX_CREDITS_IN_LEAF:
            due[other.donor].append(other)
    return {donor: rows for donor, rows in due.items() if rows}


def _due_training(
    session: Session, policy: VerificationSpec, now_s: int
) -> Sequence[tuple[ContributionRow, PeerId]]:
    donor, newest_first = WorkerRow.donor, ContributionRow.leaf_index.desc()
    place = func.row_number().over(partition_by=donor, order_by=newest_first)
    last_s = func.max(ContributionRow.credited_at_s).over(partition_by=donor)
    placed = (
        select(
            ContributionRow.assignment_id,
            donor,
            (place - 1).label("later"),
            last_s.label("last_s"),
        )
        .join(WorkerRow, WorkerRow.worker == ContributionRow.worker)
        .where(ContributionRow.credit.in_(_COUNTED))
        .subquery()
    )
    published = exists().where(DrawRow.round == ContributionRow.round, DrawRow.published)
    undecided = exists().where(
        AuditRow.assignment_id == ContributionRow.assignment_id, AuditRow.phase != DECIDED
    )
    rows = session.execute(
        select(ContributionRow, placed.c.donor)
        .join(placed, placed.c.assignment_id == ContributionRow.assignment_id)
        .where(ContributionRow.credit == PENDING)
        .where(ContributionRow.credited_at_s <= now_s - policy.pending_s)
        .where(
            or_(
                placed.c.later >= policy.pending_contributions,
                placed.c.last_s <= now_s - policy.last_pending_s,
            )
        )
        .where(published, ~undecided)
        .order_by(ContributionRow.leaf_index)
        .limit(MAX_CREDITS_IN_LEAF)
    )
    return [(row, donor) for row, donor in rows]


def _due_other(session: Session, policy: VerificationSpec, now_s: int) -> Sequence[OtherCreditRow]:
    """For reducing and probation; a donor that never trains waits from each credit on."""
    of_donor = (
        select(ContributionRow)
        .join(WorkerRow, WorkerRow.worker == ContributionRow.worker)
        .where(WorkerRow.donor == OtherCreditRow.donor, ContributionRow.credit.in_(_COUNTED))
        .correlate(OtherCreditRow)
    )
    after = ContributionRow.leaf_index > OtherCreditRow.leaf_index
    later = of_donor.with_only_columns(func.count()).where(after).scalar_subquery()
    last_s = of_donor.with_only_columns(func.max(ContributionRow.credited_at_s)).scalar_subquery()
    quiet_since = now_s - policy.last_pending_s
    undecided = exists().where(
        ReducerAuditRow.round == OtherCreditRow.round,
        ReducerAuditRow.reducer == OtherCreditRow.worker,
        ReducerAuditRow.phase != DECIDED,
    )
    rows = session.scalars(
        select(OtherCreditRow)
        .where(OtherCreditRow.credit == PENDING)
        .where(OtherCreditRow.credited_at_s <= now_s - policy.pending_s)
        .where(
            or_(
                later >= policy.pending_contributions,
                (OtherCreditRow.credited_at_s <= quiet_since)
                & (func.coalesce(last_s, 0.0) <= quiet_since),
            )
        )
        .where(~undecided)
        .order_by(OtherCreditRow.leaf_index)
        .limit(MAX_CREDITS_IN_LEAF)
    )
    return rows.all()
