"""Random projections: what 64 numbers say of a chunk (docs/verification.md, layer 4).

Each element, with a random sign, is added to one of 64 sums. The squared length of the sums is an
unbiased estimate of the chunk's squared L2 norm, and of a difference of chunks that of their
distance, with the variance of 64 dense sign projections at a 64th of their cost:
``2/64 * (|v|_2^4 - |v|_4^4)`` (Charikar, Chen and Farach-Colton, "Finding frequent items in data
streams", 2002).

Invariants:

* Bit-identical on every machine: integer randomness, float64 additions in the elements' order, one
  rounding to float32. So a projection that does not fit the bytes is a contradiction, not noise.
* Always finite: a hostile chunk's sums are held within float32.
* The seed is drawn after the bytes were committed to: nobody can steer what a projection shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.codec import decode_chunk
from protocol.errors import BadRecord
from protocol.limits import MAX_RECORD_BYTES
from protocol.manifest import Codec
from protocol.update import ChunkLayout

PROJECTIONS: Final = 64
"""Numbers for each chunk."""

PROJECTION_BYTES: Final = 4 * PROJECTIONS
"""Of one chunk, packed."""

MAX_SIGNED_CHUNKS: Final = MAX_RECORD_BYTES // 2 // PROJECTION_BYTES
"""Projections of so many chunks fit into one signed record, with room for everything else in it."""

FloatVector = NDArray[np.float32]
FloatMatrix = NDArray[np.float32]

_DOMAIN = b"barnraise-projection/1\x00"
_SIGN_BIT = np.uint64(1 << 6)
_SUM_BITS = np.uint64(PROJECTIONS - 1)


def project_chunk(values: FloatVector, seed: bytes, chunk: int) -> FloatVector:
    """Project one decoded chunk.

    Element i takes word i of ``numpy.random.Philox(key).random_raw``: bits 0 to 5 say which sum,
    bit 6 set says minus. The key is the first 16 bytes, little-endian, of SHA-256 over the domain
    ``barnraise-projection/1`` and a zero byte, the seed (32 bytes) and the chunk (u32, big-endian).

    Args:
        values: float32, one dimension, finite.
        seed: 32 bytes, from :func:`protocol.draw.projection_seed`.
        chunk: its number in the update.

    Returns:
        Float32 vector of 64; its squared length estimates that of ``values``.
    """
    if len(seed) != 32:
        raise ValueError("a projection's seed has 32 bytes")
    digest = hashlib.sha256(_DOMAIN + seed + chunk.to_bytes(4, "big")).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(len(values))
    wide = values.astype(np.float64)
    np.negative(wide, out=wide, where=(words & _SIGN_BIT) != 0)
    # bincount adds one weight after the other: no vector unit can reorder the additions.
    sums = np.bincount((words & _SUM_BITS).astype(np.int64), weights=wide, minlength=PROJECTIONS)
    largest = np.finfo(np.float32).max
    return np.clip(sums, -largest, largest).astype(np.float32)


def project_encoded(
    encoded: bytes, codec: Codec, layout: ChunkLayout, seed: bytes, chunk: int
) -> FloatVector:
    """Decode and project one chunk.

    Raises:
        BadRecord: the bytes are no such chunk.
    """
    return project_chunk(decode_chunk(codec, encoded, layout.chunk_size(chunk)), seed, chunk)


def project_update(
    chunks: Sequence[bytes], codec: Codec, layout: ChunkLayout, seed: bytes, first: int = 0
) -> bytes:
    """Decode, project and pack consecutive chunks.

    Args:
        chunks: encoded, from chunk ``first`` on.

    Returns:
        256 bytes for each chunk.

    Raises:
        BadRecord: a chunk is malformed.
    """
    return pack_projections(
        [
            project_encoded(encoded, codec, layout, seed, number)
            for number, encoded in enumerate(chunks, first)
        ]
    )


def pack_projections(rows: Sequence[FloatVector]) -> bytes:
    """Float32 little-endian, one row after the other."""
    return b"".join(row.astype("<f4").tobytes() for row in rows)


def unpack_projections(data: bytes, chunks: int) -> FloatMatrix:
    """Read projections from an untrusted peer.

    Returns:
        Finite float32 ``[chunks, 64]``.

    Raises:
        BadRecord: wrong size, or not finite.
    """
    if len(data) != chunks * PROJECTION_BYTES:
        raise BadRecord(
            f"the projections of {chunks} chunks have {chunks * PROJECTION_BYTES} bytes"
        )
    values = np.frombuffer(data, "<f4").astype(np.float32).reshape(chunks, PROJECTIONS)
    if not np.isfinite(values).all():
        raise BadRecord("a projection is not finite")
    return values


def projection_contradicts(
    projection: FloatVector,
    encoded: bytes,
    codec: Codec,
    layout: ChunkLayout,
    seed: bytes,
    chunk: int,
) -> bool:
    """Whether a signed projection cannot be that of a chunk's proven bytes.

    Raises:
        BadRecord: the bytes are no such chunk.
    """
    expected = project_encoded(encoded, codec, layout, seed, chunk)
    return not np.array_equal(projection, expected)
