"""For all vectors: the error is below one quantum, and decoding accepts exactly what it should."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from protocol.codec import BLOCK_ELEMENTS, decode_chunk, encode_chunk, encoded_bytes
from protocol.errors import BadRecord
from protocol.manifest import Codec

LEVELS = {"int8": 127, "int4": 7, "int8-aes": 127, "int4-aes": 7}
VECTORS = arrays(
    np.float32,
    st.integers(1, 700),
    elements=st.floats(-400_000, 400_000, width=32),
)
KEYS = st.binary(min_size=16, max_size=16)
QUANTISED: st.SearchStrategy[Codec] = st.sampled_from([*LEVELS])
CODECS: st.SearchStrategy[Codec] = st.sampled_from(["fp32", *LEVELS])


@given(VECTORS, KEYS)
def test_fp32_is_exact(values: NDArray[np.float32], key: bytes) -> None:
    decoded = decode_chunk("fp32", encode_chunk("fp32", values, key), len(values))
    assert decoded.tobytes() == values.tobytes()


@given(QUANTISED, VECTORS, KEYS)
def test_error_is_at_most_one_quantum(
    codec: Codec, values: NDArray[np.float32], key: bytes
) -> None:
    data = encode_chunk(codec, values, key)
    assert len(data) == encoded_bytes(codec, len(values))
    decoded = decode_chunk(codec, data, len(values)).astype(np.float64)
    blocks = -(-len(values) // BLOCK_ELEMENTS)
    scales = np.frombuffer(data, "<f2", blocks).astype(np.float64)
    quantum = np.repeat(scales, BLOCK_ELEMENTS)[: len(values)]
    assert (np.abs(decoded - values) <= quantum).all()
    assert (np.abs(decoded) <= quantum * LEVELS[codec]).all()
    assert data == encode_chunk(codec, values, key)


@given(QUANTISED, st.integers(1, 256), st.floats(2**-24, 65504, width=16), KEYS, st.data())
def test_values_on_the_grid_are_exact(
    codec: Codec, elements: int, scale: float, key: bytes, data: st.DataObject
) -> None:
    """So a mean of one member loses nothing more, whatever the noise."""
    levels = LEVELS[codec]
    codes = data.draw(arrays(np.int8, elements, elements=st.integers(-levels, levels)))
    codes[0] = levels
    values = codes.astype(np.float32) * np.float32(scale)
    decoded = decode_chunk(codec, encode_chunk(codec, values, key), elements)
    assert np.array_equal(decoded, values)


@given(CODECS, st.integers(1, 600), st.data())
def test_any_bytes_decode_to_finite_values_or_are_refused(
    codec: Codec, elements: int, data: st.DataObject
) -> None:
    size = encoded_bytes(codec, elements)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    try:
        values = decode_chunk(codec, raw, elements)
    except BadRecord:
        return
    assert values.shape == (elements,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
