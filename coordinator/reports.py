"""What reducers and members report.

Invariants:

* A reducer's report counts for the members whose signed statement about exactly this range comes
  with it (a large report may leave statements with the reducer; a false claim then only spoils
  the reducer's own result). Reports only ever add members.
* A member's report never decides anything: it is kept, compared with the coordinator's own state,
  and answered with the verdict (protocol.md section 9).
"""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import func, select

from coordinator.evidence import keep_evidence
from coordinator.lost_rounds import check_not_lost
from coordinator.results import missing_chunks
from coordinator.round_state import Phase, ReducerReported
from coordinator.schema import ReducerReportRow, ReportRow, RosterRow, RoundRow, StateRow
from coordinator.turn import Turn, current_roster
from protocol.envelope import Signed, open_envelope
from protocol.errors import BadRecord, Conflict, ProtocolError
from protocol.merkle import HASH_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_MAX_ATTEMPTS = 1 << 20
"""More than any round has: every restart of the coordinator may add one."""

_SPARE_REPORTS = 64

_log = structlog.get_logger()


def accept_reducer_report(
    turn: Turn, signed: Signed[wire.ReducerReport]
) -> service_pb2.ReducerReportReply | ProtocolError:
    """Keep a reducer's report and let the round go on by it.

    Returns:
        The inclusion set if it is signed, or the error to raise once evidence is committed.

    Raises:
        BadRecord: not from a reducer of that group, or a statement in it is not what it says.
    """
    record = signed.record
    roster_row = turn.session.scalars(
        select(RosterRow).where(RosterRow.group_id == record.group_id)
    ).one_or_none()
    if roster_row is None:
        check_not_lost(turn.session, record.round)
        raise BadRecord("a report about a group that does not exist")
    roster = read_roster(roster_row)
    share = next((r for r in roster.reducers if r.reducer == signed.signer), None)
    if share is None or record.reducer != signed.signer:
        raise BadRecord("a report from somebody who reduces nothing in this group")
    if (record.round, record.attempt) != (roster.round, roster.attempt):
        raise BadRecord("a report that names another round or attempt than its group's")
    key = (record.group_id, record.reducer, record.revision)
    known = turn.session.get(ReducerReportRow, key)
    data = signed.envelope.SerializeToString()
    if known is not None and not _same_record(known.envelope, signed):
        keep_evidence(turn.session, "reducer_report", known.envelope, signed, turn.now_s)
        return Conflict("another report with this revision is kept: both are evidence now")
    if known is None:
        _require_few(turn, roster, record)
        turn.session.add(
            ReducerReportRow(
                group_id=record.group_id,
                reducer=record.reducer,
                revision=record.revision,
                envelope=data,
            )
        )
        turn.session.flush()
        if roster_row is current_roster(turn.session, turn.reducing.machine):
            _count(turn.reducing, roster, share, record)
    reply = service_pb2.ReducerReportReply()
    if roster_row.inclusion is not None:
        reply.inclusion_set.ParseFromString(roster_row.inclusion)
    return reply


def _same_record(envelope: bytes, signed: Signed[Any]) -> bool:
    """Whether the signed bytes are the same; their signature may well be another."""
    return wire.Envelope.FromString(envelope).payload == signed.envelope.payload


def _require_few(turn: Turn, roster: wire.Roster, record: wire.ReducerReport) -> None:
    """A report tells of somebody new, or comes after a restart: there are not many of them."""
    kept = select(func.count()).where(
        ReducerReportRow.group_id == record.group_id, ReducerReportRow.reducer == record.reducer
    )
    if (turn.session.scalar(kept) or 0) >= 2 * len(roster.members) + _SPARE_REPORTS:
        raise BadRecord("more reports about this group than it has members")


def read_roster(row: RosterRow) -> wire.Roster:
    """The record that was signed."""
    return wire.Roster.FromString(wire.Envelope.FromString(row.envelope).payload)


def _count(
    turn: Turn, roster: wire.Roster, share: wire.ReducerRange, record: wire.ReducerReport
) -> None:
    if turn.machine.phase is not Phase.GATHER:
        return  # the cutoff is past
    members = {member.worker for member in roster.members}
    held = set(dict(turn.machine.complete).get(share.reducer, ()))
    complete = set()
    for outcome in record.outcomes:
        if not outcome.complete or outcome.worker not in members or outcome.worker in held:
            continue
        if outcome.HasField("statement"):
            _check_statement(roster, record.group_id, share, outcome)
        complete.add(outcome.worker)
    turn.apply(ReducerReported(share.reducer, tuple(sorted(complete))))


def _check_statement(
    roster: wire.Roster, group_id: bytes, share: wire.ReducerRange, outcome: wire.GatherOutcome
) -> None:
    statement = open_envelope(outcome.statement, wire.GatherStatement, signer=outcome.worker).record
    expected = wire.GatherStatement(
        group_id=group_id,
        attempt=roster.attempt,
        sender=outcome.worker,
        reducer=share.reducer,
        first_chunk=share.first_chunk,
        end_chunk=share.end_chunk,
        frames_sha256=statement.frames_sha256,
    )
    if statement != expected or len(statement.frames_sha256) != HASH_BYTES:
        raise BadRecord(f"the statement of {outcome.worker} is about something else")


def accept_report(
    turn: Turn, signed: Signed[wire.Report]
) -> service_pb2.ReportReply | ProtocolError:
    """Keep a member's report and tell it whether it agrees.

    Returns:
        The reply, or the error to raise once evidence is committed.

    Raises:
        BadRecord: from somebody who had no part in that round, or malformed.
    """
    record = signed.record
    # Bounded before it is looked up: no database holds every integer that the wire can carry.
    known_key = record.round <= turn.machine.number and record.attempt <= _MAX_ATTEMPTS
    roster = turn.session.get(RosterRow, (record.round, record.attempt)) if known_key else None
    if roster is None:
        check_not_lost(turn.session, record.round)
    if roster is None or not _took_part(read_roster(roster), signed.signer):
        raise BadRecord("a report about a reduce in which this worker had no part")
    if len(record.state_digest) != HASH_BYTES or record.worker != signed.signer:
        raise BadRecord("a report names its signer and a state digest")
    row = turn.session.get(RoundRow, record.round)
    assert row is not None, "a roster belongs to a round"
    data = signed.envelope.SerializeToString()
    known = turn.session.get(ReportRow, (record.round, record.attempt, record.worker))
    if known is not None and not _same_record(known.envelope, signed):
        keep_evidence(turn.session, "report", known.envelope, signed, turn.now_s)
        return Conflict("another report about this reduce is kept: both are evidence now")
    if known is None:
        known = ReportRow(
            round=record.round,
            attempt=record.attempt,
            worker=record.worker,
            state_digest=record.state_digest,
            envelope=data,
        )
        turn.session.add(known)
    settled = row.phase == Phase.SETTLED
    if settled:
        after = turn.session.get_one(StateRow, row.settled_after)
        judge(known, after.digest)
    head = turn.row.head
    return service_pb2.ReportReply(
        settled=settled,
        agrees=bool(known.agrees),
        run_head=wire.Envelope.FromString(head),
        missing=missing_chunks(turn) if record.round == turn.reducing.machine.number else [],
    )


def judge(report: ReportRow, digest: bytes) -> None:
    """Compare a member's state with the settled one."""
    if report.agrees is None:
        report.agrees = report.state_digest == digest
        if not report.agrees:
            _log.warning(
                "report_differs",
                round=report.round,
                worker=report.worker,
                reported=report.state_digest.hex()[:16],
                settled=digest.hex()[:16],
            )


def _took_part(roster: wire.Roster, worker: str) -> bool:
    return any(m.worker == worker for m in roster.members) or any(
        r.reducer == worker for r in roster.reducers
    )
