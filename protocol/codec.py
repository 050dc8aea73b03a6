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

BLOCK_ELEMENTS = 256
MEAN_SOURCE = "mean"
"""The noise's source when a reducer encodes the mean; no PeerID reads like it."""

_LEVELS: dict[Codec, int] = {"int8": 127, "int4": 7}
_NOISE_DOMAIN = b"barnraise-noise/1\x00"
_SCALE_BYTES = 2

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
    if not np.isfinite(values).all():
        raise Diverged("the update holds a value that is not finite")
    if codec == "fp32":
        return values.astype("<f4").tobytes()
    levels = _LEVELS[codec]
    blocks = _in_blocks(values)
    scales = _block_scales(blocks, levels)
    codes = _round_codes(blocks, scales, key).reshape(-1)[: len(values)]
    packed = codes if codec == "int8" else _pack_nibbles(codes)
    return scales.astype("<f2").tobytes() + packed.tobytes()


def decode_chunk(codec: Codec, data: bytes, elements: int) -> FloatVector:
    """Decode one chunk from an untrusted peer.

    Returns:
        Float32 vector of ``elements`` finite values.

    Raises:
        BadRecord: wrong size, a scale or value that is not finite, or a code out of range.
    """
    expected = encoded_bytes(codec, elements)
    if len(data) != expected:
        raise BadRecord(f"a {codec} chunk of {elements} elements has {expected} bytes")
    if codec == "fp32":
        values = np.frombuffer(data, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise BadRecord("a chunk holds a value that is not finite")
        return values
    blocks = _block_count(elements)
    scales = np.frombuffer(data, "<f2", blocks).astype(np.float32)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise BadRecord("a chunk holds a scale that is negative or not finite")
    stored = np.frombuffer(data, np.int8, offset=_SCALE_BYTES * blocks)
    codes = stored if codec == "int8" else _unpack_nibbles(stored, elements)
    if (codes < -_LEVELS[codec]).any():
        raise BadRecord("a chunk holds a code out of range")
    padded = _in_blocks(codes.astype(np.float32))
    return np.multiply(padded, scales[:, None]).reshape(-1)[:elements]


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
    largest: FloatVector = np.abs(blocks).max(axis=1)
    with np.errstate(over="ignore", under="ignore"):
        scales: NDArray[np.float16] = (largest / np.float32(levels)).astype(np.float16)
        # 11 significant bits times 7 fit in float32: the comparison is exact.
        low = scales.astype(np.float32) * np.float32(levels) < largest
        scales = np.where(low, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise Diverged(f"the update holds a value over {65_504 * levels:,}")
    return scales


def _round_codes(blocks: FloatVector, scales: NDArray[np.float16], key: bytes) -> NDArray[np.int8]:
    """``floor(value / scale + u)`` with u uniform in [0, 1): unbiased.

    The sum is taken in float64: in float32, 127 + (1 - 2^-24) would round to 128.
    """
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1  # an all-zero block
    quotients = np.divide(blocks, divisors[:, None])
    return np.floor(quotients + _uniforms(key, blocks.size).reshape(blocks.shape)).astype(np.int8)


def _uniforms(key: bytes, count: int) -> NDArray[np.float64]:
    """Philox4x64-10, key read as a little-endian integer: upper 24 bits of each raw word."""
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.multiply((raw >> np.uint64(40)).astype(np.float64), 2.0**-24)


def _pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    padded = np.pad(codes, (0, len(codes) % 2)).view(np.uint8) & np.uint8(0x0F)
    return padded[0::2] | (padded[1::2] << np.uint8(4))


def _unpack_nibbles(packed: NDArray[np.int8], elements: int) -> NDArray[np.int8]:
    # Arithmetic shifts extend the sign of each nibble.
    codes = np.stack([(packed << 4) >> 4, packed >> 4], axis=1).reshape(-1)
    if codes[elements:].any():
        raise BadRecord("the spare nibble of a chunk is not zero")
    return codes[:elements]
