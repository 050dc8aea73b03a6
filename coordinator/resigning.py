"""Signing the running round's records anew, when the key that signed them is believed no more.

Invariant: the signed bytes stay the same, and with them every digest: who has seen a record already
finds that it is the same one.
"""

from __future__ import annotations

import structlog
from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.keys import KeyRing
from coordinator.schema import COMMITTED, TRAINING, AssignmentRow, RosterRow, RoundRow
from protocol.envelope import open_envelope, seal
from protocol.errors import BadSignature
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire

_log = structlog.get_logger()


def sign_anew(session: Session, ring: KeyRing, now_s: float) -> int:
    """Replace the signatures of a revoked or expired round key on what is under way.

    Args:
        session: of one transaction, before anybody is served.
        ring: the run's present keys.
        now_s: POSIX time.

    Returns:
        How many records were signed anew.
    """
    row = session.scalars(select(RoundRow).order_by(RoundRow.number.desc()).limit(1)).first()
    if row is None:
        return 0
    signer = _Signer(ring, ring.trust(), now_s)
    row.head = signer.anew(row.head, wire.RunHead)
    for roster in session.scalars(select(RosterRow).where(RosterRow.round == row.number)):
        roster.envelope = signer.anew(roster.envelope, wire.Roster)
        if roster.inclusion is not None:
            roster.inclusion = signer.anew(roster.inclusion, wire.InclusionSet)
    leased = select(AssignmentRow).where(
        AssignmentRow.round == row.number, AssignmentRow.status.in_((TRAINING, COMMITTED))
    )
    for assignment in session.scalars(leased):
        assignment.envelope = signer.anew(assignment.envelope, wire.Assignment)
    if signer.count:
        _log.info("signed_anew", round=row.number, records=signer.count)
    return signer.count


class _Signer:
    def __init__(self, ring: KeyRing, trust: TrustStore, now_s: float) -> None:
        self._ring, self._trust, self._now_s = ring, trust, now_s
        self.count = 0

    def anew(self, data: bytes, kind: type[Message]) -> bytes:
        signed = open_envelope(wire.Envelope.FromString(data), kind)
        try:
            self._trust.require_signer(wire.KEY_PURPOSE_ROUND, signed.signer, self._now_s)
        except BadSignature:
            self.count += 1
            return seal(signed.record, self._ring.round).SerializeToString()
        return data
