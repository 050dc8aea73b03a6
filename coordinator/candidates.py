"""Who is on a roster: members with their weights, and who may reduce for them.

Invariant: nothing here changes anything; the turn that asks signs what comes of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sqlalchemy import select

from coordinator import suspensions
from coordinator.audit.trust import best_passes, passes_of
from coordinator.blocks import welcome
from coordinator.roster import Candidate, Claim, member_weights
from coordinator.schema import ContributionRow, WorkerRow
from protocol.wire import records_pb2 as wire

if TYPE_CHECKING:  # it signs rosters with this
    from coordinator.turn import Turn


def still_welcome(turn: Turn, members: tuple[str, ...]) -> tuple[str, ...]:
    """Without those that were blocked since they committed."""
    found = turn.session.scalars(
        select(WorkerRow.worker).where(WorkerRow.worker.in_(members), welcome())
    )
    kept = set(found)
    return tuple(worker for worker in members if worker in kept)


def roster_members(turn: Turn, workers: tuple[str, ...]) -> list[wire.RosterMember]:
    """What a roster says of these members of the turn's round, in their order."""
    policy = turn.context.manifest.verification
    found = turn.session.execute(
        select(ContributionRow, WorkerRow.client_mode)
        .join(WorkerRow, WorkerRow.worker == ContributionRow.worker)
        .where(ContributionRow.round == turn.machine.number)
    ).all()
    by_worker = {row.worker: (row, client_mode) for row, client_mode in found}
    rows = [by_worker[worker] for worker in workers]
    weights = member_weights(
        [Claim(row.tokens, _has_weight(turn, row)) for row, _ in rows],
        newcomer_share=policy.newcomer_weight_share,
        cap_tokens=policy.weight_cap_tokens,
    )
    return [
        wire.RosterMember(
            worker=row.worker,
            assignment_id=row.assignment_id,
            weight=weight,
            commitment_root=row.commitment_root,
            client_mode=client_mode,
        )
        for (row, client_mode), weight in zip(rows, weights, strict=True)
    ]


def _has_weight(turn: Turn, row: ContributionRow) -> bool:
    """Trusted in the class in which it was computed: another one rounds otherwise."""
    passes = passes_of(turn.session, row.worker, row.execution)
    return passes >= turn.context.manifest.verification.probation_passes


def reducer_candidates(turn: Turn, members: tuple[str, ...]) -> list[Candidate]:
    """Anchors heard of lately and public members that are there; silent anchors if there is
    nobody else, unless it is known that they are gone."""
    rows = turn.session.scalars(
        select(WorkerRow)
        .where(WorkerRow.client_mode.is_(False) | WorkerRow.anchor)
        .where(welcome())
        .where(WorkerRow.anchor | WorkerRow.worker.in_(members))
        .order_by(WorkerRow.worker)
    ).all()
    suspended = suspensions.suspended(turn.session, turn.machine.number, members)
    since_s = turn.now_s - turn.context.options.silent_after_s
    heard: list[Candidate] = []
    silent: list[Candidate] = []
    for row in rows:
        if turn.is_absent(row.worker):
            continue
        candidate = Candidate(
            row.worker,
            row.donor,
            row.anchor,
            tuple(json.loads(row.multiaddrs)),
            trusted=row.worker not in suspended and _may_reduce(turn, row.worker),
            speed=turn.context.speeds.of(row.worker),
        )
        there = row.last_seen_s >= since_s or row.worker in members
        (heard if there else silent).append(candidate)
    return heard if any(candidate.able for candidate in heard) else silent


def _may_reduce(turn: Turn, worker: str) -> bool:
    """Combining is the same arithmetic everywhere: trust in any class will do."""
    least = turn.context.manifest.verification.reducer_passes
    return best_passes(turn.session, worker) >= least
