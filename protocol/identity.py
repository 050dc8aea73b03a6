"""Device keys: one Ed25519 key is both the signing key and the libp2p identity.

A PeerID is ``base58(0x00 || len || PublicKey protobuf)`` for keys this short, so it
*names* the public key and needs no binding record (libp2p peer-ids specification,
"identity" multihash).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from protocol.errors import BadRecord, BadSignature, UsageError

PeerId = str
"""Base58 text of a libp2p PeerID; always of an Ed25519 key here."""

# libp2p crypto.proto, serialised by hand: field 1 (key_type) = 1 (Ed25519), field 2 (data).
_PUBLIC_PREFIX = bytes([0x08, 0x01, 0x12, 32])
_PRIVATE_PREFIX = bytes([0x08, 0x01, 0x12, 64])
_MULTIHASH_PREFIX = bytes([0x00, len(_PUBLIC_PREFIX) + 32])
_MAX_PEER_ID_CHARS = 64
_RESTORE = "restore it from a backup (a worker without one moves it away and joins again)"


class PublicKey:
    """A verification key, named by its PeerID."""

    def __init__(self, raw: bytes) -> None:
        """Wrap a raw Ed25519 public key.

        Args:
            raw: 32 bytes.

        Raises:
            BadRecord: not a valid key.
        """
        try:
            self._key = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError as error:
            raise BadRecord(f"not an Ed25519 public key: {error}") from error
        self.raw = raw
        self.peer_id: PeerId = base58.b58encode(_MULTIHASH_PREFIX + _PUBLIC_PREFIX + raw).decode()

    @classmethod
    def from_peer_id(cls, peer_id: PeerId) -> PublicKey:
        """Recover the key that a PeerID names.

        Raises:
            BadRecord: not the PeerID of an Ed25519 key.
        """
        if len(peer_id) > _MAX_PEER_ID_CHARS:
            raise BadRecord("PeerID is too long")
        return _named(peer_id)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a signature over ``message``.

        Raises:
            BadSignature: it was not made by this key over these bytes.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature as error:
            raise BadSignature(f"signature by {self.peer_id} does not verify") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.peer_id})"


@lru_cache(maxsize=1 << 14)
def _named(peer_id: PeerId) -> PublicKey:
    """A service meets the same few thousand keys in every call; base58 costs a third of a check."""
    prefix = _MULTIHASH_PREFIX + _PUBLIC_PREFIX
    try:
        decoded = base58.b58decode(peer_id)
    except ValueError as error:
        raise BadRecord(f"not a PeerID: {peer_id!r}") from error
    if len(decoded) != len(prefix) + 32 or not decoded.startswith(prefix):
        raise BadRecord(f"not the PeerID of an Ed25519 key: {peer_id!r}")
    key = PublicKey(decoded[len(prefix) :])
    # base58 forgives trailing white space: a second spelling would be a second worker.
    if key.peer_id != peer_id:
        raise BadRecord(f"not the canonical spelling of a PeerID: {peer_id!r}")
    return key


class Identity:
    """A private key with its public name."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @property
    def peer_id(self) -> PeerId:
        return self.public.peer_id

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Build from the 32-byte Ed25519 seed (RFC 8032)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        return self._key.private_bytes_raw()

    @property
    def private_key(self) -> Ed25519PrivateKey:
        return self._key

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of ``message``."""
        return self._key.sign(message)

    def libp2p_bytes(self) -> bytes:
        """The libp2p ``PrivateKey`` protobuf that p2pd reads as its identity file."""
        return _PRIVATE_PREFIX + self.seed + self.public.raw

    def save(self, path: Path) -> None:
        """Write the libp2p identity file with mode 0600; never overwrites.

        Raises:
            UsageError: the file exists already, or the disk is full; no part of it is left.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise UsageError(
                f"there is a key at {path} already; move it away to make a new one"
            ) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.libp2p_bytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Half a key would stand in the way of a whole one.
            path.unlink()
            raise UsageError(
                f"cannot write the key {path}: {error.strerror}; free space on that disk and try "
                "again"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a libp2p identity file.

        Raises:
            UsageError: it is missing or not an Ed25519 identity.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the key {path}: {error.strerror}; {_RESTORE}") from error
        if len(data) != len(_PRIVATE_PREFIX) + 64 or not data.startswith(_PRIVATE_PREFIX):
            raise UsageError(f"{path} is not an Ed25519 libp2p identity file: {_RESTORE}")
        seed, public = data[4:36], data[36:]
        identity = cls.from_seed(seed)
        if identity.public.raw != public:
            raise UsageError(
                f"{path} is damaged, its public half does not fit its private half: {_RESTORE}"
            )
        return identity
