"""A signed act as people read it. Its texts are a stranger's: shown as text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from ledger.acts import open_act
from ledger.schema import ActRow
from ledger.tiles import number_path
from protocol.envelope import parse_envelope
from protocol.wire import records_pb2 as wire


@dataclass(frozen=True)
class SignedAct:
    """A public act, its signature checked."""

    path: str  # where its envelope is served
    name: str  # of the message
    signer: str
    digest: str  # hex
    fields: list[tuple[str, str]]


def signed_act(session: Session, index: int) -> SignedAct | None:
    """The public act behind a leaf, or None where there is none to show.

    Raises:
        BadRecord, BadSignature: what is stored is damaged.
    """
    row = session.get(ActRow, index)
    if row is None or not row.public:
        return None
    act = open_act(parse_envelope(row.envelope))
    return SignedAct(
        f"acts/{number_path(index)}",
        act.record.DESCRIPTOR.name,
        act.signer,
        act.digest.hex(),
        _fields(act.record),
    )


def _fields(record: Message) -> list[tuple[str, str]]:
    """Names and texts of the fields that are set, in the order of their numbers."""
    return [
        (field.name, "\n".join(_text(field, one) for one in _each(value)))
        for field, value in record.ListFields()
    ]


def _each(value: Any) -> Iterable[Any]:
    """A repeated field's values, or the one."""
    return [value] if isinstance(value, str | bytes | int | Message) else value


def _text(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else str(known.name)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, wire.Envelope):
        return ", ".join(f"signed by {signature.keyid}" for signature in value.signatures)
    if isinstance(value, wire.Freshness):
        return f"sent at {value.sent_at_ms} ms"
    return str(value)
