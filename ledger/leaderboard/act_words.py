"""The words of public acts: what organisers signed, beside the numbers that their leaves repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.crowd_records import ActLeaf
from ledger.schema import ActRow
from protocol.envelope import parse_envelope
from protocol.errors import BadRecord

Record = TypeVar("Record", bound=Message)


def acts_of(
    session: Session, leaves: Iterable[tuple[int, ActLeaf]], kind: type[Record]
) -> dict[int, Record]:
    """The acts behind leaves, by leaf index; those that are not kept here are left out.

    A leaf names its act by the digest of the signed payload: other words are not shown.
    """
    wanted = {index: leaf.record_digest for index, leaf in leaves}
    rows = session.execute(
        select(ActRow.leaf_index, ActRow.envelope).where(
            ActRow.leaf_index.in_(wanted), ActRow.public.is_(True)
        )
    )
    found = {}
    for index, data in rows:
        act = _read(data, wanted[index], kind)
        if act is not None:
            found[index] = act
    return found


def _read(data: bytes, digest: str, kind: type[Record]) -> Record | None:
    try:
        payload = parse_envelope(data).payload
        if hashlib.sha256(payload).hexdigest() != digest:
            return None
        return kind.FromString(payload)
    except (BadRecord, DecodeError):
        return None
