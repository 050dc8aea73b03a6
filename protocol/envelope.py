"""Signed records: DSSE envelopes around protobuf payloads.

Invariants:

* The signature covers ``DSSEv1 <len(type)> <type> <len(payload)> <payload>`` (DSSE's
  pre-authentication encoding), so a payload can never be read as another type.
* Bytes are signed once and never re-serialised: :func:`open_envelope` parses exactly the
  bytes that were signed, after the signature has been checked, after the size has been.
* ``keyid`` is the signer's PeerID, which names its key; there is no key lookup to get wrong.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from protocol.errors import BadRecord, BadSignature
from protocol.identity import Identity, PeerId, PublicKey
from protocol.limits import MAX_RECORD_BYTES
from protocol.wire import records_pb2 as wire

Record = TypeVar("Record", bound=Message)


@dataclass(frozen=True)
class Signed(Generic[Record]):
    """A verified record together with the bytes that prove it."""

    record: Record
    signer: PeerId
    envelope: wire.Envelope

    @property
    def digest(self) -> bytes:
        """SHA-256 of the signed payload: the record's identity."""
        return hashlib.sha256(self.envelope.payload).digest()


def payload_type(record_class: type[Message]) -> str:
    """``GatherStatement`` -> ``application/vnd.barnraise.gather-statement+protobuf``."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", record_class.DESCRIPTOR.name).lower()
    return f"application/vnd.barnraise.{name}+protobuf"


def pre_authentication_encoding(kind: str, payload: bytes) -> bytes:
    """The bytes that are signed (DSSE protocol.md, "PAE")."""
    encoded_kind = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(encoded_kind), encoded_kind, len(payload), payload)


def seal(record: Message, identity: Identity) -> wire.Envelope:
    """Serialise and sign a record."""
    payload = record.SerializeToString(deterministic=True)
    if len(payload) > MAX_RECORD_BYTES:
        raise ValueError(f"record of {len(payload)} bytes is over the limit")
    kind = payload_type(type(record))
    signature = wire.Signature(
        sig=identity.sign(pre_authentication_encoding(kind, payload)), keyid=identity.peer_id
    )
    return wire.Envelope(payload=payload, payload_type=kind, signatures=[signature])


def open_envelope(
    envelope: wire.Envelope,
    record_class: type[Record],
    *,
    signer: PeerId | None = None,
) -> Signed[Record]:
    """Verify an envelope and parse its record.

    Args:
        envelope: as received.
        record_class: the message type that is expected here.
        signer: the PeerID that must have signed, where the caller knows it.

    Raises:
        BadSignature: wrong signer, or the signature does not verify.
        BadRecord: wrong type, oversized, more or fewer than one signature, unparsable.
    """
    # 1. Sizes and shape, before anything is parsed or hashed.
    if len(envelope.payload) > MAX_RECORD_BYTES:
        raise BadRecord(f"record of {len(envelope.payload)} bytes is over {MAX_RECORD_BYTES}")
    if len(envelope.signatures) != 1:
        raise BadRecord("an envelope carries exactly one signature")
    expected = payload_type(record_class)
    if envelope.payload_type != expected:
        raise BadRecord(f"expected {expected}, got {envelope.payload_type[:100]!r}")
    # 2. The signature, over the bytes as they came.
    signature = envelope.signatures[0]
    if signer is not None and signature.keyid != signer:
        raise BadSignature(f"expected a record signed by {signer}, not {signature.keyid[:64]!r}")
    PublicKey.from_peer_id(signature.keyid).verify(
        signature.sig, pre_authentication_encoding(expected, envelope.payload)
    )
    # 3. The record.
    try:
        record = record_class.FromString(envelope.payload)
    except DecodeError as error:
        raise BadRecord(f"signed bytes are not a {record_class.DESCRIPTOR.name}") from error
    # 4. Nothing that was not checked goes on from here: fields that we do not know are left out.
    proof = wire.Envelope(
        payload=envelope.payload,
        payload_type=expected,
        signatures=[wire.Signature(sig=signature.sig, keyid=signature.keyid)],
    )
    return Signed(record, signature.keyid, proof)


def parse_envelope(data: bytes) -> wire.Envelope:
    """Parse an envelope from untrusted bytes, bounded in size.

    Fields that we do not know are left out: nobody signed them.

    Raises:
        BadRecord: oversized or not an envelope.
    """
    if len(data) > MAX_RECORD_BYTES + 4096:
        raise BadRecord(f"envelope of {len(data)} bytes is over the limit")
    try:
        envelope = wire.Envelope.FromString(data)
    except DecodeError as error:
        raise BadRecord("not an envelope") from error
    envelope.DiscardUnknownFields()
    return envelope
