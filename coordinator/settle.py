"""From held results to the next state.

Order, safe against a kill between any two steps:

1. the result chunks and the inclusion set are in the database before anything is computed;
2. the new state is a pure function of them and of the old state: computing it again gives the
   same bytes (protocol.md section 9);
3. its files are saved under the names of their digests, and durable, before any row names them;
4. one transaction: state row, consumed sequences, chances of an audit and credit leaves, the draw
   and the audits that it opens, verdicts on reports, the round's end and the opening of the next;
5. the log's head is signed after that commit.

A restart finds the round still settling and begins again at 1; the files of step 3 are then
found to be there already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import select

from coordinator import leases
from coordinator.audit import selection
from coordinator.checkpoints import SavedState
from coordinator.context import RunContext
from coordinator.opening import newest_state
from coordinator.record import append_credit
from coordinator.reports import judge, read_roster
from coordinator.results import held_chunks
from coordinator.round_state import SettleDone, SettleRefused
from coordinator.schema import (
    MERGED,
    AssignmentRow,
    ContributionRow,
    ReportRow,
    StateRow,
)
from coordinator.turn import Turn, current_roster
from protocol import merkle
from protocol.state import StateDescriptor
from protocol.state_step import decoding, step_state

Vector = NDArray[np.float32]

_log = structlog.get_logger()


@dataclass(frozen=True)
class ModelState:
    """A state in memory."""

    descriptor: StateDescriptor
    weights: Vector
    momentum: Vector


@dataclass(frozen=True)
class SettleInputs:
    """Everything that the new state is computed from, besides the old one."""

    round: int
    settled_rounds: int  # of the state that the mean is applied to
    group_id: bytes
    chunks: tuple[bytes, ...]
    tokens: int  # merged by this round


def read_inputs(turn: Turn) -> SettleInputs | None:
    """What is to be settled, or None when nothing is."""
    turn = turn.reducing
    if not turn.machine.settling:
        return None
    roster_row = current_roster(turn.session, turn.machine)
    assert roster_row is not None
    return SettleInputs(
        turn.machine.number,
        newest_state(turn.session).settled_rounds,
        roster_row.group_id,
        held_chunks(turn, roster_row.group_id),
        sum(row.tokens for row in _merged(turn)),
    )


def compute(context: RunContext, before: ModelState, inputs: SettleInputs) -> ModelState | None:
    """Decode the mean and take the outer step; blocks, so call it in a thread.

    Returns:
        None if the step leaves the finite numbers: no machine could train from such a state, nor
        load it again.
    """
    mean = decoding(inputs.chunks, context.layout, context.manifest.update.codec)
    after = step_state(
        before.weights, before.momentum, mean, context.layout, context.manifest.outer
    )
    if after is None:
        return None
    descriptor = StateDescriptor(
        before.descriptor.round + 1,
        before.descriptor.merged_tokens + inputs.tokens,
        after.weights_root,
        after.momentum_root,
    )
    return ModelState(descriptor, after.weights, after.momentum)


def refuse(turn: Turn) -> None:
    """Give the round up: its mean leads out of the finite numbers."""
    _log.error("round_diverged", round=turn.reducing.machine.number)
    turn.reducing.apply(SettleRefused("the mean of its updates is too large for the model"))


def record_settled(
    turn: Turn,
    inputs: SettleInputs,
    descriptor: StateDescriptor,
    saved: SavedState,
    *,
    evaluated: bool,
) -> None:
    """Step 4, in the caller's transaction.

    Args:
        turn: of the run.
        inputs: what was settled.
        descriptor: of the new state.
        saved: its files.
        evaluated: whether no validation loss is to come.
    """
    turn = turn.reducing
    assert turn.machine.settling and turn.machine.number == inputs.round
    roster_row = current_roster(turn.session, turn.machine)
    assert roster_row is not None
    turn.session.add(state_row(descriptor, saved, turn.now_s, evaluated=evaluated))
    merged = _merged(turn)
    for row in merged:
        turn.session.get_one(AssignmentRow, row.assignment_id).status = MERGED
        leases.consume(turn.session, row.assignment_id, row.steps)
    chances = selection.chances(turn, merged, roster_row)
    append_credit(
        turn.context,
        turn.session,
        round_=inputs.round,
        merged=merged,
        roster=read_roster(roster_row),
        chances={assignment_id: chance.ppm for assignment_id, chance in chances.items()},
        now_s=turn.now_s,
    )
    selection.open_audits(turn, merged, roster_row, chances)
    turn.then.leaves_added = True
    turn.row.members = len(merged)
    turn.row.tokens = inputs.tokens
    turn.row.result_digest = merkle.root([merkle.leaf_hash(chunk) for chunk in inputs.chunks])
    reports = select(ReportRow).where(ReportRow.round == inputs.round)
    for report in turn.session.scalars(reports):
        judge(report, descriptor.digest)
    _log.info(
        "round_settled",
        round=inputs.round,
        members=len(merged),
        tokens=inputs.tokens,
        state=descriptor.digest.hex()[:16],
    )
    turn.apply(SettleDone())


def state_row(
    descriptor: StateDescriptor, saved: SavedState, now_s: float, *, evaluated: bool
) -> StateRow:
    """The row of a state whose files are saved."""
    return StateRow(
        settled_rounds=descriptor.round,
        digest=descriptor.digest,
        weights_root=descriptor.weights_root,
        momentum_root=descriptor.momentum_root,
        merged_tokens=descriptor.merged_tokens,
        weights_sha256=saved.weights_sha256,
        weights_bytes=saved.weights_bytes,
        momentum_sha256=saved.momentum_sha256,
        momentum_bytes=saved.momentum_bytes,
        evaluated=evaluated,
        saved_at_s=now_s,
    )


def saved_state(row: StateRow) -> SavedState:
    """Inverse of :func:`state_row`, for the files."""
    return SavedState(
        row.weights_sha256, row.weights_bytes, row.momentum_sha256, row.momentum_bytes
    )


def _merged(turn: Turn) -> list[ContributionRow]:
    """Contributions of the inclusion set, in roster order."""
    rows = turn.session.scalars(
        select(ContributionRow).where(
            ContributionRow.round == turn.machine.number,
            ContributionRow.worker.in_(turn.machine.inclusion),
        )
    )
    by_worker = {row.worker: row for row in rows}
    return [by_worker[worker] for worker in turn.machine.inclusion]
