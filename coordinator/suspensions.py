"""Reducers that do not deliver are left out of reducing for a while; their credit is untouched.

What counts as a withheld reduce (protocol.md section 8):

* an attempt failed by this reducer: it had not delivered its range, or was gone; or it had said of
  nobody that they were complete, while another reducer had enough of them;
* a result of its own was drawn for an audit, and its inputs could not be had from it, which had
  them all: this counts at once, and by all the rounds in which it ever happened, for a wrong mean
  could hide behind it;
* it alone lacked members that every other reducer held: members of two donors at once, or of one
  donor in two rounds. One member that one reducer lacks proves nothing: it may have sent nothing.

Invariants: otherwise the first withheld reduce costs nothing, from the second on in a row the
reducer is left out for a number of rounds that doubles each time; a reduce that it delivers starts
that count anew. Anchors are the organiser's and are never suspended. The pure parts read a round
before and after an event, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.schema import SuspensionRow
from coordinator.round_state import Phase, Round
from coordinator.schema import WorkerRow

FIRST_ROUNDS = 4
"""Rounds of the first suspension."""

MOST_ROUNDS = 1024

_SUSPENDED_FROM = 2
"""Withheld reduces in a row."""

_log = structlog.get_logger()


# ---- pure ----


def withheld(before: Round, after: Round) -> frozenset[str]:
    """Reducers by whose silence an attempt failed, told by the round before and after an event."""
    attempt_ended = after.attempt > before.attempt or after.phase is Phase.SKIPPED
    if not attempt_ended or not before.reducers or before.settling:
        return frozenset()
    if before.phase is Phase.BROADCAST:
        return frozenset(after.failed)
    if before.phase is not Phase.GATHER:
        return frozenset()
    held = {reducer: members for reducer, members in before.complete if members}
    needed = before.policy.min_members
    somebody_served = any(len(members) >= needed for members in held.values())
    # Where no reducer was reached by enough members, the members may well be the ones who left.
    return frozenset(before.reducers) - held.keys() if somebody_served else frozenset()


def lone_lacks(before: Round, after: Round) -> dict[str, frozenset[str]]:
    """For each reducer the members that it alone lacked when the gather ended.

    Returns:
        Only reducers that lacked somebody whom all of at least one other reducers held.
    """
    ended = before.phase is Phase.GATHER and (
        after.phase is not Phase.GATHER or after.attempt > before.attempt
    )
    if not ended or len(before.reducers) < 2:
        return {}
    # The report that ends a gather is in the round after it; another attempt begins with none.
    complete = (after if after.attempt == before.attempt else before).complete
    held = {reducer: frozenset(members) for reducer, members in complete}
    nobody: frozenset[str] = frozenset()
    found = {}
    for reducer in before.reducers:
        others = [held.get(other, nobody) for other in before.reducers if other != reducer]
        lacked = frozenset.intersection(*others) - held.get(reducer, nobody) - {reducer}
        if lacked:
            found[reducer] = lacked
    return found


def suspension_rounds(times: int) -> int:
    """Rounds to be left out after so many withheld reduces in a row; 0: none yet."""
    if times < _SUSPENDED_FROM:
        return 0
    return int(min(MOST_ROUNDS, FIRST_ROUNDS << min(times - _SUSPENDED_FROM, MOST_ROUNDS)))


# ---- with the database ----


def take_note(session: Session, before: Round, after: Round) -> None:
    """Count what an event of the running round says of its reducers, in its transaction."""
    silent = withheld(before, after)
    for worker in sorted(silent):
        _count(session, worker, before.number, "withheld_reduce")
    for worker, members in sorted(lone_lacks(before, after).items()):
        if worker not in silent:
            _note_lone(session, worker, before.number, members)
    if after.phase is Phase.SETTLED:
        _forgive(session, after)


def note_withheld_inputs(session: Session, worker: str, round_: int, times: int) -> None:
    """Leave a reducer out that did not show what it had combined.

    Args:
        session: in a transaction.
        worker: the reducer.
        round_: the running one.
        times: rounds in which it ever did so, this one included.
    """
    device = session.get(WorkerRow, worker)
    if device is None or device.anchor:
        return
    row = _row(session, worker)
    rounds = suspension_rounds(_SUSPENDED_FROM + times - 1)
    row.until_round, row.reason = max(row.until_round, round_ + 1 + rounds), "withheld_inputs"
    _log.warning("reducer_suspended", worker=worker, reason=row.reason, rounds=rounds)


def suspended(session: Session, round_: int, workers: Collection[str]) -> set[str]:
    """Who of these is left out of reducing in a round."""
    found = session.scalars(
        select(SuspensionRow.worker).where(
            SuspensionRow.worker.in_(workers), SuspensionRow.until_round > round_
        )
    )
    return set(found)


def _count(session: Session, worker: str, round_: int, reason: str) -> None:
    device = session.get(WorkerRow, worker)
    if device is None or device.anchor:
        return
    row = _row(session, worker)
    row.withheld += 1
    row.reason = reason
    rounds = suspension_rounds(row.withheld)
    if rounds:
        row.until_round, row.lone_round = round_ + 1 + rounds, None
        _log.warning("reducer_suspended", worker=worker, reason=reason, rounds=rounds)


def _note_lone(session: Session, worker: str, round_: int, members: Collection[str]) -> None:
    device = session.get(WorkerRow, worker)
    if device is None or device.anchor:
        return
    row = _row(session, worker)
    before, row.lone_round = row.lone_round, round_
    again = before is not None and before < round_
    if again or len(set(_donors(session, members).values())) > 1:
        _count(session, worker, round_, "censored_members")


def _forgive(session: Session, settled: Round) -> None:
    """A delivered reduce ends the series, unless somebody was left out of it."""
    rows = session.scalars(select(SuspensionRow).where(SuspensionRow.worker.in_(settled.reducers)))
    for row in rows:
        if row.lone_round != settled.number and row.until_round <= settled.number:
            row.withheld = 0


def _row(session: Session, worker: str) -> SuspensionRow:
    row = session.get(SuspensionRow, worker)
    if row is None:
        row = SuspensionRow(worker=worker, withheld=0, until_round=0, reason="")
        session.add(row)
        session.flush()
    return row


def _donors(session: Session, workers: Collection[str]) -> Mapping[str, str]:
    found = session.execute(
        select(WorkerRow.worker, WorkerRow.donor).where(WorkerRow.worker.in_(workers))
    )
    return {row[0]: row[1] for row in found}
