"""Receipts' proofs as C2SP ``tlog-proof`` files::

    c2sp.org/tlog-proof@v1
    extra BASE64          optional: whatever helps to believe the head
    index N
    BASE64 ...            audit path, leaf to root

    <checkpoint>          signed note (:mod:`protocol.notes`)

Invariant: nothing of a proof is believed before the head's signature by a key that the caller
named has been verified over its exact text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from protocol import merkle
from protocol.errors import BadRecord
from protocol.notes import Checkpoint, NoteKey, decode_base64, open_checkpoint

MAGIC = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES = 1 << 18
_MAX_PATH = 64


@dataclass(frozen=True)
class Proof:
    """A tlog-proof file, taken apart; nothing verified."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: str  # the signed note
    extra: bytes | None

    def text(self) -> str:
        """The file."""
        lines = [MAGIC]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(step).decode() for step in self.path]
        return "\n".join(lines) + "\n\n" + self.checkpoint

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Take a file apart.

        Raises:
            BadRecord: oversized or malformed.
        """
        if len(text) > MAX_PROOF_BYTES:
            raise BadRecord(f"a receipt is at most {MAX_PROOF_BYTES} bytes")
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines[0] != MAGIC:
            raise BadRecord(f"not a receipt: its first line is not {MAGIC!r}")
        del lines[0]
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "))
        match = re.fullmatch(r"index (0|[1-9][0-9]{0,18})", lines[0] if lines else "")
        if match is None:
            raise BadRecord("not a receipt: no index line")
        if len(lines) - 1 > _MAX_PATH:
            raise BadRecord("the receipt's proof is too long for any tree")
        path = tuple(decode_base64(line) for line in lines[1:])
        return cls(int(match[1]), path, checkpoint, extra)

    def verify(self, leaf: bytes, keys: Sequence[NoteKey]) -> Checkpoint:
        """Check that a leaf is in a log whose key the caller believes.

        Args:
            leaf: the leaf's bytes.
            keys: log keys that the caller believes, each named after its log's origin.

        Returns:
            The head that holds the leaf.

        Raises:
            BadRecord: the head is malformed.
            BadSignature: the head is not signed by one of the keys, for the log it names.
            BadDigest: the leaf is not in that tree.
        """
        checkpoint = open_checkpoint(self.checkpoint, keys)
        merkle.verify_inclusion(
            merkle.leaf_hash(leaf), self.index, checkpoint.size, self.path, checkpoint.root
        )
        return checkpoint
