"""Verdicts: one signed record, one leaf, and everything that follows, in one transaction.

Steps:

1. an audit that is decided already is left alone: a verdict is given once;
2. the record is signed, and its leaf written;
3. the consequences are carried out:

    passed        trust grows; a probation unit is paid and its device admitted
    failed        the donor is convicted (coordinator.audit.conviction)
    overturned    an appeal passed: the conviction is undone
    unavailable   that unit is not paid; the next audit is certain
    inconclusive  the next audit is certain
    else          nothing: the organiser or nobody bears it
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import select

from coordinator.audit import trust
from coordinator.audit.begin import result_audit_id
from coordinator.audit.case import NOT_REPLAYED
from coordinator.audit.conviction import acquit, convict
from coordinator.audit.reversal import CreditRow, leave_unpaid
from coordinator.audit.schema import (
    DECIDED,
    FAILED,
    LAPSED,
    OPENING,
    PASSED,
    PENDING,
    AuditRow,
    OtherCreditRow,
    ProbationRow,
    ReducerAuditRow,
)
from coordinator.audit.selection import donors_of
from coordinator.context import to_ms
from coordinator.schema import ContributionRow
from coordinator.turn import Turn
from ledger.credit import training_microcredits
from ledger.records import CreditLeaf, VerdictLeaf
from protocol.audit_policy import PPM, Verdict, Why
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire

TRAINING, PROBATION, REDUCING = "training", "probation", "reducing"
"""Subjects of a verdict."""

_log = structlog.get_logger()


def record_verdict(
    turn: Turn,
    row: AuditRow | ReducerAuditRow,
    verdict: Verdict,
    reason: str,
    findings: Sequence[wire.Finding] = (),
    results: Sequence[bytes] = (),
) -> None:
    """Decide an audit; see the module's steps.

    Args:
        turn: the caller's transaction; it may end the running round, as a lease can expire.
        row: of the audit.
        verdict: PASSED on an appeal is recorded as OVERTURNED.
        reason: stable word.
        findings: comparisons behind it.
        results: SHA-256 of the signed AuditResults that decided.
    """
    if row.phase == DECIDED:
        return
    if isinstance(row, AuditRow) and row.appeal and verdict is Verdict.PASSED:
        verdict = Verdict.OVERTURNED
    leaf_index = _record(turn, row, verdict, reason, findings, results)
    if isinstance(row, AuditRow):
        _follow_up(turn, row, verdict, reason, leaf_index)
    elif verdict is Verdict.FAILED:
        _convict_reducer(turn, row, leaf_index)
    turn.session.flush()


def convict_reducer(
    turn: Turn,
    worker: PeerId,
    round_: int,
    group_id: bytes,
    chunk: int,
    reason: str,
    findings: Sequence[wire.Finding] = (),
) -> None:
    """Convict a reducer on evidence of its own making; once for a reduce is enough.

    Args:
        turn: the caller's transaction.
        worker: the reducer.
        round_: of the reduce.
        group_id: of the reduce.
        chunk: that the evidence is about.
        reason: stable word: ``false_projection``, ``equivocation`` ...
        findings: what contradicts.
    """
    rows = turn.session.scalars(
        select(ReducerAuditRow).where(
            ReducerAuditRow.group_id == group_id,
            (ReducerAuditRow.chunk == chunk) | (ReducerAuditRow.reducer == worker),
        )
    ).all()
    mine = [row for row in rows if row.reducer == worker]
    if any(row.verdict == Verdict.FAILED for row in mine):
        return
    about = [row for row in rows if row.chunk == chunk]
    row = next((row for row in about if row in mine and row.phase != DECIDED), None)
    if row is None:
        ordinal = max((other.ordinal for other in about), default=0) + 1
        row = ReducerAuditRow(
            audit_id=result_audit_id(group_id, chunk, ordinal),
            round=round_,
            group_id=group_id,
            chunk=chunk,
            ordinal=ordinal,
            reducer=worker,
            phase=OPENING,
            created_at_s=turn.now_s,
        )
        turn.session.add(row)
    record_verdict(turn, row, Verdict.FAILED, reason, findings)


# ---- step 2 ----


def _record(
    turn: Turn,
    row: AuditRow | ReducerAuditRow,
    verdict: Verdict,
    reason: str,
    findings: Sequence[wire.Finding],
    results: Sequence[bytes],
) -> int:
    """Sign the record, fill the row, write the leaf; returns the leaf's index."""
    worker = row.worker if isinstance(row, AuditRow) else row.reducer
    said = _said(row)
    envelope = turn.context.sign(
        wire.Verdict(
            run_id=turn.context.run_id,
            audit_id=row.audit_id,
            subject=said["subject"],
            round=row.round,
            worker=worker,
            assignment_id=said["assignment_id"],
            group_id=row.group_id,
            verdict=verdict.value,
            reason=reason,
            findings=findings,
            results=results,
            decided_at_ms=to_ms(turn.now_s),
            why=said["why"],
        )
    )
    leaf = VerdictLeaf.model_validate(
        {
            "run_id": turn.context.run_id.hex(),
            "at_s": int(turn.now_s),
            "round": row.round,
            "worker": worker,
            "verdict": verdict,
            "reason": reason,
            "record_digest": hashlib.sha256(envelope.payload).hexdigest(),
            **said,
        }
    )
    (row.leaf_index,) = turn.context.log.append(turn.session, [leaf])
    turn.then.leaves_added = True
    row.phase, row.verdict, row.reason = DECIDED, verdict.value, reason
    row.decided_at_s = turn.now_s
    row.record = envelope.SerializeToString()
    turn.session.flush()
    _log.info("verdict", round=row.round, worker=worker, verdict=verdict.value, reason=reason)
    return row.leaf_index


def _said(row: AuditRow | ReducerAuditRow) -> dict[str, Any]:
    """What an audit is about, and why it was made."""
    if isinstance(row, AuditRow):
        return {
            "subject": row.subject,
            "assignment_id": row.assignment_id,
            "execution": row.execution,
            "chunk": None,
            "why": row.why,
        }
    return {
        "subject": REDUCING,
        "assignment_id": None,
        "execution": None,
        "chunk": row.chunk,
        "why": Why.SAMPLED,
    }


# ---- step 3 ----


def _follow_up(turn: Turn, row: AuditRow, verdict: Verdict, reason: str, leaf_index: int) -> None:
    trust.count_audit(turn.session, row.worker, row.execution)
    probation = None
    if row.subject == PROBATION:
        probation = turn.session.get_one(ProbationRow, row.assignment_id)
    if verdict is Verdict.PASSED:
        _pass(turn, row, probation)
    elif verdict is Verdict.FAILED:
        if probation is not None:
            probation.status = FAILED
        what = "update" if probation is None else "first unit"
        block_reason = (
            f"round {row.round}, verdict {row.reason}: its {what} is not what training gives; to "
            f"appeal, run 'barnraise worker appeal {row.round}'"
        )
        subject = _credit_of(turn, row)
        convict(
            turn,
            row.worker,
            row.donor,
            subject=subject,
            verdict_leaf=leaf_index,
            reason=block_reason,
        )
    elif verdict is Verdict.OVERTURNED:
        if probation is not None:
            probation.status = PASSED
        acquit(turn, row.worker, row.donor)
    elif row.appeal:
        return  # the appeal came to nothing: what it was about stands
    elif probation is not None:
        probation.status = LAPSED  # there is another unit
    elif verdict is Verdict.UNAVAILABLE:
        for credit in _credit_of(turn, row):
            leave_unpaid(turn, row.donor, credit, leaf_index)
        trust.watch(turn.session, row.worker, row.execution, Why.UNAVAILABLE_BEFORE)
    elif verdict is Verdict.INCONCLUSIVE and reason != NOT_REPLAYED:
        # Auditors that are behind would else be given more and more to do.
        trust.watch(turn.session, row.worker, row.execution, Why.INCONCLUSIVE_BEFORE)


def _pass(turn: Turn, row: AuditRow, probation: ProbationRow | None) -> None:
    if row.why != Why.RETAINED:  # what was done before a conviction restores no trust
        trust.add_pass(turn.session, row.worker, row.execution)
    if probation is not None:
        probation.status = PASSED
        _pay_probation(turn, row, probation)


def _pay_probation(turn: Turn, row: AuditRow, probation: ProbationRow) -> None:
    assert probation.contribution is not None, "audited before it was committed"
    signed = wire.Envelope.FromString(probation.contribution)
    record = wire.Contribution.FromString(signed.payload)
    manifest = turn.context.manifest
    leaf = CreditLeaf(
        run_id=turn.context.run_id.hex(),
        at_s=int(turn.now_s),
        work="probation",
        round=row.round,
        assignment_id=row.assignment_id.hex(),
        worker=row.worker,
        donor=row.donor,
        tokens=record.tokens,
        microcredits=training_microcredits(
            record.tokens, manifest.model_config_json, manifest.sequence_length
        ),
        contribution_digest=hashlib.sha256(signed.payload).hexdigest(),
        execution=row.execution,
        audit_ppm=PPM,
    )
    (probation.leaf_index,) = turn.context.log.append(turn.session, [leaf])
    turn.session.add(
        OtherCreditRow(
            leaf_index=probation.leaf_index,
            work=PROBATION,
            round=row.round,
            worker=row.worker,
            donor=row.donor,
            microcredits=leaf.microcredits,
            credit=PENDING,
            credited_at_s=turn.now_s,
        )
    )


def _credit_of(turn: Turn, row: AuditRow) -> list[CreditRow]:
    """Credit of the work that was audited; a probation unit that did not pass has none."""
    if row.subject == PROBATION:
        return []
    contribution = turn.session.get_one(ContributionRow, row.assignment_id)
    return [] if contribution.leaf_index is None else [contribution]


def _convict_reducer(turn: Turn, row: ReducerAuditRow, leaf_index: int) -> None:
    subject = turn.session.scalars(
        select(OtherCreditRow).where(
            OtherCreditRow.work == REDUCING,
            OtherCreditRow.round == row.round,
            OtherCreditRow.worker == row.reducer,
        )
    ).all()
    convict(
        turn,
        row.reducer,
        donors_of(turn.session, [row.reducer])[row.reducer],
        subject=subject,
        verdict_leaf=leaf_index,
        reason=f"round {row.round}, verdict {row.reason}: what it signed as a reducer is proven "
        "to be false",
    )
