"""Receipts as C2SP ``tlog-proof`` files: reading and checking, for those who keep no log.

Formats: ``c2sp.org/tlog-proof@v1``, ``c2sp.org/tlog-checkpoint``, ``c2sp.org/signed-note`` with
Ed25519 keys. The log's key bears the origin as its name.

Invariant: nothing of a proof is believed before the checkpoint's signature by a key that the caller
named has been verified over its exact text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from protocol import merkle
from protocol.errors import BadRecord, BadSignature
from protocol.identity import PublicKey

_MAGIC = "c2sp.org/tlog-proof@v1"
_MAX_PROOF_CHARS = 1 << 18
_MAX_STEPS = 64
_MAX_SIGNATURES = 64
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_NUMBER = r"(0|[1-9][0-9]{0,18})"


@dataclass(frozen=True)
class Proof:
    """A proof file, taken apart; nothing verified."""

    index: int
    path: tuple[bytes, ...]
    origin: str
    size: int
    root: bytes
    signed_text: bytes
    signatures: tuple[tuple[str, bytes], ...]  # (name, key id || signature)

    def verify(self, leaf: bytes, origin: str, keys: Iterable[PublicKey]) -> PublicKey:
        """Check that a leaf is in the log that ``origin`` names.

        Args:
            leaf: the leaf's bytes.
            keys: log keys that the caller believes.

        Returns:
            The key that signed the checkpoint.

        Raises:
            BadSignature: not this log, or not signed by one of the keys.
            BadDigest: the leaf is not in that tree.
        """
        if self.origin != origin:
            raise BadSignature(f"a proof of the log {self.origin[:80]!r}, not of {origin!r}")
        signer = self._signer(keys)
        merkle.verify_inclusion(merkle.leaf_hash(leaf), self.index, self.size, self.path, self.root)
        return signer

    def _signer(self, keys: Iterable[PublicKey]) -> PublicKey:
        for key in keys:
            for name, blob in self.signatures:
                if name == self.origin and blob[:_KEY_ID_BYTES] == key_id(name, key):
                    key.verify(blob[_KEY_ID_BYTES:], self.signed_text)
                    return key
        raise BadSignature("the head in the receipt is not signed by a log key of this run")


def key_id(name: str, key: PublicKey) -> bytes:
    """First 4 bytes of SHA-256(name || LF || 0x01 || key) (signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:_KEY_ID_BYTES]


def parse_proof(text: str) -> Proof:
    """Take a proof file apart.

    Raises:
        BadRecord: oversized or malformed.
    """
    if len(text) > _MAX_PROOF_CHARS:
        raise BadRecord(f"a receipt is at most {_MAX_PROOF_CHARS} characters")
    head, found, note = text.partition("\n\n")
    lines = head.split("\n")
    if not found or lines.pop(0) != _MAGIC:
        raise BadRecord(f"not a receipt: it does not begin with {_MAGIC}")
    if lines and lines[0].startswith("extra "):
        del lines[0]
    match = re.fullmatch(f"index {_NUMBER}", lines[0]) if lines else None
    if match is None or len(lines) - 1 > _MAX_STEPS:
        raise BadRecord("not a receipt: no index, or too long a path")
    path = tuple(_base64(line) for line in lines[1:])
    signed_text, signatures = _split_note(note)
    origin, size, root = _checkpoint(signed_text)
    return Proof(int(match[1]), path, origin, size, root, signed_text.encode(), signatures)


def _split_note(note: str) -> tuple[str, tuple[tuple[str, bytes], ...]]:
    cut = note.rfind("\n\n")  # the last empty line divides text from signatures
    lines = note[cut + 2 : -1].split("\n")
    if cut < 0 or not note.endswith("\n") or len(lines) > _MAX_SIGNATURES:
        raise BadRecord("the receipt's head is not a signed note")
    signatures = []
    for line in lines:
        match = re.fullmatch(r"— (\S{1,255}) ([A-Za-z0-9+/=]{8,8192})", line)
        if match is None:
            raise BadRecord("the receipt's head has a malformed signature line")
        signatures.append((match[1], _base64(match[2])))
    return note[: cut + 1], tuple(signatures)


def _checkpoint(text: str) -> tuple[str, int, bytes]:
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not re.fullmatch(_NUMBER, lines[1]):
        raise BadRecord("the receipt's head is not a checkpoint")
    root = _base64(lines[2])
    if len(root) != merkle.HASH_BYTES:
        raise BadRecord("the receipt's head has a root that is not a SHA-256")
    return lines[0], int(lines[1]), root


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord("the receipt holds something that is not base64") from error
