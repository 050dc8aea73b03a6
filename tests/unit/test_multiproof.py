"""One proof of many leaves: it leads from them to the root, and from nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import merkle
from protocol.errors import BadDigest
from protocol.multiproof import prove_many, verify_many

HASHES = [merkle.leaf_hash(bytes([n])) for n in range(70)]


@st.composite
def _chosen(draw: st.DrawFn) -> tuple[int, list[int]]:
    size = draw(st.integers(1, len(HASHES)))
    chosen = draw(st.sets(st.integers(0, size - 1), min_size=1))
    return size, sorted(chosen)


def _proof(size: int, indexes: list[int]) -> tuple[list[bytes], bytes]:
    hashes = HASHES[:size]
    return prove_many(indexes, size, merkle.subtree_roots(hashes)), merkle.root(hashes)


@settings(max_examples=150, deadline=None)
@given(_chosen(), st.data())
def test_a_proof_is_of_exactly_its_leaves(
    chosen: tuple[int, list[int]], data: st.DataObject
) -> None:
    size, indexes = chosen
    proof, root = _proof(size, indexes)
    leaves = {index: HASHES[index] for index in indexes}
    verify_many(leaves, size, proof, root)
    moved = data.draw(st.sampled_from(indexes))
    with pytest.raises(BadDigest):
        verify_many({**leaves, moved: hashlib.sha256(b"other").digest()}, size, proof, root)
    with pytest.raises(BadDigest):
        verify_many(leaves, size, [*proof, HASHES[0]], root)
    if proof:
        with pytest.raises(BadDigest):
            verify_many(leaves, size, proof[:-1], root)
        with pytest.raises(BadDigest):
            verify_many(leaves, size, [*proof[:-1], HASHES[-1][::-1]], root)


def test_one_leaf_takes_the_hashes_of_its_audit_path() -> None:
    for index in range(13):
        proof, _ = _proof(13, [index])
        path = merkle.inclusion_proof(index, 13, merkle.subtree_roots(HASHES[:13]))
        assert sorted(proof) == sorted(path)


def test_all_leaves_need_no_hash_at_all() -> None:
    assert _proof(13, list(range(13)))[0] == []


@pytest.mark.parametrize(
    ("indexes", "size"), [([], 3), ([3], 3), ([-1], 3), ([0], 0), ([0], 1 << 60)]
)
def test_leaves_that_no_tree_has_are_refused(indexes: list[int], size: int) -> None:
    with pytest.raises(BadDigest):
        verify_many(dict.fromkeys(indexes, HASHES[0]), size, [HASHES[0]] * 3, HASHES[0])
    with pytest.raises(ValueError, match="some leaves"):
        prove_many(indexes, min(size, 0), merkle.subtree_roots(HASHES))
