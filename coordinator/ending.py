"""What a round lets go of when it ends, however it ended."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator import leases
from coordinator.schema import (
    COMMITTED,
    EXPIRED,
    TRAINING,
    UNMERGED,
    AssignmentRow,
    ResultRow,
    RosterRow,
)


def free_leases(session: Session, number: int) -> None:
    """Whatever a round has not merged is free again (protocol.md section 4)."""
    rows = session.scalars(
        select(AssignmentRow).where(
            AssignmentRow.round == number, AssignmentRow.status.in_((TRAINING, COMMITTED))
        )
    )
    for row in rows.all():
        row.status = UNMERGED if row.status == COMMITTED else EXPIRED
        leases.release(session, row.assignment_id)


def drop_results(session: Session, number: int) -> None:
    """The bytes have done their work; the signatures over their digests stay."""
    groups = select(RosterRow.group_id).where(RosterRow.round == number)
    session.execute(update(ResultRow).where(ResultRow.group_id.in_(groups)).values(encoded=None))
