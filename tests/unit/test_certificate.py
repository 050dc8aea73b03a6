"""The coordinator's certificate: believed from the join link alone, or refused."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.certificate import TLS_NAME, check_certificate, issue_certificate
from protocol.envelope import seal
from protocol.errors import BadSignature, PeerFault
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.trust import TrustStore, delegate
from protocol.wire import records_pb2 as wire

RUN_ID = b"\x05" * 32
ROOT = Identity.from_seed(b"\x01" * 32)
LINK = JoinLink("example.org", 7443, RUN_ID, ROOT.peer_id)
START_S, END_S = 1_700_000_000, 1_800_000_000
NOW_S = 1_750_000_000.0


def issue(root: Identity = ROOT, run_id: bytes = RUN_ID) -> bytes:
    credentials = issue_certificate(
        root, run_id=run_id, serial=3, not_before_s=START_S, not_after_s=END_S
    )
    return der_of(credentials.certificate_pem)


def der_of(pem: bytes) -> bytes:
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.public_bytes(serialization.Encoding.DER)


def certificate_with(*extensions: x509.ExtensionType) -> bytes:
    """A certificate of a fresh key, as an attacker would make it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2034, 1, 1, tzinfo=datetime.UTC))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def delegation_extension(der: bytes) -> x509.UnrecognizedExtension:
    (found,) = [
        extension.value
        for extension in x509.load_der_x509_certificate(der).extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    ]
    return found


def test_own_certificate_is_believed() -> None:
    der = issue()
    assert der_of(check_certificate(der, LINK, NOW_S)) == der


def test_private_key_belongs_to_the_certificate() -> None:
    credentials = issue_certificate(
        ROOT, run_id=RUN_ID, serial=3, not_before_s=START_S, not_after_s=END_S
    )
    key = serialization.load_pem_private_key(credentials.private_key_pem, password=None)
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    assert key.public_key() == certificate.public_key()


def test_wrong_root_is_refused_with_advice() -> None:
    with pytest.raises(BadSignature, match="not vouched for by the root key in your link"):
        check_certificate(issue(Identity.generate()), LINK, NOW_S)


def test_other_run_is_refused() -> None:
    with pytest.raises(BadSignature, match="another run"):
        check_certificate(issue(run_id=b"\x06" * 32), LINK, NOW_S)


@pytest.mark.parametrize(
    ("now_s", "problem"), [(START_S - 1, "not valid yet"), (END_S + 1, "expired")]
)
def test_window_is_enforced(now_s: float, problem: str) -> None:
    with pytest.raises(BadSignature, match=problem):
        check_certificate(issue(), LINK, now_s)


def test_delegation_of_another_key_is_refused() -> None:
    stolen = certificate_with(delegation_extension(issue()))
    with pytest.raises(BadSignature, match="never delegated"):
        check_certificate(stolen, LINK, NOW_S)


def test_delegation_for_another_purpose_is_refused() -> None:
    genuine = delegation_extension(issue())
    round_delegation = delegate(
        ROOT,
        run_id=RUN_ID,
        purpose=wire.KEY_PURPOSE_ROUND,
        public_key=bytes(32),
        serial=4,
        not_before_s=START_S,
        not_after_s=END_S,
    )
    extension = x509.UnrecognizedExtension(genuine.oid, round_delegation.SerializeToString())
    with pytest.raises(BadSignature, match="never delegated"):
        check_certificate(certificate_with(extension), LINK, NOW_S)


def test_revoked_tls_key_is_refused_by_the_trust_store() -> None:
    der = issue()
    public = x509.load_der_x509_certificate(der).public_key()
    spki = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    store = TrustStore(RUN_ID, ROOT.peer_id)
    envelope = wire.Envelope.FromString(delegation_extension(der).value)
    store.add([envelope])
    store.require(wire.KEY_PURPOSE_TLS, spki, NOW_S)
    store.add([], [seal(wire.Revocation(run_id=RUN_ID, serial=3), ROOT)])
    with pytest.raises(BadSignature, match="revoked"):
        store.require(wire.KEY_PURPOSE_TLS, spki, NOW_S)


def test_certificates_without_a_delegation_are_refused() -> None:
    for der in (b"", b"garbage", certificate_with()):
        with pytest.raises(BadSignature, match="not a Barnraise coordinator"):
            check_certificate(der, LINK, NOW_S)
    with pytest.raises(BadSignature, match="too large"):
        check_certificate(bytes(20_000), LINK, NOW_S)


def test_garbage_delegation_is_refused() -> None:
    oid = delegation_extension(issue()).oid
    der = certificate_with(x509.UnrecognizedExtension(oid, b"\xff\xff"))
    with pytest.raises(BadSignature):
        check_certificate(der, LINK, NOW_S)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_damage_never_escapes_as_another_error() -> None:
    der = issue()
    for index in range(len(der)):
        damaged = bytearray(der)
        damaged[index] ^= 0x41
        try:
            pem = check_certificate(bytes(damaged), LINK, NOW_S)
        except PeerFault as fault:
            assert isinstance(fault, BadSignature)
        else:  # the damage is outside of what the root vouched for: the key is still its own
            kept = x509.load_pem_x509_certificate(pem).public_key()
            assert kept == x509.load_der_x509_certificate(der).public_key()
