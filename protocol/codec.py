"""Codecs of the update vector: ``fp32``, ``int8``, ``int4`` with seeded stochastic rounding.

Invariants:

* Unbiased: the expectation of a decoded value over keys is the value, to 2^-24 of a quantum.
  So there is no error feedback and no hidden state.
* Nothing clamps: the scale is rounded *up* to fp16, so ``|value / scale| <= L`` always.
* Bit-identical on every machine: only IEEE 754 elementary operations (add, divide, floor,
  conversions), one numpy call each, which neither fuse nor reorder; and integer noise.

Encoded chunk of n elements, b = ceil(n / 256) blocks, all little-endian:

    fp32   n x float32
    int8   b x float16 scale, n x int8 code              L = 127
    int4   b x float16 scale, ceil(n / 2) bytes          L = 7
           element 2i in the low nibble of byte i, 2i + 1 in the high one, two's complement;
           the spare nibble of an odd n is 0

Decoded value = code * scale. A code of -L - 1 does not occur.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BadRecord, Diverged
from protocol.manifest import Codec
from protocol.rounding import (
    block_maxima,
    holds_least_nibble,
    pack_nibbles,
    round_codes,
    unpack_nibbles,
)

BLOCK_ELEMENTS = 256
MEAN_SOURCE = "mean"
"""The noise's source when a reducer encodes the mean; no PeerID reads like it."""

_LEVELS: dict[Codec, int] = {"int8": 127, "int4": 7}
_NOISE_DOMAIN = b"barnraise-noise/1\x00"
_SCALE_BYTES = 2
_NOT_FINITE = "the update holds a value that is not finite"

FloatVector = NDArray[np.float32]


def noise_key(run_id: bytes, round_: int, chunk: int, source: str) -> bytes:
    """Key of the rounding noise of one chunk (protocol section 6).

    First 16 bytes of SHA-256 over: the domain ``barnraise-noise/1`` and a zero byte, the run id
    (32 bytes), round (u64) and chunk (u32), both big-endian, then the source in UTF-8. Only the
    last field varies in length, so no two inputs share bytes.

    Args:
        run_id: 32 bytes.
        source: the encoding worker's PeerID, or :data:`MEAN_SOURCE`.
    """
    if len(run_id) != 32:
        raise ValueError("a run id has 32 bytes")
    fields = run_id + round_.to_bytes(8, "big") + chunk.to_bytes(4, "big") + source.encode()
    return hashlib.sha256(_NOISE_DOMAIN + fields).digest()[:16]


def encoded_bytes(codec: Codec, elements: int) -> int:
    """Size of an encoded chunk."""
    if codec == "fp32":
        return 4 * elements
    codes = elements if codec == "int8" else -(-elements // 2)
    return _SCALE_BYTES * _block_count(elements) + codes


def encode_chunk(codec: Codec, values: FloatVector, key: bytes) -> bytes:
    """Encode one chunk.

    Args:
        values: float32, one dimension, at least one element.
        key: 16 bytes from :func:`noise_key`; unused by ``fp32``.

    Raises:
        Diverged: a value is not finite, or too large for an fp16 scale (over 65,504 * L).
    """
    if values.ndim != 1 or values.dtype != np.float32 or not len(values):
        raise ValueError("a chunk is a non-empty float32 vector")
    if codec == "fp32":
        if not np.isfinite(values).all():
            raise Diverged(_NOT_FINITE)
        return values.astype("<f4", copy=False).tobytes()
    levels = _LEVELS[codec]
    blocks = _in_blocks(values)
    scales = _block_scales(blocks, levels)
    codes = round_codes(blocks, scales.astype(np.float32), key).reshape(-1)[: len(values)]
    packed = codes if codec == "int8" else pack_nibbles(codes)
    return scales.astype("<f2").tobytes() + packed.tobytes()


def check_chunk(codec: Codec, data: bytes, elements: int) -> None:
    """Insist that a chunk from an untrusted peer decodes, without decoding it.

    Raises:
        BadRecord: exactly where :func:`decode_chunk` raises it.
    """
    if codec == "fp32":
        _plain_values(data, elements)
    else:
        _scales_and_codes(codec, data, elements)


def decode_chunk(
    codec: Codec, data: bytes, elements: int, out: FloatVector | None = None
) -> FloatVector:
    """Decode one chunk from an untrusted peer.

    Args:
        out: where to put the values, if not into a new vector; untouched if the chunk is refused.

    Returns:
        Float32 vector of ``elements`` finite values.

    Raises:
        BadRecord: wrong size, a scale or value that is not finite, or a code out of range.
    """
    if out is None:
        out = np.empty(elements, np.float32)
    if codec == "fp32":
        out[...] = _plain_values(data, elements)
        return out
    scales, stored = _scales_and_codes(codec, data, elements)
    codes = stored if codec == "int8" else unpack_nibbles(stored, elements)
    whole = elements // BLOCK_ELEMENTS
    full = whole * BLOCK_ELEMENTS
    np.multiply(
        codes[:full].reshape(whole, BLOCK_ELEMENTS),
        scales[:whole, None],
        out=out[:full].reshape(whole, BLOCK_ELEMENTS),
    )
    if full < elements:  # the last block is short
        np.multiply(codes[full:], scales[-1], out=out[full:])
    return out


def _plain_values(data: bytes, elements: int) -> NDArray[np.float32]:
    _check_size("fp32", data, elements)
    values: FloatVector = np.frombuffer(data, "<f4")
    if not np.isfinite(values).all():
        raise BadRecord("a chunk holds a value that is not finite")
    return values


def _scales_and_codes(
    codec: Codec, data: bytes, elements: int
) -> tuple[FloatVector, NDArray[np.int8]]:
    """The checked parts of a quantised chunk: scales, and codes as they are stored."""
    _check_size(codec, data, elements)
    blocks = _block_count(elements)
    scales: FloatVector = np.frombuffer(data, "<f2", blocks).astype(np.float32)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise BadRecord("a chunk holds a scale that is negative or not finite")
    stored = np.frombuffer(data, np.int8, offset=_SCALE_BYTES * blocks)
    if codec == "int4" and elements % 2 and stored[-1] >> 4:
        raise BadRecord("the spare nibble of a chunk is not zero")
    if stored.min() < -_LEVELS["int8"] if codec == "int8" else holds_least_nibble(stored):
        raise BadRecord("a chunk holds a code out of range")
    return scales, stored


def _check_size(codec: Codec, data: bytes, elements: int) -> None:
    expected = encoded_bytes(codec, elements)
    if len(data) != expected:
        raise BadRecord(f"a {codec} chunk of {elements} elements has {expected} bytes")


def _block_count(elements: int) -> int:
    return -(-elements // BLOCK_ELEMENTS)


def _in_blocks(values: FloatVector) -> FloatVector:
    """View as [blocks, 256], the last block padded with zeros."""
    blocks = _block_count(len(values))
    if len(values) != blocks * BLOCK_ELEMENTS:
        values = np.pad(values, (0, blocks * BLOCK_ELEMENTS - len(values)))
    return values.reshape(blocks, BLOCK_ELEMENTS)


def _block_scales(blocks: FloatVector, levels: int) -> NDArray[np.float16]:
    """The least fp16 that is not below absmax / levels, for each block."""
    largest = block_maxima(blocks)
    if not np.isfinite(largest).all():
        raise Diverged(_NOT_FINITE)
    with np.errstate(over="ignore", under="ignore"):
        scales: NDArray[np.float16] = (largest / np.float32(levels)).astype(np.float16)
        # 11 significant bits times 7 fit in float32: the comparison is exact.
        low = scales.astype(np.float32) * np.float32(levels) < largest
        scales = np.where(low, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise Diverged(f"the update holds a value over {65_504 * levels:,}")
    return scales
