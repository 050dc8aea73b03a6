"""Which contributions of a settled round are audited, and when everybody may know.

Invariants:

* A chance is fixed, and written into the credit's leaf, before the draw decides; the draw is a
  function of the round's preimage and inclusion set, so nobody chooses who is audited.
* A chance is the policy's, or certainty: what raises it never lowers it.
* A preimage gives away every earlier one, so draws are published in order, and none while an
  audit of its round still waits for projections: nobody foresees which chunks will be opened.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from coordinator.audit import trust
from coordinator.audit.begin import begin_audit, result_audit_id
from coordinator.audit.schema import (
    OPENING,
    PENDING,
    WAITING,
    AuditRow,
    DrawRow,
    OtherCreditRow,
    ReducerAuditRow,
)
from coordinator.audit.screening import outliers
from coordinator.context import RunContext
from coordinator.reports import read_roster
from coordinator.schema import ContributionRow, RosterRow, WorkerRow
from coordinator.turn import Turn
from ledger.records import CreditLeaf, DrawLeaf, parse_leaf
from ledger.schema import LogLeaf
from protocol.audit_policy import PPM, Why, chance_ppm
from protocol.draw import (
    audited_results,
    draw,
    is_selected,
    projection_seed,
    wants_second_auditor,
)
from protocol.manifest import VerificationSpec
from protocol.wire import records_pb2 as wire

_PUBLISHED_AT_ONCE = 256

_log = structlog.get_logger()


@dataclass(frozen=True)
class Chance:
    """How probable the audit of a contribution is, and why."""

    ppm: int  # millionths
    why: Why


def chances(
    turn: Turn, merged: Sequence[ContributionRow], roster_row: RosterRow
) -> dict[bytes, Chance]:
    """Chance of an audit for each merged contribution, by assignment.

    Args:
        turn: of the round that settles.
        merged: its inclusion set's contributions.
        roster_row: of the attempt that settles.
    """
    session, policy = turn.session, turn.context.manifest.verification
    outlying = outliers(session, turn.context, roster_row.group_id)
    workers = [row.worker for row in merged]
    known = trust.rows_of(session, workers)
    before = _executions_before(session, workers, turn.machine.number)
    found = {}
    for row in merged:
        trusted = known.get((row.worker, row.execution))
        found[row.assignment_id] = raised(
            policy,
            0 if trusted is None else trusted.passes,
            watched=Why(trusted.watch) if trusted is not None and trusted.watch else None,
            device_changed=before.get(row.worker, row.execution) != row.execution,
            outlying=row.worker in outlying,
        )
    return found


def raised(
    policy: VerificationSpec,
    passes: int,
    *,
    watched: Why | None = None,
    device_changed: bool = False,
    outlying: bool = False,
) -> Chance:
    """The policy's chance, or certainty; of several reasons the first.

    Args:
        policy: the run's.
        passes: consecutive audited passes of the device in this execution class.
        watched: an earlier audit came to nothing.
        device_changed: its execution class is not that of its contribution before.
        outlying: screening found it far from the others of its round.
    """
    ppm = chance_ppm(policy, passes)
    if passes < policy.probation_passes:
        return Chance(ppm, Why.NEWCOMER)
    if watched is not None:
        return Chance(PPM, watched)
    if device_changed:
        return Chance(PPM, Why.DEVICE_CHANGED)
    if outlying:
        return Chance(PPM, Why.SCREENING)
    return Chance(ppm, Why.SAMPLED)


def open_audits(
    turn: Turn,
    merged: Sequence[ContributionRow],
    roster_row: RosterRow,
    chances: Mapping[bytes, Chance],
) -> None:
    """Draw, and put up for audit what was drawn; the credit's leaves are written already.

    Args:
        turn: of the round that settles.
        merged: its inclusion set's contributions, each with its leaf.
        roster_row: of the attempt that settles, with its inclusion set.
        chances: of :func:`chances`.
    """
    session, round_ = turn.session, turn.machine.number
    row = DrawRow(
        round=round_,
        inclusion_digest=_inclusion_digest(roster_row),
        group_id=roster_row.group_id,
        published=False,
    )
    session.add(row)
    donors = donors_of(session, [row.worker for row in merged])
    draw_ = draw_of(turn.context, row)
    for contribution in merged:
        chance = chances[contribution.assignment_id]
        contribution.chance_ppm = chance.ppm
        contribution.credit, contribution.credited_at_s = PENDING, turn.now_s
        if is_selected(draw_, contribution.assignment_id, chance.ppm):
            audit_merged(turn, contribution, donors[contribution.worker], row, chance.why)
            trust.clear_watch(session, contribution.worker, contribution.execution)
    _audit_results(turn, roster_row, draw_)
    _note_reducing(turn, round_)


def audit_merged(
    turn: Turn, contribution: ContributionRow, donor: str, row: DrawRow, why: Why
) -> AuditRow:
    """Put one merged contribution up for audit, by the draw of its round."""
    assignment_id, draw_ = contribution.assignment_id, draw_of(turn.context, row)
    second_ppm = math.ceil(turn.context.manifest.verification.p_second_auditor * PPM)
    return begin_audit(
        turn.session,
        subject="training",
        assignment_id=assignment_id,
        round_=contribution.round,
        group_id=row.group_id,
        worker=contribution.worker,
        donor=donor,
        execution=contribution.execution,
        why=why,
        draw=draw_,
        projection_seed=projection_seed(draw_, assignment_id),
        second=wants_second_auditor(draw_, assignment_id, second_ppm),
        now_s=turn.now_s,
    )


def draw_of(context: RunContext, row: DrawRow) -> bytes:
    """The draw of a settled round, 32 bytes."""
    return draw(context.keys.draws.preimage(row.round), row.inclusion_digest)


def publish_draws(turn: Turn) -> bool:
    """Write the preimages that nobody can profit from any more into the public record.

    Returns:
        Whether there were any.
    """
    waiting = exists().where(
        AuditRow.round == DrawRow.round,
        AuditRow.phase == WAITING,
        AuditRow.subject == "training",  # of a first unit, no draw of a round says anything
    )
    rows = turn.session.execute(
        select(DrawRow, waiting.label("waiting"))
        .where(DrawRow.published.is_(False))
        .order_by(DrawRow.round)
        .limit(_PUBLISHED_AT_ONCE)
    ).all()
    leaves = []
    for row, still_waiting in rows:
        if still_waiting:
            break
        preimage = turn.context.keys.draws.preimage(row.round)
        leaves.append(
            DrawLeaf(
                run_id=turn.context.run_id.hex(),
                at_s=int(turn.now_s),
                round=row.round,
                preimage=preimage.hex(),
                inclusion_digest=row.inclusion_digest.hex(),
            )
        )
        row.published = True
    if leaves:
        turn.context.log.append(turn.session, leaves)
        turn.then.leaves_added = True
        _log.info("draws_published", rounds=len(leaves), newest=leaves[-1].round)
    return bool(leaves)


def donors_of(session: Session, workers: Sequence[str]) -> dict[str, str]:
    """For whom each of these devices works."""
    found = session.execute(
        select(WorkerRow.worker, WorkerRow.donor).where(WorkerRow.worker.in_(workers))
    )
    return {row.worker: row.donor for row in found}


def _executions_before(session: Session, workers: Sequence[str], round_: int) -> dict[str, str]:
    """Execution class of each worker's contribution before this round, if it made one."""
    newest = (
        select(ContributionRow.worker, func.max(ContributionRow.round).label("round"))
        .where(ContributionRow.worker.in_(workers), ContributionRow.round < round_)
        .group_by(ContributionRow.worker)
        .subquery()
    )
    found = session.execute(
        select(ContributionRow.worker, ContributionRow.execution).join(
            newest,
            (ContributionRow.worker == newest.c.worker) & (ContributionRow.round == newest.c.round),
        )
    )
    return {row.worker: row.execution for row in found}


def _inclusion_digest(roster_row: RosterRow) -> bytes:
    assert roster_row.inclusion is not None, "settled without an inclusion set"
    return hashlib.sha256(wire.Envelope.FromString(roster_row.inclusion).payload).digest()


def _audit_results(turn: Turn, roster_row: RosterRow, draw_: bytes) -> None:
    count, most = turn.context.layout.count, turn.context.manifest.verification.audited_results
    ranges = read_roster(roster_row).reducers
    for chunk in audited_results(draw_, count, most):
        turn.session.add(
            ReducerAuditRow(
                audit_id=result_audit_id(roster_row.group_id, chunk),
                round=turn.machine.number,
                group_id=roster_row.group_id,
                chunk=chunk,
                reducer=next(r.reducer for r in ranges if r.first_chunk <= chunk < r.end_chunk),
                phase=OPENING,
                created_at_s=turn.now_s,
            )
        )


def _note_reducing(turn: Turn, round_: int) -> None:
    """Remember the leaves of the round's reducing credit: they become final, or are reversed."""
    rows = turn.session.execute(
        select(LogLeaf.leaf_index, LogLeaf.data).where(
            LogLeaf.kind == "credit", LogLeaf.round == round_, LogLeaf.assignment_id.is_(None)
        )
    )
    for index, data in rows.all():
        leaf = parse_leaf(data)
        assert isinstance(leaf, CreditLeaf)
        turn.session.add(
            OtherCreditRow(
                leaf_index=index,
                work=leaf.work,
                round=round_,
                worker=leaf.worker,
                donor=leaf.donor,
                microcredits=leaf.microcredits,
                credit=PENDING,
                credited_at_s=turn.now_s,
            )
        )
