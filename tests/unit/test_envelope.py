"""DSSE envelopes against an independent implementation, and against every kind of tampering."""

from __future__ import annotations

import hashlib

import pytest
from securesystemslib.dsse import Envelope as ReferenceEnvelope
from securesystemslib.signer import Signature, SSlibKey

from protocol.envelope import (
    open_envelope,
    parse_envelope,
    payload_type,
    pre_authentication_encoding,
    seal,
)
from protocol.errors import BadRecord, BadSignature, PeerFault
from protocol.identity import Identity
from protocol.limits import MAX_RECORD_BYTES
from protocol.wire import records_pb2 as wire

SIGNER = Identity.from_seed(b"\x01" * 32)
RECORD = wire.Report(run_id=b"\x02" * 32, round=7, attempt=1, worker=SIGNER.peer_id)


def copy_of(envelope: wire.Envelope) -> wire.Envelope:
    copy = wire.Envelope()
    copy.CopyFrom(envelope)
    return copy


def test_pae_of_the_specification() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md#test-vectors
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_payload_types() -> None:
    assert payload_type(wire.Report) == "application/vnd.barnraise.report+protobuf"
    expected = "application/vnd.barnraise.gather-statement+protobuf"
    assert payload_type(wire.GatherStatement) == expected


def test_round_trip() -> None:
    envelope = seal(RECORD, SIGNER)
    signed = open_envelope(parse_envelope(envelope.SerializeToString()), wire.Report)
    assert signed.record == RECORD
    assert signed.signer == SIGNER.peer_id
    assert signed.digest == hashlib.sha256(envelope.payload).digest()
    assert open_envelope(envelope, wire.Report, signer=SIGNER.peer_id).record == RECORD


def test_independent_implementation_accepts_our_envelopes() -> None:
    ours = seal(RECORD, SIGNER)
    signature = ours.signatures[0]
    theirs = ReferenceEnvelope(
        ours.payload,
        ours.payload_type,
        {signature.keyid: Signature(signature.keyid, signature.sig.hex())},
    )
    public = {"public": SIGNER.public.raw.hex()}
    key = SSlibKey(signature.keyid, "ed25519", "ed25519", public)
    assert theirs.pae() == pre_authentication_encoding(ours.payload_type, ours.payload)
    assert theirs.verify([key], 1) == {signature.keyid: key}


def test_every_changed_byte_is_noticed() -> None:
    data = seal(RECORD, SIGNER).SerializeToString()
    for index in range(len(data)):
        damaged = bytearray(data)
        damaged[index] ^= 0x01
        with pytest.raises(PeerFault):
            open_envelope(parse_envelope(bytes(damaged)), wire.Report)


def test_changed_fields_are_refused() -> None:
    envelope = seal(RECORD, SIGNER)
    other = Identity.generate()

    changed = copy_of(envelope)
    changed.payload = wire.Report(round=8).SerializeToString()
    with pytest.raises(BadSignature):
        open_envelope(changed, wire.Report)

    changed = copy_of(envelope)
    changed.signatures[0].keyid = other.peer_id
    with pytest.raises(BadSignature):
        open_envelope(changed, wire.Report)

    changed = copy_of(envelope)
    changed.signatures[0].keyid = "nobody"
    with pytest.raises(BadRecord):
        open_envelope(changed, wire.Report)

    changed = copy_of(envelope)
    changed.signatures[0].sig = b""
    with pytest.raises(BadSignature):
        open_envelope(changed, wire.Report)


def test_a_record_is_never_read_as_another_type() -> None:
    envelope = seal(RECORD, SIGNER)
    with pytest.raises(BadRecord, match="expected"):
        open_envelope(envelope, wire.RunHead)
    relabelled = copy_of(envelope)
    relabelled.payload_type = payload_type(wire.RunHead)
    with pytest.raises(BadSignature):
        open_envelope(relabelled, wire.RunHead)


def test_signer_is_insisted_on() -> None:
    envelope = seal(RECORD, SIGNER)
    with pytest.raises(BadSignature, match="expected a record signed by"):
        open_envelope(envelope, wire.Report, signer=Identity.generate().peer_id)


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_signature(count: int) -> None:
    envelope = seal(RECORD, SIGNER)
    signature = envelope.signatures[0]
    changed = wire.Envelope(
        payload=envelope.payload,
        payload_type=envelope.payload_type,
        signatures=[signature] * count,
    )
    with pytest.raises(BadRecord, match="exactly one"):
        open_envelope(changed, wire.Report)


def test_sizes_are_bounded_before_parsing() -> None:
    with pytest.raises(BadRecord, match="over"):
        parse_envelope(bytes(MAX_RECORD_BYTES + 4097))
    with pytest.raises(BadRecord, match="over"):
        open_envelope(wire.Envelope(payload=bytes(MAX_RECORD_BYTES + 1)), wire.Report)
    with pytest.raises(ValueError, match="over the limit"):
        seal(wire.Report(state_digest=bytes(MAX_RECORD_BYTES)), SIGNER)


def test_garbage_is_refused() -> None:
    with pytest.raises(BadRecord, match="not an envelope"):
        parse_envelope(b"\xff\xff")
    kind, payload = payload_type(wire.Report), b"\xff\xff"
    signature = SIGNER.sign(pre_authentication_encoding(kind, payload))
    envelope = wire.Envelope(
        payload=payload,
        payload_type=kind,
        signatures=[wire.Signature(sig=signature, keyid=SIGNER.peer_id)],
    )
    with pytest.raises(BadRecord, match="not a Report"):
        open_envelope(envelope, wire.Report)
