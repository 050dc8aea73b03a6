"""A signed act as people read it. Its texts are a stranger's: shown as text, never as markup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from ledger.schema import ActRow
from protocol.envelope import open_envelope, parse_envelope, payload_type
from protocol.errors import BadRecord
from protocol.wire import records_pb2 as wire

_PUBLIC: tuple[type[Message], ...] = (
    wire.Delegation,
    wire.Revocation,
    wire.CampaignTerms,
    wire.CampaignEnd,
    wire.CampaignNews,
    wire.Pledge,
    wire.Pool,
    wire.Donation,
    wire.Voiding,
    wire.TeamFounding,
    wire.TeamMembership,
    wire.KeyChange,
    wire.AccountMerge,
)
_BY_TYPE = {payload_type(record): record for record in _PUBLIC}


@dataclass(frozen=True)
class SignedAct:
    """A public act, its signature checked."""

    path: str  # where its envelope is served
    name: str  # of the message
    signer: str
    digest: str  # hex
    fields: list[tuple[str, str]]


def act_path(index: int) -> str:
    """Path of the envelope behind a leaf: digits in groups of three, as those of tiles."""
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[first : first + 3] for first in range(0, len(digits), 3)]
    return "acts/" + "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


def signed_act(session: Session, index: int) -> SignedAct | None:
    """The public act behind a leaf, or None where there is none to show.

    Raises:
        BadRecord, BadSignature: what is stored is damaged.
    """
    row = session.get(ActRow, index)
    if row is None or not row.public:
        return None
    envelope = parse_envelope(row.envelope)
    record_class = _BY_TYPE.get(envelope.payload_type)
    if record_class is None:
        raise BadRecord(f"the act of leaf {index} is of a type that is never public")
    signed = open_envelope(envelope, record_class)
    return SignedAct(
        act_path(index),
        record_class.DESCRIPTOR.name,
        signed.signer,
        signed.digest.hex(),
        _fields(signed.record),
    )


def _fields(record: Message) -> list[tuple[str, str]]:
    """Names and texts of the fields that are set, in the order of their numbers."""
    said = []
    for field in record.DESCRIPTOR.fields:
        value = getattr(record, field.name)
        if field.label == field.LABEL_REPEATED:
            said.append((field.name, "\n".join(_text(field, one) for one in value)))
        elif field.type == field.TYPE_MESSAGE:
            if record.HasField(field.name):
                said.append((field.name, _text(field, value)))
        else:
            said.append((field.name, _text(field, value)))
    return [(name, value) for name, value in said if value]


def _text(field: Any, value: Any) -> str:
    if field.type == field.TYPE_ENUM:
        name: str = field.enum_type.values_by_number[value].name if value else ""
        return name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, wire.Envelope):
        return ", ".join(f"signed by {signature.keyid}" for signature in value.signatures)
    if isinstance(value, wire.Freshness):
        return f"sent at {value.sent_at_ms} ms"
    return str(value)
