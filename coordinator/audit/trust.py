"""Trust: consecutive audited passes of a device, for each of its execution classes.

Invariants:

* Only audits raise it, and only a conviction takes it away; what cannot be had or cannot be
  decided leaves it as it is, and makes the next audit certain.
* A conviction takes it in every class. The public record gives the same numbers, or larger ones:
  what a convicted device did before counts there, and not here.

Source: BOINC's adaptive replication (docs/verification.md).
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.schema import TrustRow
from coordinator.lookups import rows_by
from protocol.audit_policy import Why
from protocol.identity import PeerId


def passes_of(session: Session, worker: PeerId, execution: str) -> int:
    """Consecutive audited passes of a device in one execution class."""
    rows = rows_by(session, TrustRow.worker, worker)
    return sum(row.passes for row in rows if row.execution == execution)


def best_passes(session: Session, worker: PeerId) -> int:
    """The same in the class in which it has most: for what does not depend on arithmetic."""
    return max((row.passes for row in rows_by(session, TrustRow.worker, worker)), default=0)


def add_pass(session: Session, worker: PeerId, execution: str) -> None:
    """An audit was passed."""
    _row(session, worker, execution).passes += 1


def count_audit(session: Session, worker: PeerId, execution: str) -> None:
    """An audit was decided, whatever it said."""
    _row(session, worker, execution).audits += 1


def reset(session: Session, worker: PeerId) -> None:
    """A conviction: no trust in any class."""
    for row in _rows(session, worker):
        row.passes = 0


def watch(session: Session, worker: PeerId, execution: str, why: Why) -> None:
    """Make the next audit of this device and class certain, once."""
    _row(session, worker, execution).watch = why


def rows_of(session: Session, workers: Collection[PeerId]) -> dict[tuple[PeerId, str], TrustRow]:
    """What is known of these devices, by device and execution class."""
    rows = session.scalars(select(TrustRow).where(TrustRow.worker.in_(workers)))
    return {(row.worker, row.execution): row for row in rows}


def clear_watch(session: Session, worker: PeerId, execution: str) -> None:
    """The audit that was to be certain has been opened."""
    row = session.get(TrustRow, (worker, execution))
    if row is not None:
        row.watch = ""


def _rows(session: Session, worker: PeerId) -> list[TrustRow]:
    return list(rows_of(session, [worker]).values())


def _row(session: Session, worker: PeerId, execution: str) -> TrustRow:
    row = session.get(TrustRow, (worker, execution))
    if row is None:
        row = TrustRow(worker=worker, execution=execution, passes=0, audits=0, watch="")
        session.add(row)
        session.flush()
    return row
