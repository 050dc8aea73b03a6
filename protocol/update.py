"""The update vector: split in chunks, encoded, committed to by a Merkle root.

Invariants:

* A chunk is the unit of everything later: commitment, transfer, combination, audit.
* What is merged is what was committed: the root covers the encoded bytes themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import merkle
from protocol.codec import (
    MEAN_SOURCE,
    decode_chunk,
    encode_chunk,
    encoded_bytes,
    noise_key,
)
from protocol.manifest import Codec

__all__ = [
    "MEAN_SOURCE",
    "ChunkLayout",
    "EncodedUpdate",
    "decode_chunk",
    "decode_update",
    "encode_chunk",
    "encode_update",
    "noise_key",
]

FloatVector = NDArray[np.float32]


@dataclass(frozen=True)
class ChunkLayout:
    """How a vector of ``elements`` splits: all chunks full but the last."""

    elements: int
    chunk_elements: int

    def __post_init__(self) -> None:
        if self.elements < 1 or self.chunk_elements < 1:
            raise ValueError("a layout has at least one element, and so have its chunks")

    @property
    def count(self) -> int:
        return -(-self.elements // self.chunk_elements)

    def bounds(self, chunk: int) -> tuple[int, int]:
        """``(start, end)`` of a chunk in the flat vector."""
        if not 0 <= chunk < self.count:
            raise ValueError(f"chunk {chunk} is not one of {self.count}")
        start = chunk * self.chunk_elements
        return start, min(start + self.chunk_elements, self.elements)

    def chunk_size(self, chunk: int) -> int:
        """Elements of a chunk."""
        start, end = self.bounds(chunk)
        return end - start

    def encoded_bytes(self, codec: Codec, chunk: int) -> int:
        """Bytes of an encoded chunk."""
        return encoded_bytes(codec, self.chunk_size(chunk))


@dataclass(frozen=True)
class EncodedUpdate:
    """Encoded chunks with the hashes that commit to them."""

    chunks: tuple[bytes, ...]
    leaf_hashes: tuple[bytes, ...]  # RFC 6962 leaf hash of each chunk
    root: bytes

    @classmethod
    def of(cls, chunks: tuple[bytes, ...]) -> EncodedUpdate:
        """Hash encoded chunks."""
        leaf_hashes = tuple(merkle.leaf_hash(chunk) for chunk in chunks)
        return cls(chunks, leaf_hashes, merkle.root(leaf_hashes))

    def sha256(self, first: int, end: int) -> bytes:
        """Over the encoded chunks ``[first, end)``, one after the other; blocking."""
        digest = hashlib.sha256()
        for chunk in self.chunks[first:end]:
            digest.update(chunk)
        return digest.digest()


def encode_update(
    vector: FloatVector,
    layout: ChunkLayout,
    codec: Codec,
    *,
    run_id: bytes,
    round_: int,
    worker: str,
) -> EncodedUpdate:
    """Encode and commit to a whole update.

    Args:
        vector: flat float32 of ``layout.elements``.
        worker: PeerID of the encoding worker; seeds the rounding noise.

    Raises:
        Diverged: a value cannot be encoded.
    """
    if vector.shape != (layout.elements,):
        raise ValueError(f"a vector of shape {vector.shape} does not fit the layout")
    return EncodedUpdate.of(
        tuple(
            encode_chunk(
                codec,
                vector[slice(*layout.bounds(chunk))],
                noise_key(run_id, round_, chunk, worker),
            )
            for chunk in range(layout.count)
        )
    )


def decode_update(chunks: tuple[bytes, ...], layout: ChunkLayout, codec: Codec) -> FloatVector:
    """Decode all chunks of a vector.

    Raises:
        BadRecord: a chunk is malformed, or their number is wrong.
    """
    if len(chunks) != layout.count:
        raise ValueError(f"{len(chunks)} chunks where the layout has {layout.count}")
    vector = np.empty(layout.elements, np.float32)
    for index, chunk in enumerate(chunks):
        where = slice(*layout.bounds(index))
        vector[where] = decode_chunk(codec, chunk, layout.chunk_size(index))
    return vector
