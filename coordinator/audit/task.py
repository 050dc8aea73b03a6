"""Whether a round's task is at fault, and not those who did it.

Invariants:

* Before anybody is convicted of a unit, some of its round's other donors are audited too. A task,
  or an auditor's machine, that is at fault fails everybody: without these controls it would convict
  whoever happens to be drawn, one by one. And cheats in concert, being new, would be most of those
  who are drawn: without the controls they would pass for a faulty task.
* It is judged by donors: one may have many devices.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.case import Task
from coordinator.audit.schema import DECIDED, SILENT, AuditRow, ChallengeRow, DrawRow
from coordinator.audit.selection import audit_merged
from coordinator.schema import ContributionRow, WorkerRow
from coordinator.turn import Turn
from protocol.audit_policy import Verdict, Why

SUSPECT_TASK = "suspect_task"

_CONTROLS = 8
"""Most of the other donors; a sacrificed key cannot ask for more replays."""


def call_controls(turn: Turn, round_: int) -> bool:
    """Put some of the round's other donors up for audit before anybody in it is convicted.

    Returns:
        Whether there were any; called once for a round.
    """
    session = turn.session
    audits = session.execute(
        select(AuditRow.donor, AuditRow.why).where(
            AuditRow.round == round_, AuditRow.subject == "training"
        )
    ).all()
    if any(row.why == Why.CONTROL for row in audits):
        return False
    known = {row.donor for row in audits}
    rows = session.execute(
        select(ContributionRow, WorkerRow.donor)
        .join(WorkerRow, WorkerRow.worker == ContributionRow.worker)
        .where(ContributionRow.round == round_, ContributionRow.leaf_index.is_not(None))
        .order_by(ContributionRow.assignment_id)
    ).all()
    others = {donor: row for row, donor in rows if donor not in known}
    draw_row = session.get_one(DrawRow, round_)
    for donor, row in list(others.items())[:_CONTROLS]:
        audit_merged(turn, row, donor, draw_row, Why.CONTROL)
    return bool(others)


def read_task(session: Session, round_: int, guilty: dict[bytes, int]) -> Task:
    """How the audits of a round stand; who only stays silent is not waited for."""
    stalled = (
        select(ChallengeRow.challenge_id)
        .where(
            ChallengeRow.audit_id == AuditRow.audit_id,
            ChallengeRow.asked == AuditRow.worker,
            ChallengeRow.status == SILENT,
        )
        .exists()
    )
    rows = session.execute(
        select(AuditRow, stalled.label("stalled")).where(
            AuditRow.round == round_, AuditRow.subject == "training", AuditRow.appeal == 0
        )
    ).all()
    convicted, undecided = set(), set()
    for row, is_stalled in rows:
        if row.audit_id in guilty or row.verdict == Verdict.FAILED or row.reason == SUSPECT_TASK:
            convicted.add(row.donor)
        elif row.phase != DECIDED and not is_stalled:
            undecided.add(row.donor)
    donors = {row.donor for row, _ in rows}
    return Task(len(donors), len(convicted), len(undecided - convicted))
