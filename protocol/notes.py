"""C2SP signed notes and checkpoints.

* A note is text ending in a newline, an empty line, and signature lines
  ``— <name> base64(key id || signature)`` (c2sp.org/signed-note). Ed25519 signs the text with
  its final newline.
* A checkpoint's text is ``origin\\nsize\\nbase64(root)\\n`` (c2sp.org/tlog-checkpoint). The
  log's key bears the origin as its name.
* Signatures of unknown keys are ignored; a bad one of a known key refuses the note.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import BadRecord, BadSignature
from protocol.identity import Identity, PublicKey
from protocol.merkle import HASH_BYTES

MAX_NOTE_BYTES = 1 << 16
MAX_SIGNATURES = 64
_ED25519 = b"\x01"
_SIGNATURE_LINE = re.compile(r"— (\S{1,255}) ([A-Za-z0-9+/=]{8,8192})")


@dataclass(frozen=True)
class NoteKey:
    """A verification key with its name."""

    name: str
    public: PublicKey

    @property
    def key_id(self) -> bytes:
        """First 4 bytes of SHA-256(name || LF || type || key)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public.raw).digest()[:4]

    @property
    def vkey(self) -> str:
        """Text form: ``name+hex(key id)+base64(type || key)``."""
        key = base64.b64encode(_ED25519 + self.public.raw).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, vkey: str) -> NoteKey:
        """Read the text form.

        Raises:
            BadRecord: malformed, another type of key, or its id does not fit.
        """
        parts = vkey.strip().split("+", 2)
        if len(parts) != 3 or not parts[0]:
            raise BadRecord("a verifier key looks like name+keyid+base64")
        raw = decode_base64(parts[2])
        if len(raw) != 33 or raw[:1] != _ED25519:
            raise BadRecord("only Ed25519 verifier keys are known")
        key = cls(parts[0], PublicKey(raw[1:]))
        if key.key_id.hex() != parts[1]:
            raise BadRecord("the verifier key's id does not fit its name and key")
        return key


@dataclass(frozen=True)
class Note:
    """An opened note: its text, and the known keys whose signatures were verified."""

    text: str
    signers: tuple[NoteKey, ...]


def sign_note(text: str, name: str, identity: Identity) -> str:
    """Sign ``text`` (ending in a newline) as a note."""
    if not text.endswith("\n") or any(ord(c) < 0x20 and c != "\n" for c in text):
        raise ValueError("a note's text ends in a newline and holds no control characters")
    key = NoteKey(name, identity.public)
    signature = base64.b64encode(key.key_id + identity.sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n"


def split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Text and ``(name, key id || signature)`` pairs of a note, nothing verified.

    Raises:
        BadRecord: not a note.
    """
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise BadRecord(f"a note is at most {MAX_NOTE_BYTES} bytes")
    if any(ord(c) < 0x20 and c != "\n" for c in note):
        raise BadRecord("a note holds no control characters")
    cut = note.rfind("\n\n")  # the text may hold empty lines: the last one divides
    if cut < 0 or not note.endswith("\n"):
        raise BadRecord("not a signed note: no signatures at its end")
    lines = note[cut + 2 : -1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise BadRecord(f"a note with more than {MAX_SIGNATURES} signatures")
    signatures = []
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None:
            raise BadRecord("not a signed note: malformed signature line")
        signatures.append((match[1], decode_base64(match[2])))
    return note[: cut + 1], signatures


def open_note(note: str, keys: Sequence[NoteKey]) -> Note:
    """Verify a note with the keys that the caller believes.

    Raises:
        BadRecord: not a note.
        BadSignature: no known key signed it, or a known key's signature is bad.
    """
    text, signatures = split_note(note)
    signers = []
    for name, blob in signatures:
        for key in keys:
            if key.name == name and key.key_id == blob[:4] and key not in signers:
                key.public.verify(blob[4:], text.encode())
                signers.append(key)
    if not signers:
        raise BadSignature("the note bears no signature of a key that is believed here")
    return Note(text, tuple(signers))


@dataclass(frozen=True)
class Checkpoint:
    """A head of the log: how many leaves, and their root."""

    origin: str
    size: int
    root: bytes  # 32 bytes

    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint's text; extension lines are allowed and ignored.

        Raises:
            BadRecord: malformed.
        """
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0] or lines[-1]:
            raise BadRecord("a checkpoint is origin, size and root, each on its line")
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise BadRecord(f"not a tree size: {lines[1][:40]!r}")
        root = decode_base64(lines[2])
        if len(root) != HASH_BYTES:
            raise BadRecord("a checkpoint's root is 32 bytes")
        return cls(lines[0], int(lines[1]), root)


def sign_checkpoint(checkpoint: Checkpoint, identity: Identity) -> str:
    """The checkpoint as a signed note; the key is named after the origin."""
    return sign_note(checkpoint.text(), checkpoint.origin, identity)


def read_checkpoint(note: str) -> Checkpoint:
    """The checkpoint in a note whose signature is checked elsewhere.

    Raises:
        BadRecord: not a note, or not a checkpoint.
    """
    return Checkpoint.parse(split_note(note)[0])


def open_checkpoint(note: str, keys: Sequence[NoteKey]) -> Checkpoint:
    """Verify and read a checkpoint; one of ``keys`` must bear its origin as name.

    Raises:
        BadRecord: malformed.
        BadSignature: not signed by the log that it speaks for.
    """
    opened = open_note(note, keys)
    checkpoint = Checkpoint.parse(opened.text)
    if all(key.name != checkpoint.origin for key in opened.signers):
        raise BadSignature(f"not signed by the log {checkpoint.origin!r} itself")
    return checkpoint


def decode_base64(text: str) -> bytes:
    """Strict standard base64: one text for one value.

    Raises:
        BadRecord: anything else.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord("not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise BadRecord("not canonical base64")
    return raw
