"""Which inner batches of the data are free, leased, or consumed.

Invariants:

* Positions are whole inner batches within an epoch. The database forbids that one lies in two
  intervals or in none (see :mod:`coordinator.schema`); a consumed one never becomes anything else.
* Neighbours of one kind are joined, so the table stays as short as the run is orderly.
* Oldest epoch first, and within it the first gap that is worth a visit: at least half of what
  was asked for, else the longest. Taking every sliver first would hand a fast machine two
  steps where it could do two hundred, each time a neighbour stopped two steps early.

Source: protocol.md section 4. Batches past the last whole one of an epoch are not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from coordinator.schema import CONSUMED, FREE, LEASED, IntervalRow
from ledger.schema import Base

SEED_BITS = 63
"""A seed fits into a signed 64-bit integer, which is what databases and frameworks have."""

_INTERVALS = Base.metadata.tables[IntervalRow.__tablename__]
_I = _INTERVALS.c

_SAFETY = 0.9
"""Part of the time left that a lease fills: encoding and committing take the rest."""


@dataclass(frozen=True)
class Lease:
    """Inner batches [start, stop) of an epoch."""

    epoch: int
    start: int
    stop: int

    @property
    def steps(self) -> int:
        return self.stop - self.start


def steps_for(
    *, speed_tokens_per_s: float, time_left_s: float, tokens_per_step: int, max_steps: int
) -> int:
    """Steps that a machine can finish in the time left; 0 if it cannot finish one.

    An unknown speed (0) gets ``max_steps``: a partial contribution is valid, its rest goes back.
    """
    if speed_tokens_per_s <= 0:
        return max_steps
    steps = speed_tokens_per_s * max(0.0, time_left_s) * _SAFETY / tokens_per_step
    return math.floor(min(max_steps, steps))  # bounded first: a claimed speed may give infinity


def take(session: Session, assignment_id: bytes, wanted: int, batches_per_epoch: int) -> Lease:
    """Lease up to ``wanted`` consecutive batches; begins a new epoch when none is free.

    Args:
        session: the caller's transaction.
        assignment_id: who holds them; one interval each.
        wanted: inner batches, at least 1.
        batches_per_epoch: whole inner batches in an epoch.
    """
    gap = _find_gap(session, wanted) or _new_epoch(session, batches_per_epoch)
    stop = min(gap.stop, gap.start + wanted)
    _split(session, gap, stop)
    _set_state(session, gap.epoch, gap.start, LEASED, assignment_id)
    return Lease(gap.epoch, gap.start, stop)


def consume(session: Session, assignment_id: bytes, steps: int) -> None:
    """The first ``steps`` batches of a lease were merged; the rest of it is free again."""
    lease = held(session, assignment_id)
    if lease is None or not 1 <= steps <= lease.steps:
        raise ValueError("a merge consumes a prefix of an open lease")
    middle = lease.start + steps
    _split(session, lease, middle)
    _set_state(session, lease.epoch, lease.start, CONSUMED, None)
    if middle < lease.stop:
        _set_state(session, lease.epoch, middle, FREE, None)
        _join(session, lease.epoch, middle, FREE)
    _join(session, lease.epoch, lease.start, CONSUMED)


def release(session: Session, assignment_id: bytes) -> bool:
    """Free a lease wholly; False if it was not open."""
    lease = held(session, assignment_id)
    if lease is None:
        return False
    _set_state(session, lease.epoch, lease.start, FREE, None)
    _join(session, lease.epoch, lease.start, FREE)
    return True


def held(session: Session, assignment_id: bytes) -> Lease | None:
    """The open lease of an assignment."""
    row = session.execute(
        select(_I.epoch, _I.start, _I.stop).where(_I.assignment_id == assignment_id)
    ).one_or_none()
    return None if row is None else Lease(*row)


def consumed_batches(session: Session) -> int:
    """Inner batches consumed over all epochs."""
    length = func.sum(_I.stop - _I.start)
    return int(session.scalar(select(length).where(_I.state == CONSUMED)) or 0)


def _find_gap(session: Session, wanted: int) -> Lease | None:
    oldest = session.scalar(select(func.min(_I.epoch)).where(_I.state == FREE))
    if oldest is None:
        return None
    length = _I.stop - _I.start
    gaps = select(_I.epoch, _I.start, _I.stop).where(_I.epoch == oldest, _I.state == FREE)
    row = session.execute(
        gaps.where(length * 2 >= wanted).order_by(_I.start).limit(1)
    ).one_or_none()
    if row is None:
        longest_first = gaps.order_by(length.desc(), _I.start).limit(1)
        row = session.execute(longest_first).one()
    return Lease(*row)


def _new_epoch(session: Session, batches: int) -> Lease:
    last = session.scalar(select(func.max(_I.epoch)))
    epoch = 0 if last is None else last + 1
    _insert(session, epoch, 0, batches, FREE)
    return Lease(epoch, 0, batches)


# Statements rather than mapped objects: a unit of work would reorder them, and the unique
# constraints hold after every single statement.


def _insert(session: Session, epoch: int, start: int, stop: int, state: str) -> None:
    session.execute(
        insert(_INTERVALS).values(
            epoch=epoch, start=start, stop=stop, previous_stop=start or None, state=state
        )
    )


def _split(session: Session, whole: Lease, middle: int) -> None:
    """Cut an interval in two; the second part is free until its state is set."""
    if middle == whole.stop:
        return
    _set_stop(session, whole.epoch, whole.start, middle)
    _insert(session, whole.epoch, middle, whole.stop, FREE)


def _set_stop(session: Session, epoch: int, start: int, stop: int) -> None:
    session.execute(
        update(_INTERVALS).where(_I.epoch == epoch, _I.start == start).values(stop=stop)
    )


def _set_state(
    session: Session, epoch: int, start: int, state: str, assignment_id: bytes | None
) -> None:
    session.execute(
        update(_INTERVALS)
        .where(_I.epoch == epoch, _I.start == start)
        .values(state=state, assignment_id=assignment_id)
    )


def _join(session: Session, epoch: int, start: int, state: str) -> None:
    """Merge the interval at ``start`` with neighbours of the same kind."""
    here = select(_I.start, _I.stop).where(_I.epoch == epoch, _I.state == state)
    before = session.execute(here.where(_I.stop == start)).one_or_none()
    if before is not None:
        start = _absorb(session, epoch, before.start, start)
    stop = session.execute(here.where(_I.start == start)).one().stop
    if session.execute(here.where(_I.start == stop)).one_or_none() is not None:
        _absorb(session, epoch, start, stop)


def _absorb(session: Session, epoch: int, left_start: int, right_start: int) -> int:
    """Make one interval of two neighbours; returns where it starts."""
    right = (_I.epoch == epoch, _I.start == right_start)
    stop = session.execute(select(_I.stop).where(*right)).scalar_one()
    session.execute(delete(_INTERVALS).where(*right))
    _set_stop(session, epoch, left_start, stop)
    return left_start
