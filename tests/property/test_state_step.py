"""One pass over the chunks gives the bits that whole vectors give, and the library's own files."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol import merkle, threads
from protocol.errors import BadRecord
from protocol.manifest import Codec, OuterSpec
from protocol.model import element_count, slices
from protocol.outer import outer_step
from protocol.state import read_vector, vector_root, write_vector
from protocol.state_step import decoding, slicing, step_state
from protocol.update import ChunkLayout, decode_update, encode_update

CHUNK = 256
SPEC = OuterSpec(learning_rate=0.7, momentum=0.9)


def _vectors(elements: int, seed: int) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(elements, dtype=np.float32) for _ in range(3)]


def _slow_root(vector: NDArray[np.float32]) -> bytes:
    data = vector.astype("<f4").tobytes()
    leaves = [data[start : start + 4 * CHUNK] for start in range(0, len(data), 4 * CHUNK)]
    return merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])


@given(
    elements=st.integers(1, 5 * CHUNK),
    seed=st.integers(0, 1 << 30),
    codec=st.sampled_from(["fp32", "int8", "int4"]),
    thread_count=st.integers(1, 4),
)
@settings(max_examples=40)
def test_chunks_lead_where_whole_vectors_lead(
    elements: int, seed: int, codec: Codec, thread_count: int
) -> None:
    weights, momentum, update = _vectors(elements, seed)
    layout = ChunkLayout(elements, CHUNK)
    chunks = encode_update(update, layout, codec, run_id=bytes(32), round_=1, worker="w").chunks
    mean = decode_update(chunks, layout, codec)
    slow = outer_step(weights, momentum, mean, SPEC)
    kept = weights.copy(), momentum.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "thread_count", lambda: thread_count)
        for given_as in (decoding(chunks, layout, codec), slicing(mean, layout)):
            fast = step_state(weights, momentum, given_as, layout, SPEC)
            assert fast is not None
            assert fast.weights.tobytes() == slow[0].tobytes()
            assert fast.momentum.tobytes() == slow[1].tobytes()
            assert fast.weights_root == _slow_root(slow[0]) == vector_root(slow[0], CHUNK)
            assert fast.momentum_root == _slow_root(slow[1])
    assert (weights.tobytes(), momentum.tobytes()) == tuple(one.tobytes() for one in kept)


@given(elements=st.integers(1, 4 * CHUNK), where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20)
def test_a_step_out_of_the_finite_numbers_leads_nowhere(elements: int, where: float) -> None:
    weights, momentum, mean = _vectors(elements, 1)
    momentum[int(where * elements)] = mean[int(where * elements)] = np.float32(3e38)
    layout = ChunkLayout(elements, CHUNK)
    assert step_state(weights, momentum, slicing(mean, layout), layout, SPEC) is None


def test_means_that_do_not_fit_are_refused() -> None:
    weights, momentum, mean = _vectors(2 * CHUNK, 1)
    layout = ChunkLayout(2 * CHUNK, CHUNK)
    chunks = encode_update(mean, layout, "int8", run_id=bytes(32), round_=1, worker="w").chunks
    for wrong in (chunks[:1], (*chunks, chunks[0])):
        with pytest.raises(ValueError, match="chunks where the layout has 2"):
            decoding(wrong, layout, "int8")
    with pytest.raises(ValueError, match="does not fit"):
        slicing(mean[1:], layout)
    torn = decoding((chunks[0], chunks[1][:-1]), layout, "int8")
    with pytest.raises(BadRecord):
        step_state(weights, momentum, torn, layout, SPEC)


def test_vectors_of_another_size_are_our_bug() -> None:
    """A longer one would leave what lies beyond the layout to chance."""
    weights, momentum, mean = _vectors(2 * CHUNK, 1)
    layout = ChunkLayout(2 * CHUNK, CHUNK)
    longer = np.append(weights, np.float32(1))
    for wrong in ((longer, longer), (longer, momentum), (weights, longer), (weights[1:], momentum)):
        with pytest.raises(ValueError, match="do not fit the layout"):
            step_state(*wrong, slicing(mean, layout), layout, SPEC)


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@given(
    parameters=st.dictionaries(
        _NAMES.filter(lambda name: name != "__metadata__"), _SHAPES, min_size=1, max_size=8
    )
)
@settings(max_examples=60)
def test_files_are_those_of_the_library(parameters: dict[str, tuple[int, ...]]) -> None:
    spec = tuple(parameters.items())
    flat = np.arange(element_count(spec), dtype=np.float32) / 3
    tensors = {name: flat[where].reshape(shape) for name, shape, where in slices(spec)}
    expected = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector"
        written = write_vector(path, flat, spec)
        assert path.read_bytes() == expected
        assert read_vector(path, spec).tobytes() == flat.tobytes()
        # In whatever order the parameters lie there.
        path.write_bytes(expected)
        turned = tuple(reversed(spec))
        parts = [flat[where] for _, _, where in slices(spec)]
        assert np.array_equal(read_vector(path, turned), np.concatenate(parts[::-1]))
    assert written.sha256 == hashlib.sha256(expected).digest()
    assert written.size_bytes == len(expected)


def test_files_of_many_pieces(tmp_path: Path) -> None:
    flat = np.random.default_rng(1).standard_normal(9 << 20, dtype=np.float32)
    spec = (("b", (flat.size - 7,)), ("a", (7,)))
    written = write_vector(tmp_path / "vector", flat, spec)
    data = (tmp_path / "vector").read_bytes()
    expected = {"b": flat[:-7], "a": flat[-7:]}
    assert data == safetensors.numpy.save(expected, metadata={"format": "pt"})
    assert written.sha256 == hashlib.sha256(data).digest()
    assert read_vector(tmp_path / "vector", spec).tobytes() == flat.tobytes()


@given(count=st.integers(0, 9), thread_count=st.integers(1, 4))
@settings(max_examples=20)
def test_pieces_are_in_order_and_their_failures_are_told(count: int, thread_count: int) -> None:
    def fail(number: int) -> int:
        if number == count - 1:
            raise BadRecord("a bad piece")
        return number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "thread_count", lambda: thread_count)
        assert threads.for_each(lambda number: number * number, count) == [
            number * number for number in range(count)
        ]
        if count:
            with pytest.raises(BadRecord, match="a bad piece"):
                threads.for_each(fail, count)
