"""A log that is replayed as it grows: the fold, the acts and the tree of the same leaves."""

from __future__ import annotations

from ledger import tree
from ledger.act_check import ActCheck, ActSource
from ledger.authority import Delegations, log_keys
from ledger.fold import Board
from ledger.mirror_pin import Pin
from ledger.records import ActLeaf, Leaf
from ledger.sources import Node
from protocol import merkle
from protocol.errors import BadDigest, BadRecord, BadSignature
from protocol.notes import open_checkpoint, read_checkpoint


class Replay:
    """Leaves so far. After a leaf that was refused, it is of no use any more."""

    def __init__(self, acts: ActSource) -> None:
        self.board = Board()
        self._acts = ActCheck(acts, self.board)
        self._edge = tree.Frontier(0, [])

    @property
    def size(self) -> int:
        return self._edge.size

    def root(self) -> bytes:
        """Root of the tree so far."""
        return self._edge.root()

    def take(self, data: bytes) -> tuple[Leaf, list[Node]]:
        """Take the next leaf; returns it, and the nodes of the tree that it completes.

        Raises:
            BadRecord, BadDigest, BadSignature: it is malformed, contradicts the leaves before it,
                or its act is not there or another; names the leaf.
        """
        made = self._edge.push(merkle.leaf_hash(data))
        leaf = self.board.apply(data)
        if isinstance(leaf, ActLeaf):
            self._acts.add(self.size - 1, leaf)
        return leaf, made

    def check_head(self, note: str, delegations: Delegations | None, pin: Pin) -> None:
        """Insist that a head is of exactly these leaves, and signed by who may.

        Raises:
            BadDigest, BadRecord: it is of others.
            BadSignature: it is not signed by a key that the pinned root delegated, at the time of
                the newest leaf.
        """
        head, manifest = read_checkpoint(note), self.board.manifest
        if (head.size, head.root) != (self.size, self.root()):
            raise BadDigest(f"the {head.size} leaves do not hash to the root of the signed head")
        self.board.check_merged()
        self.board.check_sums()
        self._acts.finish()
        if manifest is None or (manifest.root, self.board.run_id) != (pin.root, pin.run_id):
            raise BadSignature(f"leaf 0 is of another run than {pin.run_id} of {pin.root}")
        if head.origin != manifest.origin:
            raise BadRecord(f"the head is of {head.origin!r}, the run of {manifest.origin!r}")
        if delegations is None:
            raise BadSignature("no delegations say who may sign it")
        at_s = self.board.newest_s
        keys = log_keys(delegations, pin.root, head.origin, run_id=pin.run, at_s=at_s)
        open_checkpoint(note, keys)
