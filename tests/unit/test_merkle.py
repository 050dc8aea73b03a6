"""The Merkle tree against Certificate Transparency's known vectors."""

from __future__ import annotations

import hashlib

import pytest

from protocol import merkle
from protocol.errors import BadDigest

# The test data of google/certificate-transparency's merkle_tree_test.cc (RFC 6962 trees).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
CONSISTENCY = {
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
HASHES = [merkle.leaf_hash(leaf) for leaf in LEAVES]
SUBTREE = merkle.subtree_roots(HASHES)


@pytest.mark.parametrize("size", range(9))
def test_roots(size: int) -> None:
    assert merkle.root(HASHES[:size]) == ROOTS[size]


@pytest.mark.parametrize("key", INCLUSION)
def test_inclusion_proofs(key: tuple[int, int]) -> None:
    index, size = key
    proof = merkle.inclusion_proof(index, size, SUBTREE)
    assert [step.hex() for step in proof] == INCLUSION[key]
    merkle.verify_inclusion(HASHES[index], index, size, proof, ROOTS[size])


@pytest.mark.parametrize("key", CONSISTENCY)
def test_consistency_proofs(key: tuple[int, int]) -> None:
    old, new = key
    proof = merkle.consistency_proof(old, new, SUBTREE)
    assert [step.hex() for step in proof] == CONSISTENCY[key]
    merkle.verify_consistency(old, ROOTS[old], new, ROOTS[new], proof)


def test_leaves_and_nodes_have_different_domains() -> None:
    left, right = HASHES[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
    assert merkle.leaf_hash(memoryview(b"x")) == hashlib.sha256(b"\x00x").digest()


def test_proofs_of_nothing_are_our_bug() -> None:
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="not in a tree"):
            merkle.inclusion_proof(index, size, SUBTREE)
    with pytest.raises(ValueError, match="cannot be a prefix"):
        merkle.consistency_proof(4, 3, SUBTREE)


def test_malformed_inclusion_proofs() -> None:
    proof = merkle.inclusion_proof(2, 8, SUBTREE)
    for index, size, steps in (
        (8, 8, proof),
        (-1, 8, proof),
        (2, 8, proof[:-1]),
        (2, 8, [*proof, ROOTS[1]]),
        (2, 8, [proof[0][:-1], *proof[1:]]),
        (3, 8, proof),
        (2, 4, proof),
    ):
        with pytest.raises(BadDigest):
            merkle.verify_inclusion(HASHES[2], index, size, steps, ROOTS[8])


def test_malformed_consistency_proofs() -> None:
    proof = merkle.consistency_proof(6, 8, SUBTREE)
    for steps in (proof[:-1], [*proof, ROOTS[1]], [b"short", *proof[1:]], []):
        with pytest.raises(BadDigest):
            merkle.verify_consistency(6, ROOTS[6], 8, ROOTS[8], steps)
    with pytest.raises(BadDigest, match="shrank"):
        merkle.verify_consistency(8, ROOTS[8], 6, ROOTS[6], proof)
    with pytest.raises(BadDigest, match="same size"):
        merkle.verify_consistency(8, ROOTS[8], 8, ROOTS[7], [])
    with pytest.raises(BadDigest, match="empty"):
        merkle.verify_consistency(0, ROOTS[1], 8, ROOTS[8], [])
