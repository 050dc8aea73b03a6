"""The fast paths of the codecs and of combining, bit for bit against slow ones kept here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.codec import check_chunk, decode_chunk, encode_chunk, encoded_bytes
from protocol.combine import SLICE_ELEMENTS, combine_chunk, l2_norm
from protocol.errors import BadRecord
from protocol.manifest import Codec
from protocol.rounding import AES_CTR, PHILOX, Noise, round_codes

KEY = bytes(range(16))
QUANTISED: tuple[Codec, ...] = ("int8", "int4", "int8-aes", "int4-aes")
CODECS: tuple[Codec, ...] = ("fp32", *QUANTISED)
GROUP = 128 * 256  # elements that are rounded at once
SIZES = (1, 2, 255, 256, 257, 1001, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 259)

Values = NDArray[np.float32]


# ---- the slow ones: what docs/protocol.md says, one whole array after the other


def uniforms(codec: Codec, key: bytes, count: int) -> NDArray[np.float64]:
    if codec.endswith("-aes"):
        stream = (
            Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(2 * count))
        )
        return np.frombuffer(stream, "<u2").astype(np.float64) * 2.0**-16
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24


def slow_codes(quotients: Values, u: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.floor(quotients.astype(np.float64) + u).astype(np.int8)


def slow_encode(codec: Codec, values: Values, key: bytes) -> bytes:
    levels = 127 if codec.startswith("int8") else 7
    size = -(-len(values) // 256) * 256
    blocks = np.pad(values, (0, size - len(values))).reshape(-1, 256)
    largest = np.abs(blocks).max(axis=1)
    scales = (largest / np.float32(levels)).astype(np.float16)
    low = scales.astype(np.float64) * levels < largest
    with np.errstate(over="ignore"):  # of the scales that stay as they are
        scales = np.where(low, np.nextafter(scales, np.float16(np.inf)), scales)
    divisors = np.where(scales == 0, 1, scales).astype(np.float32)[:, None]
    quotients = np.divide(blocks, divisors)
    codes = slow_codes(quotients, uniforms(codec, key, size).reshape(blocks.shape)).reshape(-1)
    codes = codes[: len(values)]
    if codec.startswith("int4"):
        nibbles = np.append(codes, np.zeros(len(codes) % 2, np.int8)).view(np.uint8) & 15
        codes = (nibbles[::2] | nibbles[1::2] << 4).view(np.int8)
    return scales.astype("<f2").tobytes() + codes.tobytes()


def slow_combine(inputs: list[Values], weights: list[int]) -> Values:
    total = np.zeros(len(inputs[0]))
    for values, weight in zip(inputs, weights, strict=True):
        total = total + values.astype(np.float64) * np.float64(weight)
    return (total / np.float64(sum(weights))).astype(np.float32)


def slow_norm(values: Values) -> float:
    squares = np.zeros(1 << max(len(values) - 1, 0).bit_length())
    squares[: len(values)] = values.astype(np.float64) ** 2
    while len(squares) > 1:
        squares = squares[: len(squares) // 2] + squares[len(squares) // 2 :]
    return float(np.sqrt(squares[0]))


# ---- numbers of all kinds


def gaussian(elements: int) -> Values:
    return np.random.default_rng(elements).standard_normal(elements).astype(np.float32)


def wide(elements: int) -> Values:
    """Neighbours of every size, subnormal ones too."""
    powers = np.random.default_rng(elements).uniform(-45, 2, elements)
    return (gaussian(elements) * 10.0**powers).astype(np.float32)


def subnormal(elements: int) -> Values:
    whole = np.random.default_rng(elements).integers(-3, 4, elements)
    return (whole * 2.0**-149).astype(np.float32)


def at_the_largest_scale(elements: int) -> Values:
    return np.where(gaussian(elements) < 0, np.float32(-65504 * 7), np.float32(65504 * 7))


KINDS: tuple[Callable[[int], Values], ...] = (gaussian, wide, subnormal, at_the_largest_scale)


@pytest.mark.parametrize("codec", QUANTISED)
@pytest.mark.parametrize("kind", KINDS)
def test_encoding_has_the_slow_ones_bits(codec: Codec, kind: Callable[[int], Values]) -> None:
    for elements in SIZES:
        values = kind(elements)
        data = encode_chunk(codec, values, KEY)
        assert data == slow_encode(codec, values, KEY)
        assert len(data) == encoded_bytes(codec, elements)


@pytest.mark.parametrize("noise", [PHILOX, AES_CTR])
@pytest.mark.parametrize("drawn", ["least", "next to least", "most"])
def test_the_ends_of_the_noise(noise: Noise, drawn: str) -> None:
    """Quotients a hair off every whole number and off every step of the noise, where a rounding of
    the sum would show."""
    most = (1 << noise.bits) - 1
    integer = {"least": 0, "next to least": 1, "most": most}[drawn]
    near = [np.float32(k) for k in (-127, -1, 0, 1, 126, 127)]
    near += [np.float32(sign * k * 2.0**-noise.bits) for k in (1, 2, 3) for sign in (-1, 1)]
    both = [np.nextafter(x, to) for x in near for to in (np.float32(-np.inf), np.float32(np.inf))]
    tiny = [np.float32(sign * 2.0**-power) for power in (60, 126, 149) for sign in (-1, 1)]
    quotients = np.array([x for x in (*near, *both, *tiny) if abs(x) <= 127], np.float32)

    def same(_: bytes) -> Callable[[int], NDArray[Any]]:
        return lambda count: np.full(count, integer, np.int32)

    codes = round_codes(quotients[None], np.ones(1, np.float32), Noise(noise.bits, same), KEY)
    u = np.full(len(quotients), integer * 2.0**-noise.bits)
    assert codes[0].tolist() == slow_codes(quotients, u).tolist()


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_in_place_and_checking_agree(codec: Codec) -> None:
    for elements in SIZES:
        data = encode_chunk(codec, gaussian(elements), KEY)
        values = decode_chunk(codec, data, elements)
        into = np.full(elements, np.nan, np.float32)
        assert decode_chunk(codec, data, elements, out=into) is into
        assert into.tobytes() == values.tobytes()
        check_chunk(codec, data, elements)


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_refused_is_refused_by_both_and_leaves_no_trace(codec: Codec) -> None:
    """Every byte that makes a difference at its place, at an odd size."""
    elements, refused = 301, 0
    data = encode_chunk(codec, gaussian(elements), KEY)
    places = [0, 1, 2, 3, 4, len(data) // 2, len(data) - 1]
    for place in places:
        for byte in range(256):
            changed = data[:place] + bytes([byte]) + data[place + 1 :]
            into = np.zeros(elements, np.float32)
            try:
                decode_chunk(codec, changed, elements, out=into)
            except BadRecord as error:
                refused += 1
                assert not into.any()
                with pytest.raises(BadRecord, match=str(error)):
                    check_chunk(codec, changed, elements)
            else:
                check_chunk(codec, changed, elements)
                assert np.isfinite(into).all()
    assert refused or codec == "fp32"


@pytest.mark.parametrize("codec", [c for c in QUANTISED if c.startswith("int4")])
def test_every_byte_of_nibbles(codec: Codec) -> None:
    for byte in range(256):
        low, high = (n - 16 if n > 7 else n for n in (byte & 15, byte >> 4))
        data = np.float16(1).tobytes() + bytes([byte])
        if -8 in (low, high):
            with pytest.raises(BadRecord, match="out of range"):
                check_chunk(codec, data, 2)
        else:
            assert decode_chunk(codec, data, 2).tolist() == [low, high]


@pytest.mark.parametrize("elements", [1, 3, SLICE_ELEMENTS, SLICE_ELEMENTS + 1, 70_001])
def test_combining_has_the_slow_ones_bits(elements: int) -> None:
    inputs = [wide(elements), -gaussian(elements), np.full(elements, -0.0, np.float32)]
    inputs.append(np.where(inputs[1] < 0, np.float32(0), inputs[0]))
    weights = [3, 10**6, 1, 77]
    assert combine_chunk("mean", inputs, weights).tobytes() == (
        slow_combine(inputs, weights).tobytes()
    )
    for values in inputs:
        assert l2_norm(values) == slow_norm(values)
