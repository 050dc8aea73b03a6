"""Handing out work: one signed assignment for a worker and round.

Invariants:

* Asking again in the same round gives the same assignment, byte for byte.
* A lease ends with its round; what a worker gets fits into the time that is left, by the speed
  at which its work was accepted before (its own word only until there is such work).
* Every refusal names one reason, in words for a person and as a stable code.
* A new key gets a probation unit instead (:mod:`coordinator.probation`): no lease, no weight.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator import leases
from coordinator.attendance import finite_speed
from coordinator.audit.jobs import backlog
from coordinator.audit.schema import BlockRow, TrustRow
from coordinator.audit.trust import best_passes
from coordinator.batches import each
from coordinator.blocks import reason_for
from coordinator.context import to_ms
from coordinator.lookups import fetch, find, rows_by
from coordinator.opening import newest_state
from coordinator.probation import grant_probation, needs_probation
from coordinator.round_state import Leased, Phase
from coordinator.schema import (
    COMMITTED,
    TRAINING,
    AssignmentRow,
    ControlRow,
    StateRow,
    WorkerRow,
)
from coordinator.turn import Turn
from coordinator.versions import too_old
from protocol.errors import NotEnrolled, ProtocolError, UsageError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_LEAST_LEASE_S = 1.0
"""A unit that is given up before its first step would hold the round open for its whole grace."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Refusal:
    code: str
    reason: str


def grant_works(
    turn: Turn, batch: Sequence[wire.WorkRequest], crowd_s: float
) -> list[service_pb2.WorkReply | ProtocolError]:
    """Answer requests that came at about the same time; see the module.

    Args:
        turn: of the running round.
        batch: the requests.
        crowd_s: so long waits at least who is told to wait, for there are many.
    """
    workers = [request.worker for request in batch]
    fetch_devices(turn.session, workers)
    found = select(AssignmentRow).where(
        AssignmentRow.round == turn.machine.number, AssignmentRow.worker.in_(workers)
    )
    shared = turn.session.get_one(ControlRow, 1), newest_state(turn.session)
    held = {row.worker: row for row in turn.session.scalars(found)}
    replies = each(turn, batch, lambda turn, request: _grant_work(turn, request, held))
    del shared  # the session forgets rows that nobody holds
    for reply in replies:
        if isinstance(reply, service_pb2.WorkReply) and reply.HasField("wait"):
            reply.wait.retry_after_ms = max(reply.wait.retry_after_ms, to_ms(crowd_s))
    return replies


def _grant_work(
    turn: Turn, request: wire.WorkRequest, held: dict[str, AssignmentRow]
) -> service_pb2.WorkReply:
    """Answer a RequestWork whose signature was checked.

    Args:
        turn: of the running round.
        request: for work in it.
        held: assignments of the round by worker; a new one is added.

    Raises:
        NotEnrolled: the device is not known.
        UsageError: it is blocked.
    """
    worker = enrolled(turn.session, request.worker)
    head = wire.Envelope.FromString(turn.row.head)
    refusal = _refuse_all(turn) or _refuse_old(turn, worker)
    if refusal is None and needs_probation(turn, worker):
        return grant_probation(turn, worker, request)
    row = held.get(worker.worker)
    if row is not None and row.status == TRAINING:
        envelope = wire.Envelope.FromString(row.envelope)
        return service_pb2.WorkReply(assignment=envelope, run_head=head)
    refusal = refusal or _refuse(turn, row) or _refuse_untrusted(turn, worker)
    steps = 0
    if refusal is None:
        steps = _steps(turn, worker, request)
        if steps == 0:
            refusal = _Refusal("round_closing", "too little time is left in this round")
    if refusal is not None:
        return service_pb2.WorkReply(wait=_wait(turn, refusal), run_head=head)
    envelope, held[worker.worker] = _assign(turn, worker, steps)
    return service_pb2.WorkReply(assignment=envelope, run_head=head)


def welcome_devices(turn: Turn, workers: Sequence[str]) -> list[bool | ProtocolError]:
    """For each whether it may take part, or the error that says why not."""
    fetch_devices(turn.session, workers)
    return [_is_welcome(turn.session, worker) for worker in workers]


def _is_welcome(session: Session, worker: str) -> bool | ProtocolError:
    try:
        enrolled(session, worker)
    except (NotEnrolled, UsageError) as error:
        return error
    return True


def fetch_devices(session: Session, workers: Collection[str]) -> None:
    """Read at once what decides whether some devices may take part, and what they have passed."""
    fetch(session, WorkerRow.worker, workers)
    donors = {row.donor for worker in workers for row in rows_by(session, WorkerRow.worker, worker)}
    fetch(session, BlockRow.key, {*workers, *donors})
    fetch(session, TrustRow.worker, workers)


def enrolled(session: Session, worker: str) -> WorkerRow:
    """The row of a device that was admitted and is still welcome.

    Raises:
        NotEnrolled: the device is not known.
        UsageError: it, or its donor, is blocked, or the organiser has yet to approve it.
    """
    row = known(session, worker)
    reason = kept_out(session, row)
    if reason is not None:
        raise UsageError(reason)
    return row


def known(session: Session, worker: str) -> WorkerRow:
    """The row of a device that has asked to be admitted, welcome or not.

    Raises:
        NotEnrolled: it has not.
    """
    row = find(session, WorkerRow, worker)
    if row is None:
        raise NotEnrolled("this device is not enrolled in the run: enrol first")
    return row


def kept_out(session: Session, row: WorkerRow) -> str | None:
    """Why a known device takes no part, for a person; None if it may."""
    reason = reason_for(session, row.worker, row.donor)
    if reason is not None:
        return f"this device is blocked: {reason}"
    if not row.approved:
        return f"the organiser has yet to approve this device: tell them its key, {row.worker}"
    return None


def _refuse_all(turn: Turn) -> _Refusal | None:
    """What holds for everybody, whoever asks."""
    control = turn.session.get_one(ControlRow, 1)
    if control.finished:
        return _Refusal("finished", "the run is complete: thank you")
    if control.paused:
        return _Refusal("paused", "the organiser has paused the run")
    return None


def _refuse_old(turn: Turn, worker: WorkerRow) -> _Refusal | None:
    """It was let in before the organiser asked for a newer version; a unit under way goes on."""
    upgrade = too_old(turn, worker)
    return None if upgrade is None else _Refusal("upgrade", upgrade)


def _refuse_untrusted(turn: Turn, worker: WorkerRow) -> _Refusal | None:
    """Work that is audited for certain waits for its auditors; else it would be paid unseen."""
    policy, options = turn.context.manifest.verification, turn.context.options.audit
    if worker.anchor or best_passes(turn.session, worker.worker) >= policy.probation_passes:
        return None
    if backlog(turn.session, retained=False) < options.backlog_jobs:
        return None
    return _Refusal("audits_busy", "the auditors are behind: units of new devices wait for them")


def _refuse(turn: Turn, row: AssignmentRow | None) -> _Refusal | None:
    number = turn.machine.number
    if row is not None and row.status == COMMITTED:
        return _Refusal("committed", f"your work for round {number} is in; the round is closing")
    if row is not None:
        return _Refusal("lease_expired", f"your lease in round {number} ended: wait for the next")
    if turn.machine.phase not in (Phase.OPEN, Phase.TRAINING):
        return _Refusal("round_closing", f"round {number} is being averaged; the next opens soon")
    if _is_last_reduced(turn):
        return _Refusal("round_closing", "the run's last round is being averaged")
    if not turn.machine.accepts_leases:
        return _Refusal("round_full", f"round {number} has all the members it can take")
    return None


def _is_last_reduced(turn: Turn) -> bool:
    """Whether the run is complete if the round under way beside this one is settled."""
    if turn.reducing is turn:
        return False
    state = newest_state(turn.session)
    return turn.context.finished(state.settled_rounds + 1, state.merged_tokens)


def _wait(turn: Turn, refusal: _Refusal) -> service_pb2.Wait:
    """Watch tells the worker when there is news, so this is only the longest to wait without it, in
    a crowd longer still."""
    retry_s = turn.context.options.retry_after_s
    return service_pb2.Wait(reason=refusal.reason, code=refusal.code, retry_after_ms=to_ms(retry_s))


def _steps(turn: Turn, worker: WorkerRow, request: wire.WorkRequest) -> int:
    """Steps to lease; 0 when not even one fits and a better chance comes with the next round."""
    duration_s = turn.machine.policy.duration_s
    deadline_s = turn.machine.deadline_s
    time_left_s = duration_s if deadline_s is None else deadline_s - turn.now_s
    if time_left_s < min(_LEAST_LEASE_S, duration_s / 2):
        return 0
    steps = leases.steps_for(
        speed_tokens_per_s=worker.measured_tokens_per_s or finite_speed(request.tokens_per_s),
        time_left_s=time_left_s,
        tokens_per_step=turn.context.manifest.tokens_per_step,
        max_steps=turn.context.manifest.inner.max_steps,
    )
    # A machine too slow for one step in most of a round may still try: the grace can save it.
    return steps or int(time_left_s > duration_s / 2)


def _assign(turn: Turn, worker: WorkerRow, steps: int) -> tuple[wire.Envelope, AssignmentRow]:
    context, number = turn.context, turn.machine.number
    # Not the newest one: a mean may have been applied since the round opened.
    state = turn.session.get_one(StateRow, turn.row.settled_rounds)
    assignment_id, seed = secrets.token_bytes(16), secrets.randbits(leases.SEED_BITS)
    with turn.session.no_autoflush:  # it reads and writes intervals only
        lease = leases.take(turn.session, assignment_id, steps, context.batches_per_epoch)
    turn.apply(Leased(worker.worker))
    assert turn.machine.deadline_s is not None
    batch = context.manifest.inner.sequences_per_batch
    envelope = context.sign(
        wire.Assignment(
            run_id=context.run_id,
            assignment_id=assignment_id,
            round=number,
            worker=worker.worker,
            state_digest=state.digest,
            epoch=lease.epoch,
            start_sequence=lease.start * batch,
            end_sequence=lease.stop * batch,
            steps=lease.steps,
            seed=seed,
            tokens_base=state.merged_tokens,
            deadline_ms=to_ms(turn.machine.deadline_s),
        )
    )
    row = AssignmentRow(
        assignment_id=assignment_id,
        round=number,
        worker=worker.worker,
        epoch=lease.epoch,
        start_batch=lease.start,
        stop_batch=lease.stop,
        seed=seed,
        status=TRAINING,
        leased_at_s=turn.now_s,
        envelope=envelope.SerializeToString(),
    )
    turn.session.add(row)
    _log.info("leased", round=number, worker=worker.worker, steps=lease.steps, epoch=lease.epoch)
    return envelope, row
