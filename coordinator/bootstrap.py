"""Beginning a run, and beginning again after a restart.

Invariants: the first state, the run's leaf and the first round commit together; a restart finds
them and makes nothing new. Open deadlines move by the time that the coordinator was away, once: it
is counted from the last time that was committed.
"""

from __future__ import annotations

import asyncio

import numpy as np
import structlog
from sqlalchemy import case, select, update
from sqlalchemy.orm import Session

from coordinator.checkpoints import CheckpointStore, SavedState
from coordinator.context import RunContext
from coordinator.crowd.delegations import log_delegations
from coordinator.database import Database
from coordinator.opening import newest_state, open_round
from coordinator.round_state import Restarted
from coordinator.schema import AssignmentRow, ControlRow, RoundRow, StateRow
from coordinator.settle import ModelState, Vector, saved_state, state_row
from coordinator.turn import Turn
from ledger import tree
from ledger.records import RunLeaf
from protocol.errors import BadDigest, UsageError
from protocol.manifest import InitWeights, RunManifest
from protocol.model import initial_weights
from protocol.state import StateDescriptor, describe

_log = structlog.get_logger()


async def load_or_create(
    context: RunContext, database: Database, checkpoints: CheckpointStore, now_s: float
) -> ModelState:
    """The state that the running round starts from, in memory.

    Raises:
        UsageError: the database holds another run, or the dataset is too small.
        BadDigest: the stored state is damaged.
        TransientError: database or checkpoint store are not available.
    """
    assert context.batches_per_epoch > 0
    stored = await database.run(lambda session: _stored(context, session))
    if stored is None:
        state = await asyncio.to_thread(_first_state, context, checkpoints)
        saved = await asyncio.to_thread(
            checkpoints.save, state.weights, state.momentum, state.descriptor
        )
        first = state_row(state.descriptor, saved, now_s, evaluated=False)
        await database.run(lambda session: _complete(context, session, first, now_s))
        return state
    descriptor, saved = stored
    try:
        weights, momentum = await asyncio.to_thread(checkpoints.load, saved)
    except FileNotFoundError as error:
        raise UsageError(
            f"the run's newest state is not in the checkpoint store ({error}): restore the blobs "
            "and the database from the same backup, or correct [server] blobs in run.toml"
        ) from error
    state = await asyncio.to_thread(_checked, context, descriptor, weights, momentum)
    await database.run(lambda session: _complete(context, session, None, now_s))
    return state


def _complete(context: RunContext, session: Session, first: StateRow | None, now_s: float) -> None:
    """Add what a new run lacks; preparing a run folder may have made some of it."""
    if session.get(ControlRow, 1) is None:
        session.add(ControlRow(id=1, run_id=context.run_id, alive_at_s=now_s))
    if first is not None:
        session.add(first)
    session.flush()
    if tree.tree_size(session) == 0:
        leaf = RunLeaf.of(context.manifest, at_s=int(now_s), draw_tip=context.keys.draws.tip)
        context.log.append(session, [leaf])
    log_delegations(
        context.log,
        session,
        run_id=context.run_id,
        root=context.manifest.root,
        now_s=now_s,
    )
    if session.scalar(select(RoundRow.number).limit(1)) is None:
        open_round(context, session, 0, now_s)


def resume(turn: Turn) -> None:
    """Move the open deadlines by the downtime; a settle that was under way begins anew."""
    control = turn.session.get_one(ControlRow, 1)
    downtime_s = max(0.0, turn.now_s - control.alive_at_s)
    _log.info("back", away_s=round(downtime_s, 1))
    for running in turn.running:
        if running.machine.deadline_s is not None:
            number = running.machine.number
            _log.info("round_resumed", round=number, downtime_s=round(downtime_s, 1))
            running.apply(Restarted(downtime_s))
            _do_not_count(running, downtime_s)
    control.alive_at_s = turn.now_s


def _do_not_count(turn: Turn, downtime_s: float) -> None:
    """A worker that could not deliver is not slow: its speed is measured since its lease."""
    mine = (
        AssignmentRow.round == turn.machine.number,
        AssignmentRow.worker.in_(turn.machine.training),
    )
    moved = AssignmentRow.leased_at_s + downtime_s
    later = case((moved > turn.now_s, turn.now_s), else_=moved)
    turn.session.execute(update(AssignmentRow).where(*mine).values(leased_at_s=later))


def _stored(context: RunContext, session: Session) -> tuple[StateDescriptor, SavedState] | None:
    control = session.get(ControlRow, 1)
    if control is None:
        return None
    if control.run_id != context.run_id:
        raise UsageError(
            f"the database belongs to run {control.run_id.hex()[:16]}, not to this manifest's "
            f"{context.run_id.hex()[:16]}: give each run a folder of its own"
        )
    if session.scalar(select(StateRow.settled_rounds).limit(1)) is None:
        return None
    row = newest_state(session)
    descriptor = StateDescriptor(
        row.settled_rounds, row.merged_tokens, row.weights_root, row.momentum_root
    )
    return descriptor, saved_state(row)


def _checked(
    context: RunContext,
    descriptor: StateDescriptor,
    weights: Vector,
    momentum: Vector,
) -> ModelState:
    found = describe(
        weights,
        momentum,
        round_=descriptor.round,
        merged_tokens=descriptor.merged_tokens,
        chunk_elements=context.layout.chunk_elements,
    )
    if found != descriptor:
        raise BadDigest("the stored state does not have the digest in the database: restore both")
    return ModelState(descriptor, weights, momentum)


def _first_state(context: RunContext, checkpoints: CheckpointStore) -> ModelState:
    weights = _first_weights(context.manifest, checkpoints)
    momentum = np.zeros_like(weights)
    descriptor = describe(
        weights,
        momentum,
        round_=0,
        merged_tokens=0,
        chunk_elements=context.layout.chunk_elements,
    )
    return ModelState(descriptor, weights, momentum)


def _first_weights(manifest: RunManifest, checkpoints: CheckpointStore) -> Vector:
    if isinstance(manifest.init, InitWeights):
        return checkpoints.load_weights(bytes.fromhex(manifest.init.weights_sha256))
    return initial_weights(manifest)
