"""RFC 6962 Merkle trees: hashing, inclusion and consistency proofs.

Commitments to update vectors and the public record both use this tree. Verification follows
RFC 9162 sections 2.1.3.2 and 2.1.4.2 (the same tree, with iterative algorithms).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from protocol.errors import BadDigest

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

SubtreeRoot = Callable[[int, int], bytes]
"""``(start, end) -> root`` of the leaves in [start, end): how proofs read a stored tree."""


def leaf_hash(data: bytes | memoryview) -> bytes:
    """SHA-256(0x00 || data): a leaf can never be taken for a node."""
    digest = hashlib.sha256(b"\x00")
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def split_point(size: int) -> int:
    """The largest power of two below ``size`` (>= 2): where RFC 6962 splits a tree."""
    return 1 << ((size - 1).bit_length() - 1)


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Merkle tree hash of a list of leaf hashes (RFC 6962 section 2.1).

    Folds a stack of perfect subtrees, so a tree of n leaves costs n - 1 hashes and O(log n) space.
    """
    if not leaf_hashes:
        return EMPTY_ROOT
    stack: list[tuple[int, bytes]] = []  # (leaves below, hash), sizes strictly falling
    for leaf in leaf_hashes:
        size, value = 1, leaf
        while stack and stack[-1][0] == size:
            value = node_hash(stack.pop()[1], value)
            size *= 2
        stack.append((size, value))
    value = stack.pop()[1]
    while stack:
        value = node_hash(stack.pop()[1], value)
    return value


def subtree_roots(leaf_hashes: Sequence[bytes]) -> SubtreeRoot:
    """The in-memory :data:`SubtreeRoot` over a list of leaf hashes."""
    return lambda start, end: root(leaf_hashes[start:end])


def inclusion_proof(index: int, size: int, subtree: SubtreeRoot) -> list[bytes]:
    """Audit path of leaf ``index`` in the tree of the first ``size`` leaves, leaf to root."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + split_point(end - start)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start = middle
    path.reverse()
    return path


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> None:
    """Check that ``leaf`` (a leaf hash) is number ``index`` of the tree (RFC 9162 2.1.3.2).

    Raises:
        BadDigest: it is not, or the proof is malformed.
    """
    if not 0 <= index < size:
        raise BadDigest(f"leaf {index} is not in a tree of {size}")
    if any(len(step) != HASH_BYTES for step in proof):
        raise BadDigest("inclusion proof holds something that is not a hash")
    node, last, value = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise BadDigest("inclusion proof is too long")
        if node & 1 or node == last:
            value = node_hash(step, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, step)
        node, last = node >> 1, last >> 1
    if last != 0 or value != expected_root:
        raise BadDigest("inclusion proof does not lead to the root")


def consistency_proof(old_size: int, size: int, subtree: SubtreeRoot) -> list[bytes]:
    """Proof that the first ``old_size`` leaves are a prefix of ``size`` (RFC 6962 2.1.2)."""
    if not 0 <= old_size <= size:
        raise ValueError(f"a tree of {old_size} cannot be a prefix of one of {size}")
    if old_size in (0, size):
        return []
    proof: list[bytes] = []
    start, end, whole = 0, size, True
    while old_size != end:
        middle = start + split_point(end - start)
        if old_size <= middle:
            proof.append(subtree(middle, end))
            end = middle
        else:
            proof.append(subtree(start, middle))
            start, whole = middle, False
    if not whole:
        proof.append(subtree(start, end))
    proof.reverse()
    return proof


def verify_consistency(
    old_size: int, old_root: bytes, size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of ``size`` extends that of ``old_size`` (RFC 9162 2.1.4.2).

    Raises:
        BadDigest: it does not: history was rewritten, or the proof is malformed.
    """
    if not 0 <= old_size <= size:
        raise BadDigest(f"the record shrank from {old_size} to {size} leaves")
    if any(len(step) != HASH_BYTES for step in proof):
        raise BadDigest("consistency proof holds something that is not a hash")
    if old_size == size:
        if proof or old_root != new_root:
            raise BadDigest("two different heads of the same size")
        return
    if old_size == 0:
        if proof or old_root != EMPTY_ROOT:
            raise BadDigest("a consistency proof from the empty tree is empty")
        return
    steps = list(proof)
    if old_size & (old_size - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        raise BadDigest("consistency proof is too short")
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_value = new_value = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise BadDigest("consistency proof is too long")
        if node & 1 or node == last:
            old_value, new_value = node_hash(step, old_value), node_hash(step, new_value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new_value = node_hash(new_value, step)
        node, last = node >> 1, last >> 1
    if last != 0 or old_value != old_root or new_value != new_root:
        raise BadDigest("the new head does not extend the old one")
