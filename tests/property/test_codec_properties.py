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

LEVELS = {"int8": 127, "int4": 7}
VECTORS = arrays(
    np.float32,
    st.integers(1, 700),
    elements=st.floats(-400_000, 400_000, width=32),
)
KEYS = st.binary(min_size=16, max_size=16)
QUANTISED: st.SearchStrategy[Codec] = st.sampled_from(["int8", "int4"])
CODECS: st.SearchStrategy[Codec] = st.sampled_from(["fp32", "int8", "int4"])


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


@given(QUANTISED, VECTORS, KEYS, KEYS)
def test_decoded_values_encode_to_themselves(
    codec: Codec, values: NDArray[np.float32], key: bytes, other_key: bytes
) -> None:
    """A mean of one member loses nothing more, whatever the noise, where the scale is kept."""
    decoded = decode_chunk(codec, encode_chunk(codec, values, key), len(values))
    again = decode_chunk(codec, encode_chunk(codec, decoded, other_key), len(values))
    for start in range(0, len(values), BLOCK_ELEMENTS):
        block, block_again = (v[start : start + BLOCK_ELEMENTS] for v in (decoded, again))
        levels = np.unique(np.abs(block))
        full = levels[-1] > 0 and (levels[-1] / LEVELS[codec]) == np.float16(
            levels[-1] / LEVELS[codec]
        )
        if full and (np.mod(block, levels[-1] / LEVELS[codec]) == 0).all():
            assert np.array_equal(block, block_again)


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
