"""Appeals: a verdict that convicts is checked once more, on another kind of device.

Invariants:

* Only a FAILED verdict on a unit of training can be appealed, by the device that it convicts,
  blocked or not, within the time for which its evidence is kept; one appeal at a time.
* Each appeal costs replays and its signer nothing, so those that come to nothing are counted.
* The replay is done in an execution class that has not convicted yet, and waits until there is one.
* The evidence is what was opened and proven before: nobody has to be asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.begin import begin_audit
from coordinator.audit.schema import (
    DECIDED,
    OPENING,
    AuditJobRow,
    AuditRow,
    OpeningRow,
)
from coordinator.turn import Turn
from protocol.audit_policy import Verdict, Why
from protocol.envelope import Signed
from protocol.errors import BadRecord, NotFound, TooLate, UsageError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

MOST_UNDECIDED = 7
"""Appeals of one verdict that may end without one: one for each day on which evidence is kept."""

_ID_BYTES = 16
_CLASSES = {device + mode for device in ("cpu", "cuda", "mps") for mode in ("", "-bf16")}

_log = structlog.get_logger()


def accept_appeal(turn: Turn, signed: Signed[wire.Appeal]) -> service_pb2.AppealReply:
    """Open an appeal, or say how it stands.

    Args:
        turn: the caller's transaction.
        signed: verified and fresh, of this run.

    Raises:
        BadRecord: the contribution is another device's.
        NotFound: it was never audited.
        UsageError: there is no conviction to appeal against, or nobody left who could judge it.
        TooLate: its evidence is kept no more.
    """
    audits = _audits(turn.session, signed)
    newest = audits[-1]
    if newest.phase != DECIDED and newest.appeal:
        return _reply(f"your appeal for round {newest.round} is open already: wait for its verdict")
    if any(audit.verdict == Verdict.OVERTURNED for audit in audits):
        return _reply(f"the verdict on round {newest.round} was overturned: nothing is left of it")
    convicting = [audit for audit in audits if audit.verdict == Verdict.FAILED]
    if not convicting:
        raise UsageError(f"no verdict convicts your work of round {newest.round}")
    first = convicting[0]
    assert first.decided_at_s is not None
    if turn.now_s > first.decided_at_s + turn.context.options.audit.appeal_s:
        raise TooLate("the time for an appeal is over; the evidence is kept no more")
    undecided = [audit for audit in audits if audit.appeal and audit.verdict != Verdict.FAILED]
    if len(undecided) >= MOST_UNDECIDED:
        raise UsageError(
            f"{len(undecided)} appeals for round {first.round} could not be decided: write to the "
            "organiser, who can lift the block"
        )
    avoid = _classes_that_judged(turn.session, convicting)
    if avoid >= _CLASSES:
        raise UsageError("every kind of device has judged this work: there is no further appeal")
    _open(turn, first, newest.appeal + 1, sorted(avoid))
    return _reply(
        f"your work of round {first.round} will be replayed on another kind of device than "
        f"{' and '.join(sorted(avoid))}, as soon as an auditor has one. If that agrees with you, "
        "the block is lifted and your credit restored"
    )


def _audits(session: Session, signed: Signed[wire.Appeal]) -> Sequence[AuditRow]:
    """Every audit of the contribution, the first one first."""
    record = signed.record
    if len(record.assignment_id) != _ID_BYTES:
        raise BadRecord(f"an assignment's id has {_ID_BYTES} bytes")
    audits = session.scalars(
        select(AuditRow)
        .where(AuditRow.assignment_id == record.assignment_id)
        .order_by(AuditRow.appeal)
    ).all()
    if not audits:
        raise NotFound("this work was never audited: there is nothing to appeal against")
    if audits[0].worker != signed.signer or record.worker != signed.signer:
        raise BadRecord("an appeal is made by the device that did the work")
    return audits


def _classes_that_judged(session: Session, convicting: Sequence[AuditRow]) -> set[str]:
    results = session.scalars(
        select(AuditJobRow.result).where(
            AuditJobRow.audit_id.in_([audit.audit_id for audit in convicting]),
            AuditJobRow.result.is_not(None),
        )
    )
    records = [
        wire.AuditResult.FromString(wire.Envelope.FromString(data).payload)
        for data in results
        if data is not None
    ]
    return {record.execution for record in records if not record.failed}


def _open(turn: Turn, first: AuditRow, appeal: int, avoid: list[str]) -> None:
    row = begin_audit(
        turn.session,
        subject=first.subject,
        assignment_id=first.assignment_id,
        round_=first.round,
        group_id=first.group_id,
        worker=first.worker,
        donor=first.donor,
        execution=first.execution,
        why=Why.APPEAL,
        draw=first.draw,
        projection_seed=first.projection_seed,
        now_s=turn.now_s,
        appeal=appeal,
        phase=OPENING,
        chunks=first.chunks,
        avoid_executions=avoid,
    )
    openings = turn.session.scalars(
        select(OpeningRow).where(OpeningRow.audit_id == first.audit_id)
    ).all()
    for opening in openings:
        turn.session.add(
            OpeningRow(
                audit_id=row.audit_id,
                member=opening.member,
                chunk=opening.chunk,
                encoded=opening.encoded,
                proof=opening.proof,
            )
        )
    turn.session.flush()
    _log.info("appealed", round=first.round, worker=first.worker, appeal=appeal, avoid=avoid)


def _reply(message: str) -> service_pb2.AppealReply:
    return service_pb2.AppealReply(message=message)
