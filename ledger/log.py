"""The log: the only writer of leaves, nodes and heads.

Invariants:

* Leaves and nodes are written in the caller's transaction, together with the business rows
  that they speak of: both are there, or neither.
* A head is signed only after its leaves are committed, only over hashes recomputed from the
  leaves themselves, and only if it extends the last signed head. A rewritten, shortened or
  damaged log is never signed.
* There is one writer at a time: the coordinator's transactions wait for each other. One that does
  not wait collides on the leaf's index, and its transaction fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import structlog
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ledger import tree
from ledger.records import Leaf
from ledger.schema import LogHead, LogLeaf, LogNode
from protocol import merkle
from protocol.errors import BadDigest, BadSignature, UsageError
from protocol.identity import Identity
from protocol.limits import MAX_LEAF_BYTES
from protocol.notes import Checkpoint, NoteKey, open_checkpoint, read_checkpoint, sign_checkpoint

logger = structlog.get_logger()

LOOKED_UP_BY = ("kind", "round", "donor", "assignment_id")
"""Columns of a leaf's row that repeat its fields."""

_READ_ROWS = 1000


def latest_head(session: Session) -> LogHead | None:
    """The newest signed head, or None before the first."""
    return session.scalar(select(LogHead).order_by(LogHead.tree_size.desc()).limit(1))


def read_leaves(session: Session, start: int, end: int) -> Iterator[bytes]:
    """Bytes of the leaves [start, end), in order, a bounded number at a time.

    Raises:
        BadDigest: one is missing, or is not bytes: the database is damaged.
    """
    for first in range(start, end, _READ_ROWS):
        last = min(end, first + _READ_ROWS)
        rows = session.execute(
            select(LogLeaf.leaf_index, LogLeaf.data)
            .where(LogLeaf.leaf_index >= first, LogLeaf.leaf_index < last)
            .order_by(LogLeaf.leaf_index)
        ).all()
        for expected, (index, data) in zip(range(first, last), rows, strict=False):
            if index != expected:
                raise BadDigest(f"leaf {expected} is missing: the log is damaged")
            if not isinstance(data, bytes):  # SQLite keeps any type in any column
                raise BadDigest(f"leaf {expected} is not bytes: somebody edited the database")
            yield data
        if len(rows) < last - first:
            raise BadDigest(f"leaf {first + len(rows)} is missing: the log is damaged")


def append_leaves(session: Session, leaves: Sequence[Leaf]) -> list[int]:
    """Add leaves inside the caller's transaction; O(log n) each at worst, O(1) on average.

    Returns:
        Their indexes.

    Raises:
        UsageError: another program writes this log, or a leaf is too large.
        BadDigest: the stored tree is damaged.
    """
    if not leaves:
        return []
    size = tree.tree_size(session)
    frontier = tree.Frontier.load(session, size)
    leaf_rows, node_rows = [], []
    for index, leaf in enumerate(leaves, start=size):
        data = leaf.canonical()
        if len(data) > MAX_LEAF_BYTES:
            raise UsageError(
                f"a {leaf.kind} leaf of {len(data)} bytes is over {MAX_LEAF_BYTES}: "
                "shorten the texts of the run manifest"
            )
        leaf_rows.append({"leaf_index": index, "data": data, **_columns(leaf)})
        for level, position, value in frontier.push(merkle.leaf_hash(data)):
            node_rows.append({"level": level, "position": position, "hash": value})
    try:
        session.execute(insert(LogLeaf), leaf_rows)
        session.execute(insert(LogNode), node_rows)
    except IntegrityError as error:
        raise UsageError(
            "another program appended to this log at the same moment; "
            "stop the second coordinator: a log has one writer"
        ) from error
    return list(range(size, size + len(leaves)))


class Log:
    """Appends to the log of one run, and signs its heads."""

    def __init__(
        self, origin: str, signer: Identity, *, now_s: Callable[[], float] = time.time
    ) -> None:
        """Write for ``origin`` (the manifest's) with the key that the run's root delegated.

        Args:
            origin: name of the log and of its key.
            signer: the log key.
            now_s: the clock that dates heads; for tests.
        """
        self.origin = origin
        self.key = NoteKey(origin, signer.public)
        self._signer = signer
        self._now_s = now_s

    def append(self, session: Session, leaves: Sequence[Leaf]) -> list[int]:
        """:func:`append_leaves`."""
        return append_leaves(session, leaves)

    def behind(self, session: Session) -> bool:
        """Whether leaves are there that no signed head covers."""
        head = latest_head(session)
        return tree.tree_size(session) > (0 if head is None else head.tree_size)

    def sign_head(self, session: Session) -> str:
        """Sign the head of what is committed, in a transaction of its own.

        Call it after the leaves are committed, and publish the result only after this
        transaction is. Signing again without new leaves returns the head that there is.

        Returns:
            The checkpoint as a signed note (C2SP tlog-checkpoint).

        Raises:
            BadDigest: the log does not extend the last signed head, or is damaged.
        """
        size = tree.tree_size(session)
        head = latest_head(session)
        new_root = self._checked_root(session, head, size)
        if head is not None and head.tree_size == size:
            if self._is_ours(head.checkpoint):
                return head.checkpoint
            session.delete(head)  # same tree, but the log key was replaced: sign it anew
            session.flush()
        note = sign_checkpoint(Checkpoint(self.origin, size, new_root), self._signer)
        # A command-line program's clock may be another one than the server's.
        at_s = max(int(self._now_s()), 0 if head is None else head.signed_at_s)
        session.add(LogHead(tree_size=size, checkpoint=note, signed_at_s=at_s))
        session.flush()
        logger.info("log head signed", size=size, root=new_root.hex()[:16])
        return note

    def _checked_root(self, session: Session, head: LogHead | None, size: int) -> bytes:
        """Root of ``size`` leaves, proved to extend the last signed head.

        Steps, all of which must hold:
        1. the stored tree at the old size has exactly the root that was signed;
        2. the leaves since then, hashed anew, lead from that tree to the stored new root;
        3. the consistency proof that anyone will be given verifies.
        """
        old_size, old_root = 0, merkle.EMPTY_ROOT
        if head is not None:
            signed = read_checkpoint(head.checkpoint)
            if signed.origin != self.origin:
                raise BadDigest(f"this database holds the log {signed.origin!r}: not signing")
            old_size, old_root = signed.size, signed.root
        if old_size > size:
            raise BadDigest(
                f"the log shrank from {old_size} to {size} leaves: not signing; "
                "restore the database from a backup that has them"
            )
        try:
            frontier = tree.Frontier.load(session, old_size)
            if frontier.root() != old_root:
                raise BadDigest(f"the first {old_size} leaves are not those that were signed")
            for data in read_leaves(session, old_size, size):
                frontier.push(merkle.leaf_hash(data))
            new_root = tree.root(session, size)
            if frontier.root() != new_root:
                raise BadDigest("the stored tree does not fit its leaves")
            proof = tree.consistency_proof(session, old_size, size)
            merkle.verify_consistency(old_size, old_root, size, new_root, proof)
        except BadDigest as error:
            raise BadDigest(
                f"not signing an inconsistent head: {error}; restore the database from a backup"
            ) from error
        return new_root

    def _is_ours(self, note: str) -> bool:
        try:
            open_checkpoint(note, [self.key])
        except BadSignature:
            return False
        return True


def _columns(leaf: Leaf) -> dict[str, object]:
    """The columns by which a leaf is looked up; all of them repeat what its bytes say."""
    return {name: getattr(leaf, name, None) for name in LOOKED_UP_BY}
