"""Taking credit back because of a verdict, and giving it back when that is overturned.

Invariants:

* Rows and leaves say the same, in the caller's transaction: whatever a leaf lists changes here.
* Credit that is final is taken back only if that very work was false.
* What a verdict took is given back only by the overturning of that verdict, and only once no other
  conviction of the donor stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.schema import (
    FINAL,
    FORFEITED,
    PENDING,
    UNPAID,
    AuditRow,
    OtherCreditRow,
    ReducerAuditRow,
)
from coordinator.schema import ContributionRow, WorkerRow
from coordinator.turn import Turn
from ledger.credit import training_microcredits
from ledger.leaf import MAX_CREDITS_IN_LEAF
from ledger.records import ReversalLeaf
from protocol.audit_policy import Verdict
from protocol.identity import PeerId

CreditRow = ContributionRow | OtherCreditRow


def forfeit(turn: Turn, donor: PeerId, subject: Sequence[CreditRow], verdict_leaf: int) -> None:
    """Take back all that is pending of a donor, and the work that was proven false.

    Args:
        turn: the caller's transaction.
        donor: who was convicted.
        subject: credit of the false work itself.
        verdict_leaf: index of the leaf that convicts.
    """
    false = [row for row in subject if row.credit in (PENDING, FINAL)]
    taken = {row.leaf_index: row for row in [*_held(turn.session, donor, PENDING), *false]}
    _reverse(turn, donor, taken.values(), FORFEITED, "failed_audit", verdict_leaf)


def leave_unpaid(turn: Turn, donor: PeerId, row: CreditRow, verdict_leaf: int) -> None:
    """The bytes of one unit cannot be had: it alone is not paid."""
    if row.credit == PENDING:
        _reverse(turn, donor, [row], UNPAID, "unavailable", verdict_leaf)


def give_back(turn: Turn, donor: PeerId) -> None:
    """Restore what convictions of a donor took, once all of them are overturned."""
    session = turn.session
    if standing_convictions(session, donor):
        return
    rows = [row for row in _held(session, donor, FORFEITED) if not _was_unavailable(session, row)]
    rows.sort(key=lambda row: row.reversed_by or 0)
    for verdict_leaf, taken in groupby(rows, key=lambda row: row.reversed_by):
        overturning = _overturning_leaf(session, verdict_leaf)
        _reverse(turn, donor, list(taken), PENDING, "overturned", overturning)


def standing_convictions(session: Session, donor: PeerId) -> list[PeerId]:
    """Devices of a donor that a verdict convicts which no appeal has overturned."""
    overturned = select(AuditRow.assignment_id).where(AuditRow.verdict == Verdict.OVERTURNED)
    training = select(AuditRow.worker).where(
        AuditRow.donor == donor,
        AuditRow.verdict == Verdict.FAILED,
        AuditRow.assignment_id.not_in(overturned),
    )
    reducing = (
        select(ReducerAuditRow.reducer)
        .join(WorkerRow, WorkerRow.worker == ReducerAuditRow.reducer)
        .where(WorkerRow.donor == donor, ReducerAuditRow.verdict == Verdict.FAILED)
    )
    return [*session.scalars(training), *session.scalars(reducing)]


def _held(session: Session, donor: PeerId, status: str) -> list[CreditRow]:
    merged = session.scalars(
        select(ContributionRow)
        .join(WorkerRow, WorkerRow.worker == ContributionRow.worker)
        .where(ContributionRow.credit == status, WorkerRow.donor == donor)
    )
    other = session.scalars(
        select(OtherCreditRow).where(OtherCreditRow.credit == status, OtherCreditRow.donor == donor)
    )
    return [*merged, *other]


def _was_unavailable(session: Session, row: CreditRow) -> bool:
    """Whether it was audited meanwhile, and its bytes could not be had."""
    if isinstance(row, OtherCreditRow):
        return False
    audits = select(AuditRow.audit_id).where(
        AuditRow.assignment_id == row.assignment_id,
        AuditRow.appeal == 0,
        AuditRow.verdict == Verdict.UNAVAILABLE,
    )
    return session.scalar(audits) is not None


def _overturning_leaf(session: Session, verdict_leaf: int | None) -> int:
    convicting = select(AuditRow.assignment_id).where(AuditRow.leaf_index == verdict_leaf)
    overturning = session.scalars(
        select(AuditRow.leaf_index).where(
            AuditRow.assignment_id.in_(convicting), AuditRow.verdict == Verdict.OVERTURNED
        )
    ).one()
    assert overturning is not None
    return overturning


def _reverse(
    turn: Turn,
    donor: PeerId,
    rows: Iterable[CreditRow],
    status: str,
    reason: str,
    verdict_leaf: int,
) -> None:
    ordered = sorted(rows, key=lambda row: row.leaf_index or 0)
    restored = status == PENDING
    leaves = []
    for first in range(0, len(ordered), MAX_CREDITS_IN_LEAF):
        part = ordered[first : first + MAX_CREDITS_IN_LEAF]
        leaves.append(
            ReversalLeaf(
                run_id=turn.context.run_id.hex(),
                at_s=int(turn.now_s),
                donor=donor,
                credits=tuple(row.leaf_index or 0 for row in part),
                reason=reason,
                verdict_leaf=verdict_leaf,
                restored=restored,
                microcredits=sum(_microcredits(turn, row) for row in part),
            )
        )
    for row in ordered:
        row.credit = status
        row.reversed_by = None if restored else verdict_leaf
    turn.session.flush()
    turn.context.log.append(turn.session, leaves)
    turn.then.leaves_added |= bool(leaves)


def _microcredits(turn: Turn, row: CreditRow) -> int:
    if isinstance(row, OtherCreditRow):
        return row.microcredits
    manifest = turn.context.manifest
    return training_microcredits(row.tokens, manifest.model_config_json, manifest.sequence_length)
