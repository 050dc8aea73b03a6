"""Seeded stochastic rounding of blocks to small integers, and integers to nibbles.

Invariants:

* The same bits as ``floor(float64(value / scale) + u)``, u the upper 24 bits of a Philox word times
  2^-24, in integers: ``(floor(quotient * 2^24) + 2^24 * u) >> 24``. A float32 quotient times 2^24
  is exact; moving an integer in or out of a floor changes nothing; and ``127 * 2^24 + 2^24 - 1`` is
  the largest int32.
* Blocks pass in groups that stay in the processor's cache with all their intermediate values: new
  megabytes for each of them cost several times the arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float32]
Codes = NDArray[np.int8]

_GROUP_BLOCKS = 128
"""32,768 elements: 0.5 MiB with all that is computed of them."""

_NOISE_BITS = 24


def block_maxima(blocks: FloatVector) -> FloatVector:
    """Largest absolute value of each block; not finite where a value is not.

    Args:
        blocks: float32 [blocks, elements].
    """
    largest = np.empty(len(blocks), np.float32)
    magnitudes = np.empty((_GROUP_BLOCKS, blocks.shape[1]), np.float32)
    for group in _groups(len(blocks)):
        np.abs(blocks[group], out=magnitudes[: group.stop - group.start])
        magnitudes[: group.stop - group.start].max(axis=1, out=largest[group])
    return largest


def round_codes(blocks: FloatVector, scales: FloatVector, key: bytes) -> Codes:
    """``floor(value / scale + u)`` with u uniform in [0, 1): unbiased.

    Args:
        blocks: float32 [blocks, elements], ``|value / scale| <= 127``.
        scales: float32 [blocks]; 0 for a block of zeros.
        key: of the Philox4x64-10 generator, 16 bytes, a little-endian integer.

    Returns:
        int8 [blocks, elements].
    """
    divisors = np.where(scales == 0, np.float32(1), scales)[:, None]
    noise = np.random.Philox(key=int.from_bytes(key, "little"))
    codes = np.empty(blocks.shape, np.int8)
    quotients = np.empty((_GROUP_BLOCKS, blocks.shape[1]), np.float32)
    sums = np.empty(quotients.shape, np.int32)
    for group in _groups(len(blocks)):
        quotient, total = quotients[: group.stop - group.start], sums[: group.stop - group.start]
        np.divide(blocks[group], divisors[group], out=quotient)
        np.multiply(quotient, np.float32(1 << _NOISE_BITS), out=quotient)
        np.floor(quotient, out=quotient)
        np.copyto(total, quotient, casting="unsafe")
        total += _uniforms(noise, total.size).reshape(total.shape)
        np.right_shift(total, _NOISE_BITS, out=total)
        np.copyto(codes[group], total, casting="unsafe")
    return codes


def pack_nibbles(codes: Codes) -> NDArray[np.uint8]:
    """Codes 2i and 2i + 1 in the low and the high half of byte i; a spare half is 0."""
    if len(codes) % 2:
        codes = np.append(codes, np.int8(0))
    pairs = codes.view("<u2")
    return ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)


def unpack_nibbles(packed: Codes, count: int) -> Codes:
    """What :func:`pack_nibbles` made bytes of."""
    pairs = packed.view(np.uint8).astype("<u2")
    pairs = (pairs | (pairs << 4)) & 0x0F0F
    codes: Codes = pairs.view(np.int8)[:count]
    codes ^= 8  # extends the sign: 8..15 become -8..-1
    codes -= 8
    return codes


def holds_least_nibble(packed: Codes) -> bool:
    """Whether some half of a byte is -8."""
    halves = packed.view(np.uint8)
    return bool(((halves & 0x0F) == 0x08).any() or ((halves & 0xF0) == 0x80).any())


def _groups(blocks: int) -> list[slice]:
    starts = range(0, blocks, _GROUP_BLOCKS)
    return [slice(start, min(start + _GROUP_BLOCKS, blocks)) for start in starts]


def _uniforms(noise: np.random.Philox, count: int) -> NDArray[np.int32]:
    """The upper 24 bits of each raw word."""
    raw = noise.random_raw(count)
    np.right_shift(raw, np.uint64(64 - _NOISE_BITS), out=raw)
    return raw.astype(np.int32)
