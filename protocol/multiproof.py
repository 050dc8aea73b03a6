"""One inclusion proof for many leaves of an RFC 6962 tree.

The tree is walked from the root, left before right. A subtree that holds none of the leaves is one
hash of the proof; one that is a leaf of the list is nothing. So the leaves that are given, and the
hashes in this order, are exactly what the root is computed from: every hash is used once, and there
is one proof for one list of leaves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from protocol.errors import BadDigest
from protocol.merkle import HASH_BYTES, SubtreeRoot, node_hash, split_point

MAX_TREE_SIZE = 1 << 53


def prove_many(indexes: Sequence[int], size: int, subtree: SubtreeRoot) -> list[bytes]:
    """Proof that the leaves ``indexes`` are in the tree of ``size`` leaves.

    Args:
        indexes: ascending, each once.
        size: leaves in the tree.
        subtree: roots of ranges of leaves.
    """
    if not indexes or indexes[0] < 0 or indexes[-1] >= size:
        raise ValueError("a proof is of some leaves of the tree")
    return [subtree(start, end) for start, end in _ranges(indexes, 0, size)]


def _ranges(indexes: Sequence[int], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of leaves that the proof has hashes of, in its order."""
    first = bisect_left(indexes, start)
    if first == len(indexes) or indexes[first] >= end:
        yield start, end
    elif end - start > 1:
        middle = start + split_point(end - start)
        yield from _ranges(indexes, start, middle)
        yield from _ranges(indexes, middle, end)


def verify_many(
    leaf_hashes: Mapping[int, bytes], size: int, proof: Sequence[bytes], expected_root: bytes
) -> None:
    """Check that every leaf is in the tree, at its index.

    Args:
        leaf_hashes: hash of each leaf, by its index.
        size: leaves in the tree.
        proof: as :func:`prove_many` gives it.
        expected_root: of the tree, from a head that is believed.

    Raises:
        BadDigest: one is not, or the proof is malformed.
    """
    if not 0 < size <= MAX_TREE_SIZE:
        raise BadDigest(f"no proof is of a tree of {size} leaves")
    indexes = sorted(leaf_hashes)
    if not indexes or indexes[0] < 0 or indexes[-1] >= size:
        raise BadDigest(f"the proof names a leaf that a tree of {size} has not")
    if any(len(step) != HASH_BYTES for step in proof):
        raise BadDigest("inclusion proof holds something that is not a hash")
    steps = iter(proof)

    def value(start: int, end: int) -> bytes:
        first = bisect_left(indexes, start)
        if first == len(indexes) or indexes[first] >= end:
            step = next(steps, None)
            if step is None:
                raise BadDigest("inclusion proof is too short")
            return step
        if end - start == 1:
            return leaf_hashes[start]
        middle = start + split_point(end - start)
        return node_hash(value(start, middle), value(middle, end))

    if value(0, size) != expected_root:
        raise BadDigest("inclusion proof does not lead to the root")
    if next(steps, None) is not None:
        raise BadDigest("inclusion proof is too long")
