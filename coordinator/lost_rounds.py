"""Going on from an older state: rounds that a restore from a backup lost, and their numbers.

Invariants:

* A number of a round that may have been used after the backup is never used again: another roster
  under it would be equivocation, and the preimage of its draw may be public.
* A lost round costs nobody anything: what comes in about it is refused as too late.
* Whoever reads the public record sees from a leaf where the run goes on, and from which state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator import round_state
from coordinator.audit.schema import SuspensionRow
from coordinator.context import RunContext
from coordinator.ending import drop_results, free_leases
from coordinator.opening import newest_state, open_round, running_round, running_rounds
from coordinator.record import keep_loss, log_ended_rounds
from coordinator.round_state import Phase
from coordinator.schema import ControlRow, RoundRow, StateRow
from ledger import tree
from ledger.records import RestoreLeaf
from protocol.errors import TooLate, UsageError

MARGIN_ROUNDS = 100
"""Skipped beyond the estimate."""

_LOOKED_AT_ROUNDS = 1000
_LEAST_ROUND_S = 1.0
_MOST_SHARE_OF_CHAIN = 0.25
_LOST = "lost: the coordinator was restored from a backup"

_log = structlog.get_logger()


@dataclass(frozen=True)
class Continuation:
    """Where a restored run goes on."""

    lost_round: int  # that was in training when the backup was made
    next_round: int
    settled_rounds: int
    merged_tokens: int
    log_size: int  # leaves that were there: of the backup, and brought back
    leaf_index: int  # of the restore


def check_not_lost(session: Session, round_: int) -> None:
    """Refuse what is about a round that this run's database does not have any more.

    Raises:
        TooLate: it was lost.
    """
    if not 0 <= round_ < running_round(session).number:
        return
    row = session.get(RoundRow, round_)
    if row is None or row.reason == _LOST:
        raise TooLate(
            f"round {round_} was lost when the coordinator was restored from a backup: nobody is "
            "to blame; the run goes on from an earlier state"
        )


def rounds_to_skip(session: Session, *, since_s: float, left: int) -> int:
    """How many numbers may have been used since a backup, estimated generously.

    Rounds are taken to have been at most twice as fast as the fastest one that was seen.

    Args:
        session: on the backup's database.
        since_s: seconds since the backup was made.
        left: rounds that the run's chain of draws is still good for.

    Raises:
        UsageError: so many that the organiser has to say how many it were.
    """
    spans = session.execute(
        select(RoundRow.opened_at_s, RoundRow.ended_at_s)
        .where(RoundRow.ended_at_s.is_not(None))
        .order_by(RoundRow.number.desc())
        .limit(_LOOKED_AT_ROUNDS)
    )
    fastest_s = min((end - begin for begin, end in spans if end), default=_LEAST_ROUND_S)
    count = math.ceil(max(0.0, since_s) / max(fastest_s / 2, _LEAST_ROUND_S)) + MARGIN_ROUNDS
    if count > left * _MOST_SHARE_OF_CHAIN:
        raise UsageError(
            f"by its age, up to {count} rounds may have followed this backup: too many to skip, "
            f"of the {left} that the run's draws are good for. Say with --skip-rounds how many it "
            "were at most: the leaderboard or a mirror of the record shows the last one"
        )
    return count


def go_on(
    context: RunContext, session: Session, *, skip: int, log_size: int, now_s: float
) -> Continuation:
    """Give up what was alive when the backup was made, and open a round with a number never used.

    Args:
        context: of the run.
        session: of one transaction; the record's head has to be signed after it.
        skip: numbers to leave out.
        log_size: leaves of the backup; later ones were brought back.
        now_s: for the leaves.

    Raises:
        UsageError: the chain of draws does not reach so far.
    """
    lost = running_round(session)
    number = lost.number + 1 + skip
    if skip < 1 or number >= context.keys.draws.rounds:
        raise UsageError(
            f"cannot go on with round {number}: the run's draws end with round "
            f"{context.keys.draws.rounds - 1}, and at least one round is skipped"
        )
    kept = tree.tree_size(session)
    for row in running_rounds(session):
        _give_up(session, row, now_s)
    for settled in session.scalars(
        select(StateRow.settled_rounds).where(StateRow.evaluated.is_(False))
    ).all():
        keep_loss(session, settled, None)  # no leaf of an earlier round may come later
    log_ended_rounds(context, session, now_s)
    state = newest_state(session)
    leaf = RestoreLeaf(
        run_id=context.run_id.hex(),
        at_s=int(now_s),
        log_size=log_size,
        next_round=number,
        settled_rounds=state.settled_rounds,
        state_digest=state.digest.hex(),
        merged_tokens=state.merged_tokens,
    )
    (leaf_index,) = context.log.append(session, [leaf])
    session.execute(
        update(SuspensionRow)
        .where(SuspensionRow.until_round > lost.number)
        .values(until_round=SuspensionRow.until_round + skip)
    )
    open_round(context, session, number, now_s)
    session.get_one(ControlRow, 1).alive_at_s = now_s
    _log.info("restored", lost_round=lost.number, next_round=number)
    return Continuation(
        lost_round=lost.number,
        next_round=number,
        settled_rounds=state.settled_rounds,
        merged_tokens=state.merged_tokens,
        log_size=kept,
        leaf_index=leaf_index,
    )


def _give_up(session: Session, row: RoundRow, now_s: float) -> None:
    """End a round of the backup: its leases are free, it gets no leaf."""
    machine = replace(round_state.load(row.machine), phase=Phase.SKIPPED, reason=_LOST)
    row.machine, row.phase, row.reason = round_state.dump(machine), machine.phase.value, _LOST
    row.ended_at_s, row.logged = now_s, True
    row.settled_after = newest_state(session).settled_rounds
    free_leases(session, row.number)
    drop_results(session, row.number)
