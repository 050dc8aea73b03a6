"""What follows from a decision: whom else it concerns, what it quotes, what is kept no longer.

Invariants:

* A signed projection that proven bytes contradict convicts its signer, whatever the verdict on the
  worker.
* Bytes of a worker stay only where they are the evidence of a FAILED; replays only until appeals
  are heard no more. First the file goes, then its name.
* Signed answers stay for as long as appeals are heard, so that anybody can do a fresh audit again;
  those of a FAILED stay for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import structlog
from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from coordinator.audit.case import Decide
from coordinator.audit.challenges import withdraw
from coordinator.audit.compare import Judged
from coordinator.audit.facts import audits_of, opened_chunks
from coordinator.audit.schema import (
    DECIDED,
    DONE,
    AuditJobRow,
    AuditorRow,
    AuditRow,
    ChallengeRow,
    OpeningRow,
    ReducerAuditRow,
)
from coordinator.audit.verdict import convict_reducer
from coordinator.turn import Turn
from protocol.audit_policy import Verdict
from protocol.wire import records_pb2 as wire

OUTVOTED_TWICE = 2
"""An auditor against whom two others agreed so often gets no more jobs."""

_DELETED_PER_STEP = 16
_FORGOTTEN_PER_STEP = 64

_log = structlog.get_logger()


def findings(
    session: Session, audit: AuditRow, decision: Decide, judged: Judged | None
) -> list[wire.Finding]:
    """What a verdict quotes: the comparisons of the replays that decided."""
    if judged is None:
        return []
    theirs = opened_chunks(session, audit)
    return [
        wire.Finding(
            what=finding.what,
            chunk=finding.chunk,
            distance=finding.distance,
            bound=finding.bound,
            sha256=b""
            if finding.what == "pooled"
            else hashlib.sha256(theirs[finding.chunk]).digest(),
        )
        for ordinal in decision.by
        if ordinal in judged.comparisons
        for finding in judged.comparisons[ordinal].findings
        if finding.what == "pooled" or finding.chunk in theirs
    ]


def convict_liars(turn: Turn, audit: AuditRow, judged: Judged) -> None:
    """Signed projections against proven bytes. Of a unit that was not reduced, the bytes decide."""
    theirs = opened_chunks(turn.session, audit)
    for lie in judged.false_projections if audit.group_id else ():
        digest = hashlib.sha256(theirs[lie.chunk]).digest()
        finding = wire.Finding(what="projection", chunk=lie.chunk, sha256=digest)
        convict_reducer(
            turn,
            lie.signer,
            audit.round,
            audit.group_id,
            lie.chunk,
            "false_projection",
            [finding],
        )


def note_outvoted(session: Session, auditor: str) -> None:
    """Count against an auditor that two others disagreed with it; twice suspends it."""
    row = session.get(AuditorRow, auditor)
    if row is None:
        return
    row.outvoted += 1
    _log.warning("auditor_outvoted", auditor=auditor, times=row.outvoted)
    if row.outvoted >= OUTVOTED_TWICE and row.suspended_reason is None:
        row.suspended_reason = f"two other auditors agreed against it, {row.outvoted} times"


def tidy(session: Session, audit: AuditRow, verdict: Verdict) -> None:
    """What a decided audit needs no more: questions, replays to come, and bytes."""
    withdraw(session, audit.audit_id)
    session.execute(
        delete(AuditJobRow).where(
            AuditJobRow.audit_id == audit.audit_id, AuditJobRow.status != DONE
        )
    )
    if verdict is Verdict.FAILED:
        return  # they are the evidence
    # An appeal that is lost or undecided leaves the first verdict, and its evidence, as they are.
    overturned = audit.appeal and verdict is Verdict.PASSED
    over = audits_of(session, audit.assignment_id) if overturned else [audit.audit_id]
    session.execute(delete(OpeningRow).where(OpeningRow.audit_id.in_(over)))


def droppable(turn: Turn) -> list[bytes]:
    """Replays of decided audits; those that convicted stay for as long as appeals are heard."""
    other = aliased(AuditRow)
    open_appeal = (
        select(other.audit_id)
        .where(other.assignment_id == AuditRow.assignment_id, other.phase != DECIDED)
        .exists()
    )
    heard_until_s = turn.now_s - turn.context.options.audit.appeal_s
    query = (
        select(AuditJobRow.job_id)
        .join(AuditRow, AuditRow.audit_id == AuditJobRow.audit_id)
        .where(AuditJobRow.blob != "", AuditJobRow.status == DONE, AuditRow.phase == DECIDED)
        .where(
            or_(
                func.coalesce(AuditRow.verdict, "") != Verdict.FAILED,
                (AuditRow.decided_at_s < heard_until_s) & ~open_appeal,
            )
        )
        .limit(_DELETED_PER_STEP)
    )
    return list(turn.session.scalars(query))


def forget_answers(turn: Turn) -> bool:
    """Delete old answers in audits that convicted nobody, a batch at a time.

    Returns:
        Whether there were any.
    """
    heard_until_s = turn.now_s - turn.context.options.audit.appeal_s
    old = [
        select(ChallengeRow.challenge_id)
        .join(audit, audit.audit_id == ChallengeRow.audit_id)
        .where(
            ChallengeRow.asked_at_s < heard_until_s,  # spares the younger ones the look-up
            audit.phase == DECIDED,
            func.coalesce(audit.verdict, "") != Verdict.FAILED,
            audit.decided_at_s < heard_until_s,
        )
        .limit(_FORGOTTEN_PER_STEP)
        for audit in (AuditRow, ReducerAuditRow)
    ]
    ids = [challenge_id for query in old for challenge_id in turn.session.scalars(query)]
    if ids:
        turn.session.execute(delete(ChallengeRow).where(ChallengeRow.challenge_id.in_(ids)))
    return bool(ids)


def forget_files(turn: Turn, jobs: Collection[bytes]) -> None:
    """Note that the files of these replays are deleted."""
    for row in turn.session.scalars(select(AuditJobRow).where(AuditJobRow.job_id.in_(jobs))):
        row.blob = ""
