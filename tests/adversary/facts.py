"""What the suite sees of a run: the coordinator's database, read and never written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from coordinator.audit.schema import (
    AuditorRow,
    AuditRow,
    BlockRow,
    ProbationRow,
    ReducerAuditRow,
    SuspensionRow,
    ToleranceRow,
)
from coordinator.round_state import Phase
from coordinator.schema import (
    MERGED,
    AssignmentRow,
    ContributionRow,
    EvidenceRow,
    RosterRow,
    RoundRow,
    StateRow,
    WorkerRow,
)
from protocol.audit_policy import Verdict
from protocol.wire import records_pb2 as wire


@dataclass(frozen=True)
class Audit:
    """A verdict, or an audit that waits for one."""

    subject: str  # training | probation | reducing
    round: int
    worker: str
    why: str
    verdict: str | None
    reason: str
    created_at_s: float
    decided_at_s: float | None


@dataclass(frozen=True)
class Unit:
    """A contribution that was accepted."""

    round: int
    worker: str
    merged: bool
    credit: str
    chance_ppm: int | None


@dataclass(frozen=True)
class Facts:
    """One consistent look at a run."""

    settled: int  # rounds
    rounds: int  # settled or skipped
    losses: dict[int, float]  # by settled rounds, nats per token
    audits: tuple[Audit, ...]
    units: tuple[Unit, ...]
    assigned: tuple[tuple[int, str], ...]
    blocked: dict[str, str]  # key -> reason
    suspended: dict[str, str]  # worker -> reason
    evidence: tuple[tuple[str, str], ...]  # kind, signer
    auditors: dict[str, str | None]  # PeerID -> why suspended
    outvoted: dict[str, int]
    probations: dict[str, str]  # worker -> status
    enrolled: frozenset[str]
    reducing: dict[str, tuple[int, ...]]  # worker -> rounds of rosters that name it as reducer
    calibrated: bool

    def verdicts(self, worker: str, *verdicts: Verdict) -> list[Audit]:
        """Decided audits of a worker, oldest round first."""
        wanted = verdicts or tuple(Verdict)
        return [a for a in self.audits if a.worker == worker and a.verdict in wanted]

    def merged_rounds(self, worker: str) -> list[int]:
        return sorted(u.round for u in self.units if u.worker == worker and u.merged)

    @property
    def open_audits(self) -> list[Audit]:
        return [audit for audit in self.audits if audit.verdict is None]


class Observer:
    """Reads one SQLite file without ever taking its write lock."""

    def __init__(self, path: Path) -> None:
        self._engine: Engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")

    def look(self) -> Facts:
        with Session(self._engine) as session:
            return _facts(session)

    def close(self) -> None:
        self._engine.dispose()


def _facts(session: Session) -> Facts:
    states = session.scalars(select(StateRow)).all()
    ended = select(RoundRow.number).where(RoundRow.phase.in_((Phase.SETTLED, Phase.SKIPPED)))
    auditors = session.scalars(select(AuditorRow)).all()
    return Facts(
        settled=max((row.settled_rounds for row in states), default=0),
        rounds=len(session.scalars(ended).all()),
        losses={
            row.settled_rounds: row.validation_loss
            for row in states
            if row.validation_loss is not None
        },
        audits=_audits(session),
        units=_units(session),
        assigned=tuple(
            (row[0], row[1])
            for row in session.execute(select(AssignmentRow.round, AssignmentRow.worker))
        ),
        blocked={row.key: row.reason for row in session.scalars(select(BlockRow))},
        suspended={row.worker: row.reason for row in session.scalars(select(SuspensionRow))},
        evidence=tuple((row.kind, row.signer) for row in session.scalars(select(EvidenceRow))),
        auditors={row.auditor: row.suspended_reason for row in auditors},
        outvoted={row.auditor: row.outvoted for row in auditors},
        probations={row.worker: row.status for row in session.scalars(select(ProbationRow))},
        enrolled=frozenset(session.scalars(select(WorkerRow.worker).where(~WorkerRow.anchor))),
        reducing=_reducing(session),
        calibrated=session.get(ToleranceRow, 1) is not None,
    )


def _audits(session: Session) -> tuple[Audit, ...]:
    training = [
        Audit(
            row.subject,
            row.round,
            row.worker,
            row.why,
            row.verdict,
            row.reason,
            row.created_at_s,
            row.decided_at_s,
        )
        for row in session.scalars(select(AuditRow).order_by(AuditRow.round, AuditRow.appeal))
    ]
    reducing = [
        Audit(
            "reducing",
            row.round,
            row.reducer,
            "",
            row.verdict,
            row.reason,
            row.created_at_s,
            row.decided_at_s,
        )
        for row in session.scalars(select(ReducerAuditRow).order_by(ReducerAuditRow.round))
    ]
    return tuple(training + reducing)


def _units(session: Session) -> tuple[Unit, ...]:
    query = select(ContributionRow, AssignmentRow.status).join(
        AssignmentRow, AssignmentRow.assignment_id == ContributionRow.assignment_id
    )
    return tuple(
        Unit(row.round, row.worker, status == MERGED, row.credit, row.chance_ppm)
        for row, status in session.execute(query.order_by(ContributionRow.round))
    )


def _reducing(session: Session) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for row in session.scalars(select(RosterRow).order_by(RosterRow.round)):
        roster = wire.Roster.FromString(wire.Envelope.FromString(row.envelope).payload)
        for share in roster.reducers:
            found.setdefault(share.reducer, []).append(row.round)
    return {worker: tuple(rounds) for worker, rounds in found.items()}


def cheats(log: str) -> list[dict[str, Any]]:
    """What a faulty process says that it did, in order."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == "cheated"]
