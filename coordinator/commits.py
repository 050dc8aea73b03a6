"""Accepting contributions: layer 1 of verification.md, and their natural key.

Steps (protocol.md section 2, verification.md layer 1); the caller has checked the signature:

1. the assignment exists and is the signer's;
2. the same bytes again get the first answer; other bytes are a conflict, and both are kept;
3. the round still takes commits, and the lease is open;
4. run, round, state digest, codec, layout and training specification are the assignment's and
   the manifest's;
5. the sequences are a prefix of the lease in whole batches, and tokens are what they hold;
6. the numbers are ones that float32 arithmetic can give, and the root is a hash;
7. the execution class is one of the device's, which has passed a first unit as such, and no
   contribution of the run has the same root: rounding noise is keyed by worker and round, so
   honest updates never agree in every byte.

A device that was blocked after it got its lease contributes no more.
"""

from __future__ import annotations

import math

import structlog

from coordinator.audit.schema import ProbationRow
from coordinator.evidence import keep_evidence
from coordinator.lookups import find, rows_by
from coordinator.lost_rounds import check_not_lost
from coordinator.probation import needs_probation
from coordinator.round_state import Committed
from coordinator.schema import (
    COMMITTED,
    TRAINING,
    AssignmentRow,
    ContributionRow,
    WorkerRow,
)
from coordinator.turn import Turn
from coordinator.work import enrolled, known
from protocol.audit_policy import check_execution
from protocol.envelope import Signed
from protocol.errors import BadRecord, Conflict, ProtocolError, TooLate
from protocol.merkle import HASH_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_SPEED_SMOOTHING = 0.5
"""Weight of the newest round in a worker's measured speed."""

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127

_log = structlog.get_logger()


def accept_contribution(
    turn: Turn, signed: Signed[wire.Contribution]
) -> service_pb2.CommitReply | ProtocolError:
    """Keep a contribution; see the module's steps.

    Returns:
        The reply, or the error to raise once the evidence is committed.

    Raises:
        BadRecord: it does not fit its assignment or the manifest.
        TooLate: its round has closed, or its lease was given up.
        UsageError: the device is blocked.
    """
    record = signed.record
    session = turn.session
    assignment = find(session, AssignmentRow, record.assignment_id)
    if assignment is None or assignment.round != turn.machine.number:
        check_not_lost(turn.session, record.round)
    if assignment is None or assignment.worker != signed.signer or record.worker != signed.signer:
        raise BadRecord("a contribution to an assignment that this worker does not have")
    earlier = find(session, ContributionRow, record.assignment_id)
    if earlier is not None:
        if earlier.digest == signed.digest:
            return service_pb2.CommitReply(first=False)
        keep_evidence(session, "contribution", earlier.envelope, signed, turn.now_s)
        return Conflict("another contribution to this assignment is kept: both are evidence now")
    worker = enrolled(turn.session, signed.signer)
    check_contribution(turn, assignment, record)
    check_execution_of(worker, record.execution)
    if needs_probation(turn, worker):
        raise BadRecord(f"no first unit of this device has passed on {worker.device_class}")
    _check_fresh(turn, record)
    if assignment.round != turn.machine.number or not turn.machine.accepts_commits:
        raise TooLate(f"round {assignment.round} closed before this contribution came")
    if assignment.status != TRAINING:
        raise TooLate("this lease was given up after a long silence; ask for new work")
    _keep(turn, assignment, signed)
    return service_pb2.CommitReply(first=True)


def check_contribution(
    turn: Turn, assignment: AssignmentRow | ProbationRow, record: wire.Contribution
) -> None:
    """Steps 4 to 6.

    Raises:
        BadRecord: naming the field.
    """
    manifest, layout = turn.context.manifest, turn.context.layout
    given = wire.Assignment.FromString(wire.Envelope.FromString(assignment.envelope).payload)
    batch = manifest.inner.sequences_per_batch
    expected = {
        "run_id": turn.context.run_id,
        "round": given.round,
        "state_digest": given.state_digest,
        "epoch": given.epoch,
        "start_sequence": given.start_sequence,
        "end_sequence": given.start_sequence + record.steps * batch,
        "tokens": record.steps * manifest.tokens_per_step,
        "codec": manifest.update.codec,
        "training_spec": manifest.inner.training_spec,
        "chunk_count": layout.count,
        "vector_elements": layout.elements,
    }
    for name, value in expected.items():
        if getattr(record, name) != value:
            raise BadRecord(f"the contribution's {name} is not that of its assignment")
    if not 1 <= record.steps <= given.steps:
        raise BadRecord(f"steps must be between 1 and the {given.steps} that were leased")
    if len(record.commitment_root) != HASH_BYTES:
        raise BadRecord("commitment_root is not a SHA-256")
    # False for NaN too.
    if not 0 <= record.update_norm <= _FLOAT32_MAX * math.sqrt(layout.elements):
        raise BadRecord("update_norm is not a finite length")
    if not 0 <= record.mean_loss <= _FLOAT32_MAX:
        raise BadRecord("mean_loss is not finite, or below zero")


def check_execution_of(worker: WorkerRow, execution: str) -> None:
    """Insist on an execution class that the device can have.

    Raises:
        BadRecord: it is none, or another device's.
    """
    if check_execution(execution).removesuffix("-bf16") != worker.device_class:
        raise BadRecord(f"execution {execution} is not one of a device of {worker.device_class}")


def _check_fresh(turn: Turn, record: wire.Contribution) -> None:
    if rows_by(turn.session, ContributionRow.commitment_root, record.commitment_root):
        raise BadRecord("this commitment was made before: an update is trained anew each round")


def _keep(turn: Turn, assignment: AssignmentRow, signed: Signed[wire.Contribution]) -> None:
    record = signed.record
    turn.session.add(
        ContributionRow(
            assignment_id=record.assignment_id,
            round=record.round,
            worker=record.worker,
            steps=record.steps,
            tokens=record.tokens,
            commitment_root=record.commitment_root,
            digest=signed.digest,
            mean_loss=record.mean_loss,
            execution=record.execution,
            received_at_s=turn.now_s,
            envelope=signed.envelope.SerializeToString(),
        )
    )
    assignment.status = COMMITTED
    worker = known(turn.session, record.worker)
    seconds = max(1e-3, turn.now_s - assignment.leased_at_s)
    worker.measured_tokens_per_s = _smoothed(worker.measured_tokens_per_s, record.tokens / seconds)
    _log.info("committed", round=record.round, worker=record.worker, steps=record.steps)
    turn.apply(Committed(record.worker))


def _smoothed(before: float, now: float) -> float:
    return now if before == 0 else before + _SPEED_SMOOTHING * (now - before)
