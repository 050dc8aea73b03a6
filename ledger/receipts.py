"""Receipts: a leaf and the proof that a signed head holds it, verifiable offline.

The proof is a C2SP tlog-proof file (``c2sp.org/tlog-proof@v1``)::

    c2sp.org/tlog-proof@v1
    extra BASE64          the log key's delegations (ledger.authority), so that the run's
    index N               root fingerprint alone is enough to believe the head
    BASE64 ...            audit path, leaf to root

    <checkpoint>          signed note
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import Delegations, load_delegations, log_keys
from ledger.log import latest_head, read_leaves
from ledger.notes import Checkpoint, NoteKey, decode_base64, open_checkpoint, read_checkpoint
from ledger.records import Leaf, parse_leaf
from protocol import merkle
from protocol.errors import BadDigest, BadRecord, TransientError
from protocol.identity import PeerId

MAGIC = "c2sp.org/tlog-proof@v1"
MAX_RECEIPT_BYTES = 1 << 18
_MAX_PATH = 64


@dataclass(frozen=True)
class Receipt:
    """What a donor keeps: the leaf's bytes and the text of its ``.tlog-proof`` file."""

    leaf: bytes
    proof: str


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
        if len(text) > MAX_RECEIPT_BYTES:
            raise BadRecord(f"a receipt is at most {MAX_RECEIPT_BYTES} bytes")
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


@dataclass(frozen=True)
class VerifiedReceipt:
    """What a receipt proves."""

    leaf: Leaf
    index: int
    checkpoint: Checkpoint


def make_receipt(session: Session, origin: str, leaf_index: int) -> Receipt:
    """Proof of a leaf in the newest signed head.

    Raises:
        TransientError: no signed head holds the leaf yet.
        BadDigest: the log is damaged, or is another log than ``origin``.
    """
    head = latest_head(session)
    if head is None or head.tree_size <= leaf_index:
        raise TransientError(f"leaf {leaf_index} is not under a signed head yet; ask again soon")
    if read_checkpoint(head.checkpoint).origin != origin:
        raise BadDigest(f"this database does not hold the log {origin!r}")
    leaf = next(read_leaves(session, leaf_index, leaf_index + 1))
    path = tree.inclusion_proof(session, leaf_index, head.tree_size)
    delegations = load_delegations(session)
    extra = delegations.log_only().dump() if delegations else None
    return Receipt(leaf, Proof(leaf_index, tuple(path), head.checkpoint, extra).text())


def verify_receipt(
    leaf: bytes, proof: str, *, root: PeerId | None = None, vkey: str | None = None
) -> VerifiedReceipt:
    """Check a receipt, offline.

    Steps, all of which must hold:
    1. the leaf is one of ours;
    2. the head is signed by a key that ``root`` delegated for the leaf's run and time, or by
       ``vkey``;
    3. the audit path leads from the leaf to the head's root.

    Args:
        leaf: bytes of the leaf.
        proof: text of the ``.tlog-proof`` file.
        root: fingerprint of the run's root key (from the join link), or
        vkey: the log's verifier key; exactly one of the two.

    Raises:
        BadRecord, BadSignature, BadDigest: what is wrong with it.
    """
    if (root is None) == (vkey is None):
        raise ValueError("give either the root fingerprint or the log's verifier key")
    parsed = parse_leaf(leaf)
    taken = Proof.parse(proof)
    if vkey is not None:
        keys = [NoteKey.parse(vkey)]
    else:
        assert root is not None
        keys = _delegated_keys(taken, root, parsed)
    checkpoint = open_checkpoint(taken.checkpoint, keys)
    merkle.verify_inclusion(
        merkle.leaf_hash(leaf), taken.index, checkpoint.size, taken.path, checkpoint.root
    )
    return VerifiedReceipt(parsed, taken.index, checkpoint)


def _delegated_keys(taken: Proof, root: PeerId, leaf: Leaf) -> list[NoteKey]:
    if taken.extra is None:
        raise BadRecord("the receipt lacks the log key's delegations: check it with --vkey")
    return log_keys(
        Delegations.parse(taken.extra),
        root,
        read_checkpoint(taken.checkpoint).origin,
        run_id=bytes.fromhex(leaf.run_id),
        at_s=leaf.at_s,
    )
