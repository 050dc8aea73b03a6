"""The files that keys and delegations lie in: read with advice, replaced together."""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from protocol.certificate import TlsCredentials, check_certificate
from protocol.draw import SEED_BYTES
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire

TLS_CERTIFICATE, TLS_KEY = "tls.crt", "tls.key"
CROWD_KEYS: Mapping[wire.KeyPurpose, str] = MappingProxyType(
    {wire.KEY_PURPOSE_CAMPAIGN: "campaign.key", wire.KEY_PURPOSE_TREASURER: "treasurer.key"}
)
"""Keys that sign what organisers do besides training."""


def envelope_to_json(envelope: wire.Envelope) -> dict[str, Any]:
    """The JSON form of a DSSE envelope (DSSE envelope.md, "Standard JSON envelope")."""
    return {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": envelope.payload_type,
        "signatures": [
            {"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in envelope.signatures
        ],
    }


def envelope_from_json(document: dict[str, Any]) -> wire.Envelope:
    """Inverse of :func:`envelope_to_json`.

    Raises:
        UsageError: not such a document.
    """
    try:
        return wire.Envelope(
            payload=base64.b64decode(document["payload"], validate=True),
            payload_type=document["payloadType"],
            signatures=[
                wire.Signature(sig=base64.b64decode(s["sig"], validate=True), keyid=s["keyid"])
                for s in document["signatures"]
            ],
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise UsageError(f"not a DSSE envelope: {error}") from error


def read_delegations(
    path: Path,
) -> tuple[tuple[wire.Envelope, ...], tuple[wire.Envelope, ...]]:
    try:
        document = json.loads(read_file(path))
        delegations, revocations = document["delegations"], document["revocations"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error}; restore it from a backup") from error
    return _envelopes(delegations), _envelopes(revocations)


def refuse_strangers(path: Path, known: Collection[wire.Envelope]) -> None:
    """Insist that the file has nothing but what is known: else what another command had the root
    key sign meanwhile would be lost.

    Raises:
        UsageError: it has.
    """
    if not path.exists():
        return
    delegations, revocations = read_delegations(path)
    if any(envelope not in known for envelope in (*delegations, *revocations)):
        raise UsageError(
            f"another command changed {path} meanwhile: run this one again; nothing was changed"
        )


def read_seed(path: Path) -> bytes:
    seed = read_file(path)
    if len(seed) != SEED_BYTES:
        raise UsageError(
            f"{path} has {len(seed)} bytes instead of {SEED_BYTES}: restore it from a backup; no "
            "other seed continues the run's draws"
        )
    return seed


def _envelopes(documents: Iterable[dict[str, Any]]) -> tuple[wire.Envelope, ...]:
    return tuple(envelope_from_json(document) for document in documents)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; restore it from a backup"
        ) from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only one that changes the files of a folder of keys; waits for its turn."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(directory: Path, files: dict[str, bytes]) -> None:
    """Replace files that belong together, readable by their owner only.

    None is replaced before all are written: a full disk must not leave a key without its
    certificate.
    """
    new = {directory / name: directory / f"{name}.new" for name in files}
    try:
        for temporary, data in zip(new.values(), files.values(), strict=True):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        for temporary in new.values():
            temporary.unlink(missing_ok=True)
        raise
    for path, temporary in new.items():
        temporary.replace(path)


def check_tls(credentials: TlsCredentials, link: JoinLink, now_s: float) -> None:
    """Insist on a certificate that workers believe, and on its private key.

    Args:
        credentials: as they lie in the files.
        link: names the run and its root key.
        now_s: POSIX time.

    Raises:
        BadSignature: workers would not believe it.
        UsageError: a file is damaged, or they do not belong together.
    """
    try:
        certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    except ValueError as error:
        raise UsageError(
            f"keys/{TLS_CERTIFICATE} is damaged: restore it from a backup, or make a new one "
            "with 'barnraise coordinator renew-keys'"
        ) from error
    check_certificate(certificate.public_bytes(serialization.Encoding.DER), link, now_s)
    try:
        key = serialization.load_pem_private_key(credentials.private_key_pem, password=None)
        fits = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        fits = False
    if not fits:
        raise UsageError(
            f"keys/{TLS_KEY} is damaged or not the key of {TLS_CERTIFICATE}: restore both from "
            "one backup, or make new ones with 'barnraise coordinator renew-keys'"
        )


def crowd_key(directory: Path, purpose: wire.KeyPurpose) -> Identity | None:
    """A key of ``CROWD_KEYS`` as it lies in the folder now; None: it does not.

    Raises:
        UsageError: its file is damaged.
    """
    path = directory / CROWD_KEYS[purpose]
    return Identity.load(path) if path.exists() else None
