"""What happens because time went by, and not because anybody asked."""

from __future__ import annotations

import structlog
from sqlalchemy import select

from coordinator.attendance import Attendance
from coordinator.round_state import Paused, Resumed, Tick
from coordinator.schema import AssignmentRow
from coordinator.turn import Turn

_log = structlog.get_logger()


def let_time_pass(turn: Turn, attendance: Attendance, *, paused: bool) -> None:
    """The organiser's pause, silent workers, deadlines, and a settle that is still due.

    Args:
        turn: of the round in training; it may be the next one afterwards.
        attendance: who was heard of.
        paused: what the database says the organiser wants.
    """
    if paused is not turn.machine.paused:
        turn.apply(Paused() if paused else Resumed())
    _expire_leases(turn, attendance)
    for running in turn.running:
        machine = running.machine
        if machine.deadline_s is not None:
            there_to_be = {*machine.committed, *machine.reducers}
            running.apply(Tick(frozenset(filter(turn.is_absent, there_to_be))))
        if running.machine.settling:
            turn.then.settle_due = True


def _expire_leases(turn: Turn, attendance: Attendance) -> None:
    """End leases of workers that gave them up or were not heard of: the round may close early."""
    number, options = turn.machine.number, turn.context.options
    doubtful = attendance.doubtful(turn.machine.training, turn.now_s, options)
    if not doubtful:
        return
    leased = turn.session.execute(
        select(AssignmentRow.worker, AssignmentRow.assignment_id, AssignmentRow.leased_at_s).where(
            AssignmentRow.round == number, AssignmentRow.worker.in_(doubtful)
        )
    ).all()
    turn.storing = False  # or each of thousands would write the whole round
    for worker, assignment_id, leased_at_s in leased:
        # An expiry can close the round, and with it every other lease.
        still_open = turn.machine.number == number and worker in turn.machine.training
        if not still_open:
            continue
        if attendance.has_given_up(worker, assignment_id):
            _log.info("lease_given_up", worker=worker)
            turn.expire(worker)
        elif attendance.is_silent(worker, leased_at_s, turn.now_s, options):
            _log.warning("lease_expired", worker=worker)
            turn.expire(worker)
    turn.storing = True
    turn.store()
