"""A new key's first unit: who needs one, and handing it out (docs/verification.md).

Invariants:

* A device without a passed probation unit and without an audited pass gets no lease, so that it
  has neither weight nor data, nor reduces, before an audit has passed. Both are of the kind of
  device that it says it is now: else it could pass as one kind, and then name another that no
  auditor has bounds for.
* The unit starts from a state that is published already and is merged into nothing: neither the
  round nor the data's intervals know of it.
* Asking again gives the same unit, byte for byte, until it is committed or its time is over. A unit
  that is not done, or by which nothing could be decided, has lapsed: there is another one, later
  each time, for each leaves a verdict in the public record.
* Anchors are the organiser's: they need none.
"""

from __future__ import annotations

import secrets

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from coordinator import leases
from coordinator.attendance import finite_speed
from coordinator.audit.schema import (
    COMMITTED,
    ISSUED,
    LAPSED,
    PASSED,
    AuditRow,
    ProbationRow,
)
from coordinator.audit.trust import passes_of
from coordinator.context import to_ms
from coordinator.opening import running_rounds
from coordinator.schema import IntervalRow, RoundRow, StateRow, WorkerRow
from coordinator.turn import Turn
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

CODE = "probation"
"""Why a worker waits, as a stable word."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 6 * 3600.0

_log = structlog.get_logger()


def needs_probation(turn: Turn, worker: WorkerRow) -> bool:
    """Whether a device has yet to show that it computes what it says."""
    if worker.anchor or turn.context.manifest.verification.probation_steps == 0:
        return False
    classes = (worker.device_class, f"{worker.device_class}-bf16")
    if any(passes_of(turn.session, worker.worker, execution) for execution in classes):
        return False
    passed = (
        select(ProbationRow.assignment_id)
        .join(AuditRow, AuditRow.assignment_id == ProbationRow.assignment_id)
        .where(ProbationRow.worker == worker.worker, ProbationRow.status == PASSED)
        .where(AuditRow.execution.in_(classes))
    )
    return turn.session.scalar(passed.limit(1)) is None


def grant_probation(
    turn: Turn, worker: WorkerRow, request: wire.WorkRequest
) -> service_pb2.WorkReply:
    """The device's unit, a new one, or the reason to wait; with the head of the unit's round."""
    row = _newest(turn.session, worker.worker)
    if row is not None and row.status == COMMITTED:
        # No event tells of the verdict: ask as often as the worker shows that it is there.
        retry_s = turn.context.options.heartbeat_s
        return _wait(turn, "your first unit is being checked by an auditor", retry_s)
    if row is not None and row.status == ISSUED and turn.now_s <= row.deadline_s:
        return _reply(turn.session, row)
    _lapse_overdue(turn)
    lapsed = _lapsed(turn.session, worker.worker)
    wait_s = 0.0 if row is None else row.issued_at_s + pause_s(lapsed) - turn.now_s
    if wait_s > 0:
        reason = f"nothing could be decided by your {lapsed} first units: there is another one soon"
        return _wait(turn, reason, wait_s)
    return _reply(turn.session, _issue(turn, worker, request))


def pause_s(lapsed: int) -> float:
    """Seconds from one unit to the next: the second one comes at once, the others ever later."""
    return 0.0 if lapsed < 2 else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(lapsed, 32))


def _wait(turn: Turn, reason: str, retry_s: float) -> service_pb2.WorkReply:
    return service_pb2.WorkReply(
        wait=service_pb2.Wait(reason=reason, code=CODE, retry_after_ms=to_ms(retry_s)),
        run_head=wire.Envelope.FromString(turn.row.head),
    )


def _lapsed(session: Session, worker: str) -> int:
    rows = select(func.count()).where(ProbationRow.worker == worker, ProbationRow.status == LAPSED)
    return session.scalar(rows) or 0


def _newest(session: Session, worker: str) -> ProbationRow | None:
    rows = select(ProbationRow).where(ProbationRow.worker == worker)
    newest_first = rows.order_by(ProbationRow.issued_at_s.desc(), ProbationRow.assignment_id)
    return session.scalars(newest_first.limit(1)).one_or_none()


def _lapse_overdue(turn: Turn) -> None:
    """Everybody's: weights are kept for units that are open, and their owners may never return."""
    overdue = update(ProbationRow).where(
        ProbationRow.status == ISSUED, ProbationRow.deadline_s < turn.now_s
    )
    turn.session.execute(overdue.values(status=LAPSED))


def _reply(session: Session, row: ProbationRow) -> service_pb2.WorkReply:
    """The unit, and the head that names the weights that it starts from."""
    return service_pb2.WorkReply(
        assignment=wire.Envelope.FromString(row.envelope),
        run_head=wire.Envelope.FromString(session.get_one(RoundRow, row.round).head),
    )


def _issue(turn: Turn, worker: WorkerRow, request: wire.WorkRequest) -> ProbationRow:
    context, session = turn.context, turn.session
    state, round_ = _base(session)
    steps = _steps(turn, request)
    batch = context.manifest.inner.sequences_per_batch
    start = secrets.randbelow(context.batches_per_epoch - steps + 1)
    assignment_id = secrets.token_bytes(16)
    deadline_s = turn.now_s + context.options.audit.probation_s
    envelope = context.sign(
        wire.Assignment(
            run_id=context.run_id,
            assignment_id=assignment_id,
            round=round_,
            worker=worker.worker,
            state_digest=state.digest,
            epoch=session.scalar(select(func.max(IntervalRow.epoch))) or 0,
            start_sequence=start * batch,
            end_sequence=(start + steps) * batch,
            steps=steps,
            seed=secrets.randbits(leases.SEED_BITS),
            tokens_base=state.merged_tokens,
            deadline_ms=to_ms(deadline_s),
            probation=True,
        )
    )
    row = ProbationRow(
        assignment_id=assignment_id,
        worker=worker.worker,
        round=round_,
        settled_rounds=state.settled_rounds,
        status=ISSUED,
        issued_at_s=turn.now_s,
        deadline_s=deadline_s,
        envelope=envelope.SerializeToString(),
    )
    session.add(row)
    session.flush()
    _log.info("probation_issued", worker=worker.worker, round=round_, steps=steps)
    return row


def _base(session: Session) -> tuple[StateRow, int]:
    """The newest state that no running round starts from, and the last round that did.

    A run that has settled nothing yet has only its first state.
    """
    settled_rounds = max(0, running_rounds(session)[0].settled_rounds - 1)
    number = session.scalar(
        select(func.max(RoundRow.number)).where(RoundRow.settled_rounds == settled_rounds)
    )
    assert number is not None, "a state that was settled upon began a round"
    return session.get_one(StateRow, settled_rounds), number


def _steps(turn: Turn, request: wire.WorkRequest) -> int:
    """Few, and no more than the device can do in the time that it gets; at least one."""
    context = turn.context
    most = min(context.manifest.verification.probation_steps, context.manifest.inner.max_steps)
    steps = leases.steps_for(
        speed_tokens_per_s=finite_speed(request.tokens_per_s),
        time_left_s=context.options.audit.probation_s,
        tokens_per_step=context.manifest.tokens_per_step,
        max_steps=min(most, context.batches_per_epoch),
    )
    return max(1, steps)
