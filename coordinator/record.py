"""What a round leaves in the public record.

Invariants: every ended round gets one leaf, in the order of the rounds. A settled round's leaf
waits for its validation loss, and later ones wait behind it; credit does not wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.context import RunContext
from coordinator.schema import ContributionRow, RoundRow, StateRow, WorkerRow
from ledger.credit import reducing_microcredits, training_microcredits
from ledger.records import CreditLeaf, RoundLeaf
from protocol.wire import records_pb2 as wire

MAX_LOSS_NATS = 1e6
"""A loss beyond it is a diverged model, and would not fit the record's integers for ever."""


def log_ended_rounds(context: RunContext, session: Session, now_s: float) -> bool:
    """Append the leaves of ended rounds, up to one whose loss is not known yet.

    Returns:
        Whether there were any.
    """
    rows = session.scalars(
        select(RoundRow)
        .where(RoundRow.ended_at_s.is_not(None), RoundRow.logged.is_(False))
        .order_by(RoundRow.number)
    ).all()
    added = False
    for row in rows:
        settled = row.phase == "SETTLED"
        state = session.get_one(StateRow, row.settled_after)
        if settled and not state.evaluated:
            break
        context.log.append(session, [_round_leaf(context, row, state, settled, now_s)])
        row.logged = added = True
    return added


def _round_leaf(
    context: RunContext, row: RoundRow, state: StateRow, settled: bool, now_s: float
) -> RoundLeaf:
    assert row.ended_at_s is not None
    loss = state.validation_loss if settled else None
    return RoundLeaf(
        run_id=context.run_id.hex(),
        at_s=int(now_s),
        round=row.number,
        outcome="settled" if settled else "skipped",
        state_digest=state.digest.hex(),
        merged_tokens=state.merged_tokens,
        roster_digest=None if row.roster_digest is None else row.roster_digest.hex(),
        result_digest=None if row.result_digest is None else row.result_digest.hex(),
        members=row.members,
        validation_loss_micronats=None if loss is None else round(loss * 1_000_000),
        started_at_s=int(row.opened_at_s),
        ended_at_s=int(row.ended_at_s),
    )


def append_credit(
    context: RunContext,
    session: Session,
    *,
    round_: int,
    merged: Iterable[ContributionRow],
    roster: wire.Roster,
    chances: Mapping[bytes, int],
    now_s: float,
) -> None:
    """Credit for a settled round: training for who was merged, reducing for who delivered.

    Each contribution remembers its leaf, for the receipt.

    Args:
        context: of the run.
        session: of the transaction that settles the round.
        round_: that settled.
        merged: the contributions of the inclusion set.
        roster: of the attempt that settled.
        chances: of an audit, in millionths, by assignment id: for each of ``merged``.
        now_s: for the leaves.
    """
    merged = list(merged)
    workers = {row.worker for row in merged} | {r.reducer for r in roster.reducers}
    enrolled = session.scalars(select(WorkerRow).where(WorkerRow.worker.in_(workers)))
    donors = {row.worker: row.donor for row in enrolled}
    training = [
        _training_leaf(context, row, donors[row.worker], chances[row.assignment_id], now_s)
        for row in merged
    ]
    reducing = [
        _reducing_leaf(context, round_, share, donors[share.reducer], now_s)
        for share in roster.reducers
    ]
    indexes = context.log.append(session, [*training, *reducing])
    for row, index in zip(merged, indexes, strict=False):
        row.leaf_index = index


def _training_leaf(
    context: RunContext, row: ContributionRow, donor: str, chance_ppm: int, now_s: float
) -> CreditLeaf:
    manifest = context.manifest
    return CreditLeaf(
        run_id=context.run_id.hex(),
        at_s=int(now_s),
        work="training",
        round=row.round,
        assignment_id=row.assignment_id.hex(),
        worker=row.worker,
        donor=donor,
        tokens=row.tokens,
        microcredits=training_microcredits(
            row.tokens, manifest.model_config_json, manifest.sequence_length
        ),
        contribution_digest=row.digest.hex(),
        execution=row.execution,
        audit_ppm=chance_ppm,
    )


def _reducing_leaf(
    context: RunContext, round_: int, share: wire.ReducerRange, donor: str, now_s: float
) -> CreditLeaf:
    chunks = share.end_chunk - share.first_chunk
    return CreditLeaf(
        run_id=context.run_id.hex(),
        at_s=int(now_s),
        work="reducing",
        round=round_,
        worker=share.reducer,
        donor=donor,
        chunks=chunks,
        microcredits=reducing_microcredits(chunks, context.manifest.update.chunk_elements),
    )


def keep_loss(session: Session, settled_rounds: int, loss: float | None) -> None:
    """A diverged model has no loss that the record could carry."""
    row = session.get_one(StateRow, settled_rounds)
    usable = loss is not None and 0 <= loss <= MAX_LOSS_NATS  # false for NaN
    row.validation_loss, row.evaluated = (loss if usable else None), True


def state_to_evaluate(session: Session) -> int | None:
    """The oldest settled state whose validation loss is not known, as settled rounds."""
    return session.scalar(
        select(func.min(StateRow.settled_rounds)).where(StateRow.evaluated.is_(False))
    )
