"""Beginning an audit: its row, and the first replay in the queue.

Invariants:

* Ids are derived from what is audited, so that beginning one again finds the one that there is.
* Nothing of the worker's bytes is looked at here, and nobody is told what will be opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import structlog
from sqlalchemy.orm import Session

from coordinator.audit.schema import QUEUED, WAITING, AuditJobRow, AuditRow
from protocol.audit_policy import Why

ID_BYTES = 16

_log = structlog.get_logger()


def begin_audit(
    session: Session,
    *,
    subject: str,
    assignment_id: bytes,
    round_: int,
    worker: str,
    donor: str,
    execution: str,
    why: Why,
    draw: bytes,
    projection_seed: bytes,
    now_s: float,
    group_id: bytes = b"",
    second: bool = False,
    appeal: int = 0,
    phase: str = WAITING,
    chunks: str = "[]",
    avoid_executions: Sequence[str] = (),
) -> AuditRow:
    """Put a contribution up for audit; does nothing if it is already.

    Args:
        session: in a transaction.
        subject: ``training`` or ``probation``.
        assignment_id: of the contribution.
        round_: of the assignment.
        worker: whose contribution.
        donor: for whom the worker works.
        execution: class of the contribution.
        why: it is audited.
        draw: 32 bytes that draw the chunks to open.
        projection_seed: 32 bytes.
        now_s: the coordinator's clock.
        group_id: of the reduce; empty for a probation unit.
        second: whether a second auditor was drawn.
        appeal: 0 for the first audit of a contribution; then 1, 2 ...
        phase: WAITING, or OPENING where the chunks are opened already.
        chunks: JSON, with OPENING.
        avoid_executions: classes that the replay must not be in; it waits for another.
    """
    audit_id = audit_id_of(assignment_id, appeal)
    row = session.get(AuditRow, audit_id)
    if row is not None:
        return row
    row = AuditRow(
        audit_id=audit_id,
        subject=subject,
        assignment_id=assignment_id,
        appeal=appeal,
        round=round_,
        group_id=group_id,
        worker=worker,
        donor=donor,
        execution=execution,
        why=why,
        projection_seed=projection_seed,
        draw=draw,
        second=second,
        phase=phase,
        chunks=chunks,
        created_at_s=now_s,
        phase_since_s=now_s,
    )
    session.add(row)
    session.flush()  # the job refers to it
    _queue_replay(session, audit_id, avoid_executions, now_s)
    _log.info("audit_opened", round=round_, worker=worker, subject=subject, why=why, appeal=appeal)
    return row


def _queue_replay(
    session: Session, audit_id: bytes, avoid_executions: Sequence[str], now_s: float
) -> None:
    session.add(
        AuditJobRow(
            job_id=_derived("job", audit_id, 1),
            audit_id=audit_id,
            ordinal=1,
            avoid_executions=json.dumps(sorted(avoid_executions)),
            insists=bool(avoid_executions),
            status=QUEUED,
            created_at_s=now_s,
        )
    )
    session.flush()


def audit_id_of(assignment_id: bytes, appeal: int = 0) -> bytes:
    """Id of the audit of a contribution, 16 bytes."""
    return _derived("audit", assignment_id, appeal)


def result_audit_id(group_id: bytes, chunk: int, ordinal: int = 0) -> bytes:
    """Id of the audit of a result chunk, 16 bytes."""
    return _derived(f"result {ordinal}", group_id, chunk)


def _derived(label: str, subject: bytes, number: int) -> bytes:
    name = f"barnraise-{label}\0".encode() + subject + number.to_bytes(8, "big")
    return hashlib.sha256(name).digest()[:ID_BYTES]
