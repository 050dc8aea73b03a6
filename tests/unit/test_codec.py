"""Codecs: golden bytes, edges of the number range, and what a reducer refuses."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.codec import (
    BLOCK_ELEMENTS,
    MEAN_SOURCE,
    decode_chunk,
    encode_chunk,
    encoded_bytes,
    noise_key,
)
from protocol.errors import BadRecord, Diverged
from protocol.manifest import Codec

KEY = bytes(range(16))
RUN_ID = b"\x07" * 32
QUANTISED: tuple[Codec, ...] = ("int8", "int4", "int8-aes", "int4-aes")
CODECS: tuple[Codec, ...] = ("fp32", *QUANTISED)
LEVELS = {"int8": 127, "int4": 7, "int8-aes": 127, "int4-aes": 7}


def noise(elements: int, scale: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Values in (-scale, scale) made of integers: the same on every machine."""
    raw = np.random.Philox(key=seed).random_raw(elements)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1) * np.float32(scale)


def scales_of(codec: Codec, data: bytes, elements: int) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f2", -(-elements // BLOCK_ELEMENTS)).astype(np.float32)


GOLDEN = {
    "fp32": "83269a5e463d0d2654bf6fc3277a1b2465ae053094e80e197ecc47e1eb2d9a06",
    "int8": "279d620cd3181c4574dfc87534642d5349081b10b2476c6c4055301730673832",
    "int4": "17dce944e7d3f4c5cf53573d1435a84b9b8843a72e1823d7fc3305ae0150ff59",
    "int8-aes": "4a121bfaf758b03b8e0bcb196321ee7424a7f43fc161a2584b605e420b523be8",
    "int4-aes": "f0dfb920d349211c9205aee78bd1cd471d353abe0928b7438c1121d0ebd8f09e",
}


@pytest.mark.parametrize("codec", CODECS)
def test_golden_bytes(codec: Codec) -> None:
    data = encode_chunk(codec, noise(1001, 3e-4), KEY)
    assert hashlib.sha256(data).hexdigest() == GOLDEN[codec]


def test_noise_key_layout() -> None:
    expected = hashlib.sha256(
        b"barnraise-noise/1\x00"
        + RUN_ID
        + bytes.fromhex("0000000000000005")
        + bytes.fromhex("00000009")
        + b"mean"
    ).digest()[:16]
    assert noise_key(RUN_ID, 5, 9, MEAN_SOURCE) == expected


def test_noise_keys_differ_in_every_field() -> None:
    keys = {
        noise_key(RUN_ID, 5, 9, "mean"),
        noise_key(b"\x08" * 32, 5, 9, "mean"),
        noise_key(RUN_ID, 6, 9, "mean"),
        noise_key(RUN_ID, 5, 10, "mean"),
        noise_key(RUN_ID, 5, 9, "someone"),
    }
    assert len(keys) == 5
    with pytest.raises(ValueError, match="32 bytes"):
        noise_key(b"short", 5, 9, "mean")


@pytest.mark.parametrize("codec", QUANTISED)
def test_layout(codec: Codec) -> None:
    """One block with scale 1: codes are the values themselves."""
    levels = LEVELS[codec]
    values = np.array([levels, -levels, 3, -2, 0], np.float32)
    data = encode_chunk(codec, values, KEY)
    assert data[:2] == np.float16(1).tobytes()
    codes = [levels, -levels, 3, -2, 0]
    if codec.startswith("int8"):
        assert data[2:] == np.array(codes, np.int8).tobytes()
    else:
        assert data[2:] == bytes([0x97, 0xE3, 0x00])  # low nibble first


@pytest.mark.parametrize("codec", QUANTISED)
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zero_blocks(codec: Codec, value: float) -> None:
    data = encode_chunk(codec, np.full(300, value, np.float32), KEY)
    assert not any(data)
    assert not decode_chunk(codec, data, 300).any()


@pytest.mark.parametrize("codec", QUANTISED)
@pytest.mark.parametrize(
    "largest", [1e-45, 1e-38, 5.9e-8, 6e-8, 1e-6, 6.1e-5, 0.01, 1.0, 1000.5, 65504.0]
)
def test_scale_is_never_below_what_is_needed(codec: Codec, largest: float) -> None:
    values = noise(512, largest)
    values[77] = largest
    values[300] = -largest
    data = encode_chunk(codec, values, KEY)
    scales = scales_of(codec, data, 512).astype(np.float64)
    exact = np.array([np.abs(values[:256]).max(), np.abs(values[256:]).max()], np.float64)
    assert (scales * LEVELS[codec] >= exact).all()
    smaller = np.nextafter(scales.astype(np.float16), np.float16(0)).astype(np.float64)
    assert (smaller * LEVELS[codec] < exact).all()
    error = np.abs(decode_chunk(codec, data, 512).astype(np.float64) - values)
    assert (error <= np.repeat(scales, 256)).all()


@pytest.mark.parametrize("codec", QUANTISED)
def test_largest_noise_does_not_overflow_the_codes(codec: Codec) -> None:
    """u just below 1 on the largest value: in float32 the sum would round up to L + 1."""
    levels = LEVELS[codec]
    values = np.tile(np.array([levels, -levels], np.float32), 1 << 17)
    decoded = decode_chunk(codec, encode_chunk(codec, values, KEY), len(values))
    assert np.array_equal(decoded, values)


@pytest.mark.parametrize("codec", QUANTISED)
def test_too_large_a_value_is_refused(codec: Codec) -> None:
    most = np.float32(65504 * LEVELS[codec])
    values = np.array([most, 1], np.float32)
    assert decode_chunk(codec, encode_chunk(codec, values, KEY), 2)[0] == most
    with pytest.raises(Diverged):
        encode_chunk(codec, np.nextafter(values, np.float32(np.inf)), KEY)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(codec: Codec, value: float) -> None:
    values = noise(300)
    values[299] = value
    with pytest.raises(Diverged):
        encode_chunk(codec, values, KEY)


@pytest.mark.parametrize("codec", CODECS)
def test_wrong_arrays_are_our_bug(codec: Codec) -> None:
    for values in (np.zeros(0, np.float32), np.zeros((2, 2), np.float32), np.zeros(4)):
        with pytest.raises(ValueError, match="float32 vector"):
            encode_chunk(codec, values, KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("elements", [1, 2, 255, 256, 257, 512, 1001])
def test_wrong_sizes_are_refused(codec: Codec, elements: int) -> None:
    data = encode_chunk(codec, noise(elements), KEY)
    assert len(data) == encoded_bytes(codec, elements)
    for wrong in (data[:-1], data + b"\x00", b""):
        with pytest.raises(BadRecord):
            decode_chunk(codec, wrong, elements)


@pytest.mark.parametrize("codec", QUANTISED)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -0.0])
def test_bad_scales_are_refused(codec: Codec, scale: float) -> None:
    data = bytearray(encode_chunk(codec, noise(600), KEY))
    data[2:4] = np.float16(scale).tobytes()
    with pytest.raises(BadRecord, match="scale"):
        decode_chunk(codec, bytes(data), 600)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_plain_values_are_refused(value: float) -> None:
    data = noise(10).astype("<f4")
    data[9] = value
    with pytest.raises(BadRecord, match="not finite"):
        decode_chunk("fp32", data.tobytes(), 10)


def test_codes_out_of_range_are_refused() -> None:
    with pytest.raises(BadRecord, match="out of range"):
        decode_chunk("int8", np.float16(1).tobytes() + b"\x80", 1)
    with pytest.raises(BadRecord, match="out of range"):
        decode_chunk("int4", np.float16(1).tobytes() + b"\x08", 1)
    with pytest.raises(BadRecord, match="spare nibble"):
        decode_chunk("int4", np.float16(1).tobytes() + b"\x11", 1)


@pytest.mark.parametrize("codec", QUANTISED)
def test_rounding_is_unbiased(codec: Codec) -> None:
    """Mean over 400 keys, against the standard error of each element; worst of 1,024 below 5."""
    values, keys = noise(1024, 2e-3, seed=9), 400
    decoded = np.stack(
        [
            decode_chunk(codec, encode_chunk(codec, values, noise_key(RUN_ID, 0, k, "x")), 1024)
            for k in range(keys)
        ]
    ).astype(np.float64)
    scales = np.repeat(scales_of(codec, encode_chunk(codec, values, KEY), 1024), BLOCK_ELEMENTS)
    fraction = values / scales - np.floor(values / scales)
    deviation = scales * np.sqrt(np.maximum(fraction * (1 - fraction), 1e-3) / keys)
    errors = (decoded.mean(axis=0) - values) / deviation
    assert np.abs(errors).max() < 5
    assert abs(errors.mean()) < 5 / np.sqrt(1024)
