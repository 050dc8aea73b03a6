"""What a proven cheat loses, and what an appeal that succeeds gives back.

Invariants:

* Only a FAILED verdict leads here: signed bytes that contradict what was computed or signed.
* A donor answers for its devices: its key is blocked with the device's, and with every other key of
  the same person. Whatever it has pending is forfeited, and everything of it that can still be
  audited is.
* Blocks are lifted and credit is restored once no conviction stands, never by time.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import exists, select

from coordinator.audit import trust
from coordinator.audit.challenges import retain_from_round
from coordinator.audit.reversal import CreditRow, forfeit, give_back, standing_convictions
from coordinator.audit.schema import AuditRow, DrawRow
from coordinator.audit.selection import audit_merged, donors_of
from coordinator.blocks import AUDIT, BlockList
from coordinator.crowd.joined import keys_of_person
from coordinator.schema import ContributionRow, WorkerRow
from coordinator.turn import Turn
from protocol.audit_policy import Why
from protocol.identity import PeerId

_log = structlog.get_logger()


def convict(
    turn: Turn,
    worker: PeerId,
    donor: PeerId,
    *,
    subject: Sequence[CreditRow],
    verdict_leaf: int,
    reason: str,
) -> None:
    """Carry out a FAILED verdict.

    Args:
        turn: the caller's transaction.
        worker: the device that was convicted.
        donor: who answers for it.
        subject: credit of the false work, if it was paid.
        verdict_leaf: index of the verdict's leaf.
        reason: for the people whose keys are blocked.
    """
    retained_from = retain_from_round(turn.session)  # before anything ceases to be pending
    trust.reset(turn.session, worker)
    forfeit(turn, donor, subject, verdict_leaf)
    _audit_retained(turn, donor, retained_from)
    blocks = _blocks(turn)
    for key in dict.fromkeys((worker, donor)):
        turn.then.leaves_added |= blocks.block(key, reason, source=AUDIT, word="failed_audit")
    _expire_leases(turn, worker, donor)
    _log.warning("convicted", worker=worker, donor=donor, reason=reason)


def acquit(turn: Turn, worker: PeerId, donor: PeerId) -> None:
    """An appeal overturned a conviction: undo it, as far as no other one stands."""
    turn.session.flush()
    person = keys_of_person(turn.session, donor)
    guilty = {one for key in person for one in standing_convictions(turn.session, key)}
    blocks = _blocks(turn)
    if worker not in guilty and (worker not in person or not guilty):
        turn.then.leaves_added |= blocks.unblock(worker, word="overturned", source=AUDIT)
    if not guilty:
        turn.then.leaves_added |= blocks.unblock(donor, word="overturned", source=AUDIT)
    give_back(turn, donor)
    _log.warning("acquitted", worker=worker, donor=donor, still_convicted=len(guilty))


def _audit_retained(turn: Turn, donor: PeerId, retained_from: int) -> None:
    """Audit every contribution of a donor that was not yet, while its bytes are kept."""
    audited = exists().where(AuditRow.assignment_id == ContributionRow.assignment_id)
    rows = turn.session.execute(
        select(ContributionRow, DrawRow)
        .join(WorkerRow, WorkerRow.worker == ContributionRow.worker)
        .join(DrawRow, DrawRow.round == ContributionRow.round)
        .where(WorkerRow.donor == donor, ContributionRow.round >= retained_from)
        .where(ContributionRow.leaf_index.is_not(None), ~audited)
        .order_by(ContributionRow.round)
    ).all()
    for contribution, draw_row in rows:
        audit_merged(turn, contribution, donor, draw_row, Why.RETAINED)


def _expire_leases(turn: Turn, worker: PeerId, donor: PeerId) -> None:
    number = turn.machine.number
    donors = donors_of(turn.session, turn.machine.training)
    person = keys_of_person(turn.session, donor)
    for device in turn.machine.training:
        # An expiry can close the round, and with it every other lease.
        still_open = turn.machine.number == number and device in turn.machine.training
        if still_open and (device == worker or donors[device] in person):
            turn.expire(device)


def _blocks(turn: Turn) -> BlockList:
    return BlockList(turn.context.log, turn.context.run_id, turn.session, turn.now_s)
