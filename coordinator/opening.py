"""Which rounds are alive, and how the next one opens.

Invariants: there is always exactly one round that takes leases and commits, the one with the
highest number. With ``overlap = lag1`` the one before it may be alive too, while it is reduced; an
older one has ended.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator import round_state
from coordinator.context import RunContext, to_ms
from coordinator.round_state import Round
from coordinator.schema import ControlRow, RoundRow, StateRow
from protocol.wire import records_pb2 as wire

_log = structlog.get_logger()


def running_round(session: Session) -> RoundRow:
    """The row of the round in training; there is always one after the engine has started."""
    return session.scalars(select(RoundRow).order_by(RoundRow.number.desc()).limit(1)).one()


def running_rounds(session: Session) -> list[RoundRow]:
    """The rows of the rounds that are alive, the earlier one first."""
    newest = session.scalars(select(RoundRow).order_by(RoundRow.number.desc()).limit(2)).all()
    return [row for row in reversed(newest) if row.ended_at_s is None]


def newest_state(session: Session) -> StateRow:
    """The state that the next mean is applied to."""
    return session.scalars(select(StateRow).order_by(StateRow.settled_rounds.desc()).limit(1)).one()


def note_whether_finished(context: RunContext, session: Session, number: int) -> None:
    """Nobody is given work once the run is complete.

    Args:
        context: of the run.
        session: of a transaction in which a round opens or ends.
        number: of the round that takes leases.
    """
    state = newest_state(session)
    # Without a preimage for its draw a round could not settle: the chain's end is the run's.
    session.get_one(ControlRow, 1).finished = (
        context.finished(state.settled_rounds, state.merged_tokens)
        or number >= context.keys.draws.rounds
    )


def open_round(
    context: RunContext,
    session: Session,
    number: int,
    now_s: float,
    *,
    earlier_reducing: bool = False,
) -> RoundRow:
    """Sign the head of the newest state and open a round that is trained from it.

    Args:
        context: of the run.
        session: of the transaction.
        number: of the round.
        now_s: for the head.
        earlier_reducing: the round before is reduced meanwhile.
    """
    state = newest_state(session)
    note_whether_finished(context, session, number)
    control = session.get_one(ControlRow, 1)
    head = context.sign(
        wire.RunHead(
            run_id=context.run_id,
            round=number,
            state_digest=state.digest,
            weights_root=state.weights_root,
            momentum_root=state.momentum_root,
            merged_tokens=state.merged_tokens,
            weights_sha256=state.weights_sha256,
            weights_bytes=state.weights_bytes,
            momentum_sha256=state.momentum_sha256,
            momentum_bytes=state.momentum_bytes,
            issued_at_ms=to_ms(now_s),
            settled_rounds=state.settled_rounds,
        )
    )
    machine = Round(
        number=number,
        policy=context.policy,
        earlier_reducing=earlier_reducing,
        paused=control.paused,
    )
    row = RoundRow(
        number=number,
        machine=round_state.dump(machine),
        phase=machine.phase.value,
        settled_rounds=state.settled_rounds,
        head=head.SerializeToString(),
        opened_at_s=now_s,
    )
    session.add(row)
    session.flush()
    _log.info("round_open", round=number, settled=state.settled_rounds, finished=control.finished)
    return row
