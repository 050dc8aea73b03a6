"""The Merkle tree as it lies in the database: reading roots and proofs from stored nodes.

Only complete subtrees are stored, at ``(level, first leaf >> level)``. Every range that RFC
6962 speaks of starts at a multiple of its size rounded up to a power of two, so it is a row of
complete subtrees of falling size (:func:`cover`), folded from the right (:func:`combine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ledger.schema import LogLeaf, LogNode
from protocol import merkle
from protocol.errors import BadDigest

NodeId = tuple[int, int]
"""(level, position)"""

_NODES_PER_QUERY = 800  # bound parameters; SQLite allowed 999 for many years


def cover(start: int, end: int) -> list[NodeId]:
    """Complete subtrees that make up the leaves [start, end), left to right."""
    nodes = []
    while start < end:
        level = (end - start).bit_length() - 1
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def combine(hashes: Sequence[bytes]) -> bytes:
    """Root over a row of complete subtrees of falling size."""
    if not hashes:
        return merkle.EMPTY_ROOT
    value = hashes[-1]
    for left in reversed(hashes[:-1]):
        value = merkle.node_hash(left, value)
    return value


def tree_size(session: Session) -> int:
    """Leaves in the log."""
    last = session.scalar(select(func.max(LogLeaf.leaf_index)))
    return 0 if last is None else last + 1


def load_nodes(session: Session, ids: Iterable[NodeId]) -> dict[NodeId, bytes]:
    """Hashes of stored nodes.

    Raises:
        BadDigest: one is missing: the database is damaged.
    """
    wanted: dict[int, list[int]] = {}
    for level, position in dict.fromkeys(ids):
        wanted.setdefault(level, []).append(position)
    found: dict[NodeId, bytes] = {}
    for level, positions in wanted.items():
        # A query for each level: SQLite answers (level, position) IN (...) by reading every row.
        for first in range(0, len(positions), _NODES_PER_QUERY):
            part = positions[first : first + _NODES_PER_QUERY]
            rows = session.execute(
                select(LogNode.position, LogNode.hash).where(
                    LogNode.level == level, LogNode.position.in_(part)
                )
            )
            found.update({(level, position): value for position, value in rows})
        for position in positions:
            if (level, position) not in found:
                raise BadDigest(f"node {position} of level {level} is missing: the log is damaged")
    return found


def load_row(session: Session, level: int, start: int, end: int) -> list[bytes]:
    """Hashes of the stored nodes [start, end) of one level; fewer, if some are missing."""
    return list(
        session.scalars(
            select(LogNode.hash)
            .where(LogNode.level == level, LogNode.position >= start, LogNode.position < end)
            .order_by(LogNode.position)
        )
    )


def root(session: Session, size: int) -> bytes:
    """Root of the first ``size`` leaves."""
    ids = cover(0, size)
    nodes = load_nodes(session, ids)
    return combine([nodes[node] for node in ids])


def inclusion_proof(session: Session, index: int, size: int) -> list[bytes]:
    """Audit path of a leaf in the tree of the first ``size`` leaves; O(log n) reads."""
    return _prove(session, lambda subtree: merkle.inclusion_proof(index, size, subtree))


def consistency_proof(session: Session, old_size: int, size: int) -> list[bytes]:
    """Proof that the first ``old_size`` leaves are a prefix of the first ``size``."""
    return _prove(session, lambda subtree: merkle.consistency_proof(old_size, size, subtree))


def _prove(session: Session, prove: Callable[[merkle.SubtreeRoot], list[bytes]]) -> list[bytes]:
    """Run a proof twice: once to learn which nodes it reads, once with them."""
    wanted: list[NodeId] = []

    def note(start: int, end: int) -> bytes:
        wanted.extend(cover(start, end))
        return b""

    prove(note)
    nodes: Mapping[NodeId, bytes] = load_nodes(session, wanted)
    return prove(lambda start, end: combine([nodes[node] for node in cover(start, end)]))


class Frontier:
    """The right edge of a growing tree: enough to append to it and to know its root."""

    def __init__(self, size: int, hashes: Sequence[bytes]) -> None:
        """Start from a tree of ``size`` leaves whose :func:`cover` has these hashes."""
        self.size = size
        self._edge = [
            (level, value) for (level, _), value in zip(cover(0, size), hashes, strict=True)
        ]

    @classmethod
    def load(cls, session: Session, size: int) -> Frontier:
        """The edge of the stored tree at ``size`` leaves."""
        ids = cover(0, size)
        nodes = load_nodes(session, ids)
        return cls(size, [nodes[node] for node in ids])

    def push(self, leaf_hash: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf; returns the nodes ``(level, position, hash)`` that it completes."""
        level, value, index = 0, leaf_hash, self.size
        made = [(0, index, value)]
        while self._edge and self._edge[-1][0] == level:
            value = merkle.node_hash(self._edge.pop()[1], value)
            level += 1
            made.append((level, index >> level, value))
        self._edge.append((level, value))
        self.size += 1
        return made

    def root(self) -> bytes:
        """Root of the tree so far."""
        return combine([value for _, value in self._edge])
