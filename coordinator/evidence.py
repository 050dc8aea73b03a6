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

MOST_PAIRS = 4
"""Pairs kept about one record: the first convicts, and nobody may fill the database with more."""

_log = structlog.get_logger()


def keep_evidence(
    session: Session, kind: str, first: bytes, second: Signed[Record], now_s: float
) -> None:
    """Store a pair of contradicting records, once, and at most a few about one first record.

    Args:
        session: the caller's transaction; it must commit.
        kind: stable word for what contradicts: contribution, result, report ...
        first: serialised envelope of the record that was kept.
        second: the record that contradicts it.
        now_s: the coordinator's clock.
    """
    data = second.envelope.SerializeToString()
    seen = select(EvidenceRow.second).where(
        EvidenceRow.kind == kind, EvidenceRow.signer == second.signer, EvidenceRow.first == first
    )
    known = session.scalars(seen).all()
    if data not in known and len(known) < MOST_PAIRS:
        session.add(
            EvidenceRow(kind=kind, signer=second.signer, first=first, second=data, seen_at_s=now_s)
        )
        _log.warning("evidence_kept", kind=kind, signer=second.signer)
