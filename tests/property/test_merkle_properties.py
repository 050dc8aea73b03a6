"""Proofs verify for every tree, fail for every change, and agree with another implementation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tlog_scales.tlog import ConsistencyProof, InclusionProof

from protocol import merkle
from protocol.errors import BadDigest

HASHES = [merkle.leaf_hash(index.to_bytes(2, "big")) for index in range(300)]
SUBTREE = merkle.subtree_roots(HASHES)
SIZES = st.integers(1, len(HASHES))


def reference_root(hashes: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(hashes) == 1:
        return hashes[0]
    middle = 1
    while middle * 2 < len(hashes):
        middle *= 2
    return merkle.node_hash(reference_root(hashes[:middle]), reference_root(hashes[middle:]))


@st.composite
def leaf_in_tree(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(SIZES)
    return draw(st.integers(0, size - 1)), size


@st.composite
def two_sizes(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(SIZES)
    return draw(st.integers(0, size)), size


def flipped(value: bytes, bit: int) -> bytes:
    damaged = bytearray(value)
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    return bytes(damaged)


@given(SIZES)
def test_root_is_the_recursive_definition(size: int) -> None:
    assert merkle.root(HASHES[:size]) == reference_root(HASHES[:size])


@given(leaf_in_tree())
def test_inclusion(where: tuple[int, int]) -> None:
    index, size = where
    root = merkle.root(HASHES[:size])
    proof = merkle.inclusion_proof(index, size, SUBTREE)
    merkle.verify_inclusion(HASHES[index], index, size, proof, root)
    InclusionProof(index, size, proof).check(HASHES[index], root)


@given(leaf_in_tree(), st.data())
def test_changed_inclusion_is_noticed(where: tuple[int, int], data: st.DataObject) -> None:
    index, size = where
    root = merkle.root(HASHES[:size])
    proof = merkle.inclusion_proof(index, size, SUBTREE)
    bit = data.draw(st.integers(0, 255))
    with pytest.raises(BadDigest):
        merkle.verify_inclusion(flipped(HASHES[index], bit), index, size, proof, root)
    with pytest.raises(BadDigest):
        merkle.verify_inclusion(HASHES[index], index, size, proof, flipped(root, bit))
    if proof:
        step = data.draw(st.integers(0, len(proof) - 1))
        damaged = [*proof[:step], flipped(proof[step], bit), *proof[step + 1 :]]
        with pytest.raises(BadDigest):
            merkle.verify_inclusion(HASHES[index], index, size, damaged, root)
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index) if size > 1 else SIZES)
    with pytest.raises(BadDigest):
        merkle.verify_inclusion(HASHES[index], other, size, proof, root)


@given(two_sizes())
def test_consistency(sizes: tuple[int, int]) -> None:
    old, new = sizes
    old_root, new_root = merkle.root(HASHES[:old]), merkle.root(HASHES[:new])
    proof = merkle.consistency_proof(old, new, SUBTREE)
    merkle.verify_consistency(old, old_root, new, new_root, proof)
    if 0 < old < new:
        ConsistencyProof(old, new, proof).check(old_root, new_root)


@given(two_sizes(), st.data())
def test_rewritten_history_is_noticed(sizes: tuple[int, int], data: st.DataObject) -> None:
    old, new = sizes
    changed = data.draw(st.integers(0, max(old - 1, 0)))
    other_hashes = [*HASHES[:changed], merkle.leaf_hash(b"rewritten"), *HASHES[changed + 1 :]]
    old_root, new_root = merkle.root(HASHES[:old]), merkle.root(other_hashes[:new])
    if old == 0:
        return
    for hashes in (HASHES, other_hashes):
        proof = merkle.consistency_proof(old, new, merkle.subtree_roots(hashes))
        with pytest.raises(BadDigest):
            merkle.verify_consistency(old, old_root, new, new_root, proof)


@given(two_sizes(), st.data())
def test_changed_consistency_proof_is_noticed(sizes: tuple[int, int], data: st.DataObject) -> None:
    old, new = sizes
    old_root, new_root = merkle.root(HASHES[:old]), merkle.root(HASHES[:new])
    proof = merkle.consistency_proof(old, new, SUBTREE)
    bit = data.draw(st.integers(0, 255))
    with pytest.raises(BadDigest):
        merkle.verify_consistency(old, old_root, new, new_root, [*proof, flipped(new_root, bit)])
    if proof:
        step = data.draw(st.integers(0, len(proof) - 1))
        damaged = [*proof[:step], flipped(proof[step], bit), *proof[step + 1 :]]
        with pytest.raises(BadDigest):
            merkle.verify_consistency(old, old_root, new, new_root, damaged)
        with pytest.raises(BadDigest):
            merkle.verify_consistency(old, old_root, new, new_root, proof[:-1])
