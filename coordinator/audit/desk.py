"""The desk at which open audits are taken forward, a little at a time.

Invariants:

* All state is in the database. What is kept in memory (comparisons, cases that would fail) can be
  computed again, so a coordinator that is killed at any instruction goes on from its rows.
* A step is bounded: a short turn reads and writes a batch, heavy arithmetic is done in threads, and
  what comes of it is written by another turn that checks again.
* A task is suspect when most of the contributions audited in its round would fail: then nobody is
  punished. So a case that would fail waits until the others can no longer make its task suspect.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.case import (
    Ask,
    Compare,
    Decide,
    OpenChunks,
    QueueJob,
    Wait,
    decide,
    judge_task,
)
from coordinator.audit.challenges import ask, retain_from_round, withdraw
from coordinator.audit.closing import (
    convict_liars,
    droppable,
    findings,
    forget_answers,
    forget_files,
    note_outvoted,
    tidy,
)
from coordinator.audit.compare import (
    Judged,
    ReplayFile,
    Sheet,
    SignedProjections,
    choose_chunks,
    compare,
)
from coordinator.audit.facts import (
    OPEN,
    PROJECT,
    Docket,
    jobs_of,
    opened_chunks,
    read_docket,
    read_result,
)
from coordinator.audit.finality import finish_credit
from coordinator.audit.reducer_audit import ResultDesk
from coordinator.audit.replays import ReplayStore
from coordinator.audit.schema import (
    ANSWERED,
    DECIDED,
    OPENING,
    QUEUED,
    SILENT,
    WAITING,
    AuditJobRow,
    AuditRow,
    ChallengeRow,
)
from coordinator.audit.selection import publish_draws
from coordinator.audit.task import SUSPECT_TASK, call_controls, read_task
from coordinator.audit.tolerances import load_table
from coordinator.audit.verdict import record_verdict
from coordinator.context import RunContext
from coordinator.turn import Turn
from protocol.audit_policy import Verdict
from protocol.errors import BadRecord
from protocol.tolerance import ToleranceTable
from protocol.wire import records_pb2 as wire

T = TypeVar("T")

_AUDITS_PER_STEP = 32
_HEAVY_PER_STEP = 4

_log = structlog.get_logger()


class RunTurn(Protocol):
    """Runs one transaction on the running round, and publishes and signs what came of it."""

    def __call__(self, work: Callable[[Turn], T], /) -> Awaitable[T]: ...


@dataclass
class _Work:
    """What a turn found to be done outside of it."""

    choose: list[Sheet] = field(default_factory=list)
    compare: list[Sheet] = field(default_factory=list)
    changed: bool = False

    @property
    def heavy(self) -> int:
        return len(self.choose) + len(self.compare)


class AuditDesk:
    """Takes all open audits of a run forward."""

    def __init__(self, context: RunContext, turn: RunTurn, replays: ReplayStore) -> None:
        """Touches nothing yet.

        Args:
            context: of the run.
            turn: runs a transaction.
            replays: what auditors computed.
        """
        self._context = context
        self._turn = turn
        self._replays = replays
        self._results = ResultDesk(context)
        self._judged: dict[bytes, Judged] = {}  # by audit
        self._guilty: dict[bytes, int] = {}  # audits that would fail: their rounds
        self._after = b""  # the audit that was looked at last
        self.retain_from_round = 0  # as of the last step

    async def step(self) -> bool:
        """Take a batch of audits one step further.

        Returns:
            Whether anything changed: then there may be more to do at once.

        Raises:
            TransientError: database or replays are not available; nothing is lost.
        """
        work = await self._turn(self._advance)
        for sheet in work.choose:
            chunks = await asyncio.to_thread(choose_chunks, self._context, self._replays, sheet)
            await self._turn(partial(_open_chunks, audit_id=sheet.audit_id, chunks=chunks))
        for sheet in work.compare:
            self._judged[sheet.audit_id] = await asyncio.to_thread(
                compare, self._context, self._replays, sheet
            )
            # At once: what is only in memory must not be what an audit waits for.
            await self._turn(partial(self._advance_again, audit_id=sheet.audit_id))
        changed = await self._results.step(self._turn)
        dropped = await self._drop_replays()
        return work.changed or work.heavy > 0 or changed or dropped

    # ---- one turn ----

    def _advance(self, turn: Turn) -> _Work:
        work = _Work()
        for audit in self._batch(turn.session):
            if work.heavy < _HEAVY_PER_STEP:
                self._advance_one(turn, audit, work)
        work.changed |= publish_draws(turn)
        work.changed |= forget_answers(turn)
        finish_credit(turn)
        self.retain_from_round = retain_from_round(turn.session)
        return work

    def _advance_again(self, turn: Turn, audit_id: bytes) -> None:
        audit = turn.session.get_one(AuditRow, audit_id)
        if audit.phase != DECIDED:
            self._advance_one(turn, audit, _Work())

    def _batch(self, session: Session) -> list[AuditRow]:
        """The next open audits, one after the other and then all over again."""
        rows = session.scalars(
            select(AuditRow)
            .where(AuditRow.phase != DECIDED, AuditRow.audit_id > self._after)
            .order_by(AuditRow.audit_id)
            .limit(_AUDITS_PER_STEP)
        ).all()
        self._after = rows[-1].audit_id if len(rows) == _AUDITS_PER_STEP else b""
        return list(rows)

    def _advance_one(self, turn: Turn, audit: AuditRow, work: _Work) -> None:
        judged = self._judged.get(audit.audit_id)
        docket = read_docket(turn.session, turn.context, audit, judged, turn.now_s)
        decision = decide(docket.facts)
        match decision:
            case Wait():
                pass
            case Ask():
                _ask(turn, audit, docket, decision)
                work.changed = True
            case OpenChunks():
                work.choose.append(_sheet(turn.session, audit, docket))
            case Compare():
                work.compare.append(_sheet(turn.session, audit, docket))
            case QueueJob():
                _queue(turn, audit, decision)
                work.changed = True
            case Decide():
                work.changed |= self._conclude(turn, audit, decision)

    def _conclude(self, turn: Turn, audit: AuditRow, decision: Decide) -> bool:
        """Write the verdict, unless its task may yet turn out to be suspect."""
        verdict, reason = decision.verdict, decision.reason
        if verdict is Verdict.FAILED and audit.subject == "training" and not audit.appeal:
            self._guilty[audit.audit_id] = audit.round
            if call_controls(turn, audit.round):
                return True
            task = judge_task(read_task(turn.session, audit.round, self._guilty))
            if task == "open":
                return False
            if task == "suspect":
                verdict, reason = Verdict.INCONCLUSIVE, SUSPECT_TASK
        judged = self._judged.get(audit.audit_id)
        jobs = jobs_of(turn.session, audit)
        results = [job.result for job in jobs if job.ordinal in decision.by and job.result]
        record_verdict(
            turn,
            audit,
            verdict,
            reason,
            findings(turn.session, audit, decision, judged),
            [hashlib.sha256(wire.Envelope.FromString(data).payload).digest() for data in results],
        )
        for auditor in decision.outvoted:
            note_outvoted(turn.session, auditor)
        if judged is not None:
            convict_liars(turn, audit, judged)
        tidy(turn.session, audit, verdict)
        self._judged.pop(audit.audit_id, None)
        self._guilty.pop(audit.audit_id, None)
        return True

    # ---- what is kept no longer ----

    async def _drop_replays(self) -> bool:
        """Delete the replays of what is decided; first the file, then its name."""
        jobs = await self._turn(droppable)
        for job_id in jobs:
            await asyncio.to_thread(self._replays.delete, job_id)
        if jobs:
            await self._turn(lambda turn: forget_files(turn, jobs))
        return bool(jobs)


def _ask(turn: Turn, audit: AuditRow, docket: Docket, decision: Ask) -> None:
    kind = OPEN if audit.phase == OPENING else PROJECT
    for name, who in decision.ask:
        piece = docket.pieces[name]
        ask(
            turn.session,
            audit_id=audit.audit_id,
            kind=kind,
            asked=who,
            members=[audit.worker],
            now_s=turn.now_s,
            group_id=audit.group_id,
            assignment_id=audit.assignment_id,
            first_chunk=piece.first,
            end_chunk=piece.end,
            chunks=piece.chunks,
            projection_seed=audit.projection_seed if kind == PROJECT else b"",
        )
    for name, who in decision.silent:
        docket.asked[name, who].status = SILENT
        _log.info("challenge_silent", asked=who, round=audit.round, worker=audit.worker)


def _open_chunks(turn: Turn, audit_id: bytes, chunks: list[int]) -> None:
    """Tell which chunks are to be opened: from here on nobody's projections are waited for."""
    audit = turn.session.get_one(AuditRow, audit_id)
    if audit.phase != WAITING:
        return
    audit.phase, audit.phase_since_s = OPENING, turn.now_s
    audit.chunks = json.dumps(chunks)
    withdraw(turn.session, audit_id)
    _log.info("chunks_drawn", round=audit.round, worker=audit.worker, chunks=len(chunks))


def _queue(turn: Turn, audit: AuditRow, decision: QueueJob) -> None:
    """One more replay; those of an appeal insist on what the first one insisted on."""
    first = jobs_of(turn.session, audit)[0]
    avoided = {*decision.avoid_executions, *json.loads(first.avoid_executions)}
    number = decision.ordinal.to_bytes(8, "big")
    turn.session.add(
        AuditJobRow(
            job_id=hashlib.sha256(b"barnraise-job\0" + audit.audit_id + number).digest()[:16],
            audit_id=audit.audit_id,
            ordinal=decision.ordinal,
            avoid_executions=json.dumps(
                json.loads(first.avoid_executions) if first.insists else sorted(avoided)
            ),
            insists=first.insists,
            avoid_auditors=json.dumps(decision.avoid_auditors),
            status=QUEUED,
            created_at_s=turn.now_s,
        )
    )
    turn.session.flush()
    _log.info("replay_queued", round=audit.round, worker=audit.worker, ordinal=decision.ordinal)


def _sheet(session: Session, audit: AuditRow, docket: Docket) -> Sheet:
    usable = {replay.ordinal for replay in docket.facts.usable}
    replays = []
    for job in jobs_of(session, audit):
        if job.ordinal in usable:
            result = read_result(job)
            replays.append(
                ReplayFile(
                    job.ordinal,
                    job.job_id,
                    result.execution,
                    result.steps,
                    result.root,
                    result.projections,
                )
            )
    answers = session.scalars(
        select(ChallengeRow)
        .where(
            ChallengeRow.audit_id == audit.audit_id,
            ChallengeRow.kind == int(PROJECT),
            ChallengeRow.status == ANSWERED,
        )
        .order_by(ChallengeRow.asked_at_s, ChallengeRow.challenge_id)
    )
    return Sheet(
        audit_id=audit.audit_id,
        assignment_id=audit.assignment_id,
        draw=audit.draw,
        projection_seed=audit.projection_seed,
        execution=audit.execution,
        theirs=opened_chunks(session, audit),
        replays=tuple(replays),
        projections=tuple(_signed_projections(row) for row in answers),
        table=_table(session),
    )


def _table(session: Session) -> ToleranceTable | None:
    """The run's bounds; what this version cannot read counts as none, and convicts nobody."""
    try:
        return load_table(session)
    except BadRecord as error:
        _log.error("tolerance_unreadable", error=str(error))
        return None


def _signed_projections(row: ChallengeRow) -> SignedProjections:
    assert row.answer is not None, "answered without an answer"
    payload = wire.Envelope.FromString(row.answer).payload
    data = wire.ChallengeAnswer.FromString(payload).projections
    return SignedProjections(row.asked, row.first_chunk, row.end_chunk, data)
