"""Accepting a probation unit, and putting it up for audit.

Steps, as for any contribution (:mod:`coordinator.commits`); the caller has checked the signature:

1. the unit is the signer's;
2. the same bytes again get the first answer; other bytes are a conflict, and both are kept;
3. the device is welcome, and what it signed is the unit's and the manifest's;
4. the unit is still open, and its time is not over;
5. it is kept, and one audit with its first replay is queued, in the same transaction.

No round and no lease is touched.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import structlog

from coordinator.audit.begin import begin_audit
from coordinator.audit.schema import COMMITTED, ISSUED, ProbationRow
from coordinator.batches import each
from coordinator.commits import accept_contribution, check_contribution, check_execution_of
from coordinator.evidence import keep_evidence
from coordinator.lookups import fetch, find
from coordinator.schema import AssignmentRow, ContributionRow
from coordinator.turn import Turn
from coordinator.work import enrolled, fetch_devices
from protocol.audit_policy import PPM, Why
from protocol.draw import SEED_BYTES
from protocol.envelope import Signed
from protocol.errors import BadRecord, Conflict, ProtocolError, TooLate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_log = structlog.get_logger()


def accept_units(
    turn: Turn, batch: Sequence[Signed[wire.Contribution]]
) -> list[service_pb2.CommitReply | ProtocolError]:
    """Accept contributions that came at about the same time; see :func:`accept_unit`."""
    units = [signed.record.assignment_id for signed in batch]
    for column in (
        ProbationRow.assignment_id,
        AssignmentRow.assignment_id,
        ContributionRow.assignment_id,
    ):
        fetch(turn.session, column, units)
    fetch(turn.session, ContributionRow.commitment_root, [s.record.commitment_root for s in batch])
    fetch_devices(turn.session, [signed.signer for signed in batch])
    return each(turn, batch, accept_unit)


def accept_unit(
    turn: Turn, signed: Signed[wire.Contribution]
) -> service_pb2.CommitReply | ProtocolError:
    """Accept a contribution of either kind.

    Returns:
        The reply, or the error to raise once the evidence is committed.

    Raises:
        BadRecord, TooLate, UsageError: see the steps, and :mod:`coordinator.commits`.
    """
    unit = signed.record.assignment_id
    row = find(turn.session, ProbationRow, unit)
    return accept_contribution(turn, signed) if row is None else _accept(turn, row, signed)


def _accept(
    turn: Turn, row: ProbationRow, signed: Signed[wire.Contribution]
) -> service_pb2.CommitReply | ProtocolError:
    record = signed.record
    if row.worker != signed.signer or record.worker != signed.signer:
        raise BadRecord("a contribution to an assignment that this worker does not have")
    if row.contribution is not None:
        if row.contribution_digest == signed.digest:
            return service_pb2.CommitReply(first=False)
        keep_evidence(turn.session, "contribution", row.contribution, signed, turn.now_s)
        return Conflict("another contribution to this assignment is kept: both are evidence now")
    worker = enrolled(turn.session, signed.signer)
    check_contribution(turn, row, record)
    check_execution_of(worker, record.execution)
    if row.status != ISSUED or turn.now_s > row.deadline_s:
        raise TooLate("the time for this unit is over; ask for new work")
    row.status = COMMITTED
    row.contribution = signed.envelope.SerializeToString()
    row.contribution_digest = signed.digest
    _open_audit(turn, row, record, worker.donor)
    _log.info("probation_committed", worker=record.worker, steps=record.steps)
    return service_pb2.CommitReply(first=True)


def _open_audit(turn: Turn, row: ProbationRow, record: wire.Contribution, donor: str) -> None:
    """Nobody draws whether: every such unit is audited. What is opened is drawn here."""
    p_second = turn.context.manifest.verification.p_second_auditor
    begin_audit(
        turn.session,
        subject="probation",
        assignment_id=row.assignment_id,
        round_=row.round,
        worker=row.worker,
        donor=donor,
        execution=record.execution,
        why=Why.PROBATION,
        draw=secrets.token_bytes(SEED_BYTES),
        projection_seed=secrets.token_bytes(SEED_BYTES),
        now_s=turn.now_s,
        second=secrets.randbelow(PPM) < round(p_second * PPM),
    )
