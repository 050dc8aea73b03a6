"""Reads for a reply: nothing here changes anything."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.audit.schema import COMMITTED as PROBATION_COMMITTED
from coordinator.audit.schema import ProbationRow
from coordinator.schema import COMMITTED, AssignmentRow, ContributionRow
from coordinator.turn import Turn, current_roster
from ledger.receipts import make_receipt
from protocol.errors import NotFound, TransientError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2


def read_receipt(
    session: Session, origin: str, assignment_id: bytes
) -> service_pb2.GetReceiptReply:
    """The credit leaf of a merged contribution or a passed probation unit, with its proof.

    Raises:
        NotFound: no such contribution, or it was not merged, or not passed (yet).
        TransientError: its round is not settled yet, or the head not signed.
    """
    unit = session.get(ProbationRow, assignment_id)
    if unit is not None and unit.leaf_index is None:
        if unit.status == PROBATION_COMMITTED:
            raise NotFound("this unit is being checked by an auditor: ask again later")
        raise NotFound("this unit did not pass, so it has no credit")
    row = unit or session.get(ContributionRow, assignment_id)
    if row is None:
        raise NotFound("no contribution was made to this assignment")
    if row.leaf_index is None:
        if session.get_one(AssignmentRow, assignment_id).status == COMMITTED:
            raise TransientError("its round is not settled yet: ask again soon")
        raise NotFound("this contribution was not merged, so it has no credit")
    receipt = make_receipt(session, origin, row.leaf_index)
    return service_pb2.GetReceiptReply(leaf=receipt.leaf, proof=receipt.proof)


def snapshot_events(turn: Turn) -> list[service_pb2.RunEvent]:
    """The events that bring a newcomer up to date: the head, and the reduce under way."""
    events = [service_pb2.RunEvent(run_head=wire.Envelope.FromString(turn.row.head))]
    roster = current_roster(turn.session, turn.reducing.machine)
    if roster is not None:
        envelope = wire.Envelope.FromString(roster.envelope)
        events.append(service_pb2.RunEvent(roster=envelope))
        if roster.inclusion is not None:
            envelope = wire.Envelope.FromString(roster.inclusion)
            events.append(service_pb2.RunEvent(inclusion_set=envelope))
    wanted = turn.reducing.wanted_results()
    if wanted is not None:
        events.append(wanted)
    for event in events:
        event.MergeFrom(turn.describe_phase())
    return events
