"""Receipts: a leaf and the proof that a signed head holds it, verifiable offline.

The proof is a C2SP tlog-proof file (:mod:`protocol.tlog`). Its ``extra`` line holds the log key's
delegations (:mod:`ledger.authority`), so the run's root fingerprint alone is enough to believe it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import Delegations, load_delegations, log_keys
from ledger.log import latest_head, read_leaves
from ledger.records import Leaf, parse_leaf
from protocol.errors import BadDigest, BadRecord, TransientError
from protocol.identity import PeerId
from protocol.notes import Checkpoint, NoteKey, read_checkpoint
from protocol.tlog import Proof


@dataclass(frozen=True)
class Receipt:
    """What a donor keeps: the leaf's bytes and the text of its ``.tlog-proof`` file."""

    leaf: bytes
    proof: str


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
    return VerifiedReceipt(parsed, taken.index, taken.verify(leaf, keys))


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
