"""The tolerance table in the database, and what calibrating reads from there."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.audit.schema import ToleranceRow
from coordinator.schema import ContributionRow, StateRow
from protocol.errors import BadRecord, UsageError
from protocol.manifest import RunManifest
from protocol.tolerance import ToleranceTable


def load_table(session: Session) -> ToleranceTable | None:
    """The run's bounds; None before the first calibration."""
    row = session.get(ToleranceRow, 1)
    return None if row is None else ToleranceTable.parse(row.document)


def store_table(session: Session, table: ToleranceTable, now_s: float) -> None:
    """Keep a table; its pairs replace those of the same name, others stay as they were.

    So every kind of machine can be calibrated where there is one.
    """
    row = session.get(ToleranceRow, 1)
    if row is None:
        session.add(ToleranceRow(id=1, document=table.to_json(), made_at_s=now_s))
        return
    row.document = _merged(row.document, table).to_json()
    row.made_at_s = now_s


def is_outgrown(table: ToleranceTable, settled_rounds: int, steps: int) -> bool:
    """Whether to calibrate again: the run is twice as old, or its units are longer.

    Rounding and cheats change most early in training, so doubling keeps up and costs little.
    """
    return settled_rounds >= 2 * (table.settled_rounds + 1) or steps > 1.25 * table.steps


def newest_state(session: Session) -> StateRow:
    """The state that the running round starts from.

    Raises:
        UsageError: there is none.
    """
    row = session.scalar(select(StateRow).order_by(StateRow.settled_rounds.desc()).limit(1))
    if row is None:
        raise UsageError("the database holds no state: was it made by 'coordinator init'?")
    return row


def usual_steps(session: Session, manifest: RunManifest) -> int:
    """The most steps that any contribution had: what bounds should be measured at.

    A round may allow far more than anybody does in its time, and shorter units of lazy work are
    easier to tell apart.
    """
    most = session.scalar(select(func.max(ContributionRow.steps)))
    return min(most or manifest.inner.max_steps, manifest.inner.max_steps)


def _merged(document: str, table: ToleranceTable) -> ToleranceTable:
    try:
        before = ToleranceTable.parse(document)
    except BadRecord:  # of another version: measured anew
        return table
    if before.run_id != table.run_id:
        return table
    replaced = {(entry.first, entry.second) for entry in table.entries}
    kept = [e for e in before.entries if (e.first, e.second) not in replaced]
    return table.model_copy(update={"entries": (*kept, *table.entries)})
