"""Chunk layout and commitment of an update."""

from __future__ import annotations

import numpy as np
import pytest

from protocol import merkle
from protocol.errors import BadRecord, Diverged
from protocol.manifest import Codec
from protocol.update import (
    ChunkLayout,
    EncodedUpdate,
    decode_chunk,
    decode_update,
    encode_chunk,
    encode_update,
    noise_key,
)

RUN_ID = b"\x07" * 32
LAYOUT = ChunkLayout(elements=1100, chunk_elements=512)
VECTOR = np.linspace(-1, 1, 1100, dtype=np.float32)


def encoded(codec: Codec = "int8", worker: str = "w", round_: int = 3) -> EncodedUpdate:
    return encode_update(VECTOR, LAYOUT, codec, run_id=RUN_ID, round_=round_, worker=worker)


def test_layout() -> None:
    assert LAYOUT.count == 3
    assert [LAYOUT.bounds(chunk) for chunk in range(3)] == [(0, 512), (512, 1024), (1024, 1100)]
    assert LAYOUT.chunk_size(2) == 76
    assert LAYOUT.encoded_bytes("fp32", 0) == 2048
    assert LAYOUT.encoded_bytes("int8", 0) == 512 + 2 * 2
    assert LAYOUT.encoded_bytes("int4", 2) == 38 + 2
    assert ChunkLayout(1024, 512).count == 2
    for chunk in (-1, 3):
        with pytest.raises(ValueError, match="not one of 3"):
            LAYOUT.bounds(chunk)
    with pytest.raises(ValueError, match="at least one"):
        ChunkLayout(0, 512)


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4"])
def test_chunks_are_encoded_each_with_its_own_noise(codec: Codec) -> None:
    update = encoded(codec)
    for chunk, data in enumerate(update.chunks):
        start, end = LAYOUT.bounds(chunk)
        key = noise_key(RUN_ID, 3, chunk, "w")
        assert data == encode_chunk(codec, VECTOR[start:end], key)
        assert len(data) == LAYOUT.encoded_bytes(codec, chunk)
    decoded = decode_update(update.chunks, LAYOUT, codec)
    assert np.abs(decoded - VECTOR).max() <= {"fp32": 0, "int8": 0.01, "int4": 0.15}[codec]


def test_commitment_covers_every_chunk() -> None:
    update = encoded()
    assert update.leaf_hashes == tuple(merkle.leaf_hash(chunk) for chunk in update.chunks)
    subtree = merkle.subtree_roots(update.leaf_hashes)
    for chunk, leaf in enumerate(update.leaf_hashes):
        proof = merkle.inclusion_proof(chunk, 3, subtree)
        merkle.verify_inclusion(leaf, chunk, 3, proof, update.root)
    swapped = EncodedUpdate.of((update.chunks[1], update.chunks[0], update.chunks[2]))
    assert swapped.root != update.root


def test_commitment_is_reproducible_and_bound_to_worker_and_round() -> None:
    assert encoded() == encoded()
    assert len({encoded().root, encoded(worker="v").root, encoded(round_=4).root}) == 3


def test_bad_vectors() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_update(VECTOR[1:], LAYOUT, "int8", run_id=RUN_ID, round_=0, worker="w")
    bad = VECTOR.copy()
    bad[1050] = np.nan
    with pytest.raises(Diverged):
        encode_update(bad, LAYOUT, "int8", run_id=RUN_ID, round_=0, worker="w")


def test_bad_chunks() -> None:
    chunks = encoded().chunks
    with pytest.raises(BadRecord):
        decode_update((chunks[0], chunks[2], chunks[1]), LAYOUT, "int8")
    with pytest.raises(ValueError, match="2 chunks"):
        decode_update(chunks[:2], LAYOUT, "int8")
    assert len(decode_chunk("int8", chunks[2], 76)) == 76
