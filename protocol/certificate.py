"""The coordinator's TLS certificate: self-signed, vouched for by the run's root key.

The root's Delegation of the certificate's public key travels inside the certificate, as an
extension, so a worker can decide whether to believe it from the join link alone, before it has
exchanged a byte with the service. The TLS key is ECDSA P-256 because gRPC's TLS stack does not
offer Ed25519 certificates.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.envelope import parse_envelope
from protocol.errors import BadSignature, PeerFault
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.trust import TrustStore, delegate
from protocol.wire import records_pb2 as wire

TLS_NAME = "coordinator.barnraise"
"""Name in every certificate; clients check it instead of a host name, which may change."""

# A UUID-based arc (ITU-T X.667) needs no registration.
_DELEGATION_OID = x509.ObjectIdentifier("2.25.237946118563915826410963512877130224601")
_MAX_CERTIFICATE_BYTES = 16 << 10


# What the parser raises for bytes that are not a certificate that it understands.
_MALFORMED = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class TlsCredentials:
    """PEM texts for the server."""

    certificate_pem: bytes
    private_key_pem: bytes


def issue_certificate(
    root: Identity, *, run_id: bytes, serial: int, not_before_s: int, not_after_s: int
) -> TlsCredentials:
    """Make a TLS key and a certificate that carries the root's delegation of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = _spki(key.public_key())
    delegation = delegate(
        root,
        run_id=run_id,
        purpose=wire.KEY_PURPOSE_TLS,
        public_key=public,
        serial=serial,
        not_before_s=not_before_s,
        not_after_s=not_after_s,
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(not_before_s))
        .not_valid_after(_utc(not_after_s))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(_DELEGATION_OID, delegation.SerializeToString()),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return TlsCredentials(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def check_certificate(der: bytes, link: JoinLink, now_s: float) -> bytes:
    """Decide whether a server's certificate belongs to the run of ``link``.

    Args:
        der: the certificate as the server presented it.
        now_s: POSIX time.

    Returns:
        The certificate as PEM, to be used as the only trusted root of the channel.

    Raises:
        BadSignature: it is not vouched for by the link's root key, for this run, now.
    """
    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise BadSignature("the server's certificate is too large")
    try:
        certificate = x509.load_der_x509_certificate(der)
        extension = certificate.extensions.get_extension_for_oid(_DELEGATION_OID).value
        public_key = certificate.public_key()
    except _MALFORMED as error:
        raise BadSignature(
            f"the server at {link.address} is not a Barnraise coordinator: "
            "its certificate carries no delegation"
        ) from error
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise BadSignature("the certificate's delegation has the wrong form")
    store = TrustStore(link.run_id, link.root)
    try:
        store.add([parse_envelope(extension.value)])
    except PeerFault as error:
        raise BadSignature(
            f"the server at {link.address} is not vouched for by the root key in your link "
            f"({error}): ask the organiser for the current link; if yours is right, somebody else "
            "answers at that address, so do not join"
        ) from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise BadSignature("the certificate's key has the wrong form")
    store.require(wire.KEY_PURPOSE_TLS, _spki(public_key), now_s)
    return certificate.public_bytes(serialization.Encoding.PEM)


def delegation_in(certificate_pem: bytes) -> wire.Delegation:
    """The delegation that one of our own certificates carries.

    Raises:
        ValueError: not such a certificate.
    """
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        extension = certificate.extensions.get_extension_for_oid(_DELEGATION_OID).value
    except x509.ExtensionNotFound as error:
        raise ValueError("the certificate carries no delegation") from error
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise ValueError("the certificate's delegation has the wrong form")
    return wire.Delegation.FromString(parse_envelope(extension.value).payload)


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
