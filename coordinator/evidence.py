"""Two different signed records under one natural key: both are kept, word for word."""

from __future__ import annotations

from typing import TypeVar

import structlog
from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.schema import EvidenceRow
from protocol.envelope import Signed

Record = TypeVar("Record", bound=Message)

_log = structlog.get_logger()


def keep_evidence(
    session: Session, kind: str, first: bytes, second: Signed[Record], now_s: float
) -> None:
    """Store a pair of contradicting records, once.

    Args:
        session: the caller's transaction; it must commit.
        kind: stable word for what contradicts: contribution, result, report ...
        first: serialised envelope of the record that was kept.
        second: the record that contradicts it.
        now_s: the coordinator's clock.
    """
    data = second.envelope.SerializeToString()
    same = select(EvidenceRow.id).where(EvidenceRow.kind == kind, EvidenceRow.second == data)
    if session.scalar(same) is None:
        session.add(
            EvidenceRow(kind=kind, signer=second.signer, first=first, second=data, seen_at_s=now_s)
        )
        _log.warning("evidence_kept", kind=kind, signer=second.signer)
