"""Replays to be done, and who does them: the queue between the coordinator and its auditors.

Invariants:

* A job is held by one auditor at a time, under a lease; whoever is silent for longer loses it.
  The first result counts; one that comes after the lease went to somebody else is dropped.
* An auditor gets a job that should be done by somebody else (another auditor, another execution
  class) only while nobody better suited is alive; a job that insists waits for another class.
* A suspended auditor gets nothing, and counts as nobody.
* What is replayed because of a conviction comes after everything else: it may be thousands of units
  at once, and whoever gives a key away must not make the others' audits wait for them.
* A :class:`JobSpec` holds public inputs only: nothing that the worker computed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from coordinator.audit.schema import (
    DONE,
    QUEUED,
    RUNNING,
    AuditJobRow,
    AuditorRow,
    AuditRow,
    ProbationRow,
)
from coordinator.schema import AssignmentRow, ContributionRow
from protocol.audit_policy import Why, check_execution
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire

ALIVE_S = 180.0
"""An auditor that was heard of within this time is waited for, where it suits a job better."""

WEIGHTS_LOST, DATA_LOST, DIVERGED, NO_UNIT, GAVE_UP = (
    "weights_lost",
    "data_lost",
    "diverged",
    "no_unit",
    "gave_up",
)
"""Why a replay failed (``AuditResult.failed``): the organiser's files are gone, the numbers left
the finite ones, the assignment is outside the dataset, or auditor after auditor died of it."""

_REFRESH_S = 15.0
"""How old a note of an auditor's life may become: polls in between write nothing."""


@dataclass(frozen=True)
class JobSpec:
    """One replay: the public inputs of a unit, and what to compute of it."""

    job_id: bytes
    audit_id: bytes
    attempt: int  # 1 for the first auditor that tries
    round: int  # of the assignment: a part of the rounding noise's key
    worker: PeerId  # the other part
    state_digest: bytes  # of the weights that the unit starts from
    start_sequence: int
    steps: int  # really done
    seed: int
    tokens_base: int
    projection_seed: bytes


def claim(
    session: Session, auditor: PeerId, execution: str, now_s: float, lease_s: float
) -> JobSpec | None:
    """Take the first job that this auditor may do; also says that the auditor is alive.

    Args:
        session: in a transaction; its commit makes the claim.
        auditor: who asks.
        execution: the class in which it replays.
        now_s: seconds since the epoch.
        lease_s: how long the job is this auditor's, unless it renews.

    Returns:
        None when there is nothing to do for it.

    Raises:
        BadRecord: ``execution`` is no execution class.
    """
    if note_alive(session, auditor, execution, now_s).suspended_reason is not None:
        return None
    peers = _alive(session, now_s)
    waiting = session.scalars(
        select(AuditJobRow)
        .join(AuditRow, AuditRow.audit_id == AuditJobRow.audit_id)
        .where(_claimable(now_s))
        .order_by(AuditRow.why == Why.RETAINED, AuditJobRow.created_at_s)
    ).all()
    for row in waiting:
        if _may_do(row, auditor, execution, peers) and _take(session, row, now_s):
            row.status, row.auditor = RUNNING, auditor
            row.leased_until_s = now_s + lease_s
            row.attempts += 1
            return _spec(session, row)
    return None


def note_alive(session: Session, auditor: PeerId, execution: str, now_s: float) -> AuditorRow:
    """Register an auditor, or note that it still lives.

    Raises:
        BadRecord: ``execution`` is no execution class.
    """
    row = session.get(AuditorRow, auditor)
    if row is None:
        row = AuditorRow(auditor=auditor, execution=check_execution(execution), last_seen_s=now_s)
        session.add(row)
        session.flush()
    elif row.execution != execution or now_s - row.last_seen_s >= _REFRESH_S:
        row.execution, row.last_seen_s = check_execution(execution), now_s
    return row


def renew(
    session: Session, job_id: bytes, auditor: PeerId, execution: str, now_s: float, lease_s: float
) -> bool:
    """Keep a job while it is being done.

    Returns:
        Whether it is still this auditor's; if not, the work on it is for nothing.
    """
    note_alive(session, auditor, execution, now_s)
    row = _held(session, job_id, auditor)
    if row is None:
        return False
    row.leased_until_s = now_s + lease_s
    return True


def finish(
    session: Session, job_id: bytes, auditor: PeerId, result: wire.Envelope, now_s: float
) -> bool:
    """Keep the signed AuditResult of a job.

    Returns:
        Whether it counts: the job may meanwhile be another auditor's, or its audit be over.
    """
    row = _held(session, job_id, auditor)
    if row is None:
        return False
    row.status, row.leased_until_s = DONE, None
    row.result, row.blob = result.SerializeToString(), job_id.hex()
    row.finished_at_s = now_s
    session.execute(
        update(AuditorRow)
        .where(AuditorRow.auditor == auditor)
        .values(jobs_done=AuditorRow.jobs_done + 1, last_seen_s=now_s)
    )
    return True


def give_back(session: Session, auditor: PeerId, *, counted: bool) -> int:
    """Put what an auditor has under way back into the queue.

    Args:
        session: in a transaction.
        auditor: who had it; a process does one job at a time, so more were left by earlier ones.
        counted: whether it was a failed attempt; an orderly end is none.

    Returns:
        How many jobs went back.
    """
    attempts = AuditJobRow.attempts - (0 if counted else 1)
    given = session.execute(
        update(AuditJobRow)
        .where(AuditJobRow.status == RUNNING, AuditJobRow.auditor == auditor)
        .values(status=QUEUED, auditor=None, leased_until_s=None, attempts=attempts)
    )
    assert isinstance(given, CursorResult)
    return given.rowcount


def is_gone(session: Session, job_id: bytes) -> bool:
    """Whether the audit was decided without this job: then nobody will ask for its replay."""
    return session.get(AuditJobRow, job_id) is None


def backlog(session: Session, *, retained: bool = True) -> int:
    """Replays that are still to be done, under way ones included.

    Args:
        session: in a transaction.
        retained: with those that a conviction asked for, which make nobody else's wait.
    """
    waiting = select(func.count()).select_from(AuditJobRow).where(AuditJobRow.status != DONE)
    if not retained:
        waiting = waiting.join(AuditRow, AuditRow.audit_id == AuditJobRow.audit_id).where(
            AuditRow.why != Why.RETAINED
        )
    return session.scalar(waiting) or 0


def _claimable(now_s: float) -> ColumnElement[bool]:
    return or_(
        AuditJobRow.status == QUEUED,
        and_(AuditJobRow.status == RUNNING, AuditJobRow.leased_until_s < now_s),
    )


def _take(session: Session, row: AuditJobRow, now_s: float) -> bool:
    """Lock the row, unless another auditor was faster.

    PostgreSQL skips rows that others hold. On SQLite the whole transaction holds the write lock
    from its start (:mod:`coordinator.database`), so the row is as it was read.
    """
    locked = (
        select(AuditJobRow)
        .where(AuditJobRow.job_id == row.job_id, _claimable(now_s))
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return session.scalars(locked).one_or_none() is not None


def _held(session: Session, job_id: bytes, auditor: PeerId) -> AuditJobRow | None:
    return session.scalars(
        select(AuditJobRow)
        .where(
            AuditJobRow.job_id == job_id,
            AuditJobRow.status == RUNNING,
            AuditJobRow.auditor == auditor,
        )
        .with_for_update()
    ).one_or_none()


def _alive(session: Session, now_s: float) -> list[tuple[PeerId, str]]:
    rows = session.execute(
        select(AuditorRow.auditor, AuditorRow.execution).where(
            AuditorRow.suspended_reason.is_(None), AuditorRow.last_seen_s > now_s - ALIVE_S
        )
    )
    return [(row[0], row[1]) for row in rows]


def _may_do(
    row: AuditJobRow, auditor: PeerId, execution: str, peers: list[tuple[PeerId, str]]
) -> bool:
    """Whether nobody alive suits the job better; somebody always may, unless it insists."""
    able = [(auditor, execution), *peers]
    if row.insists:
        avoided = json.loads(row.avoid_executions)
        able = [peer for peer in able if peer[1] not in avoided]
    mine = _unsuitability(row, auditor, execution)
    return (auditor, execution) in able and all(mine <= _unsuitability(row, *peer) for peer in able)


def _unsuitability(row: AuditJobRow, auditor: PeerId, execution: str) -> int:
    """0: suits. A replay by the same auditor tells less than one by another of its class."""
    return 2 * (auditor in json.loads(row.avoid_auditors)) + (
        execution in json.loads(row.avoid_executions)
    )


def _spec(session: Session, row: AuditJobRow) -> JobSpec:
    audit = session.get_one(AuditRow, row.audit_id)
    assignment, steps = _unit(session, audit)
    return JobSpec(
        job_id=row.job_id,
        audit_id=row.audit_id,
        attempt=row.attempts,
        round=assignment.round,
        worker=assignment.worker,
        state_digest=assignment.state_digest,
        start_sequence=assignment.start_sequence,
        steps=steps,
        seed=assignment.seed,
        tokens_base=assignment.tokens_base,
        projection_seed=audit.projection_seed,
    )


def _unit(session: Session, audit: AuditRow) -> tuple[wire.Assignment, int]:
    """What was assigned, and how many steps of it were done."""
    if audit.subject == "probation":
        row = session.get_one(ProbationRow, audit.assignment_id)
        assert row.contribution is not None
        contribution = wire.Contribution.FromString(
            wire.Envelope.FromString(row.contribution).payload
        )
        steps = contribution.steps
        data = row.envelope
    else:
        steps = session.get_one(ContributionRow, audit.assignment_id).steps
        data = session.get_one(AssignmentRow, audit.assignment_id).envelope
    return wire.Assignment.FromString(wire.Envelope.FromString(data).payload), steps
