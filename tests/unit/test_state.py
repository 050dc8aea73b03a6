"""The state digest, and files that are deterministic, bounded and atomic."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray

from protocol import merkle, state
from protocol.errors import BadRecord
from protocol.model import ParameterSpec, build_model, flatten, load_flat, parameter_spec
from protocol.state import StateDescriptor, describe, read_vector, vector_root, write_vector

SPEC: ParameterSpec = (("b.weight", (3, 4)), ("a.weight", (5,)), ("a.bias", (1,)))


@pytest.fixture
def flat() -> NDArray[np.float32]:
    return np.arange(18, dtype=np.float32) / 7


def test_vector_root_is_over_little_endian_chunks() -> None:
    vector = np.arange(10, dtype=np.float32)
    leaves = [struct.pack("<4f", 0, 1, 2, 3), struct.pack("<4f", 4, 5, 6, 7)]
    leaves.append(struct.pack("<2f", 8, 9))
    expected = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    assert vector_root(vector, 4) == expected
    assert vector_root(vector.astype(">f4"), 4) == expected


def test_digest_layout(flat: NDArray[np.float32]) -> None:
    momentum = -flat
    descriptor = describe(flat, momentum, round_=3, merged_tokens=1 << 40, chunk_elements=8)
    leaves = [
        vector_root(flat, 8),
        vector_root(momentum, 8),
        bytes.fromhex("0000000000000003"),
        bytes.fromhex("0000010000000000"),
    ]
    assert descriptor.digest == merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    assert descriptor == StateDescriptor(3, 1 << 40, leaves[0], leaves[1])


def test_every_part_changes_the_digest(flat: NDArray[np.float32]) -> None:
    def digest(weights: NDArray[np.float32], **overrides: int) -> bytes:
        numbers = {"round_": 1, "merged_tokens": 5, "chunk_elements": 8, **overrides}
        return describe(weights, flat, **numbers).digest

    changed = flat.copy()
    changed[17] = np.nextafter(changed[17], np.float32(9))
    digests = {
        digest(flat),
        digest(changed),
        digest(flat, round_=2),
        digest(flat, merged_tokens=6),
        describe(flat, changed, round_=1, merged_tokens=5, chunk_elements=8).digest,
    }
    assert len(digests) == 5


def test_round_trip(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    path = tmp_path / "weights.safetensors"
    written = write_vector(path, flat, SPEC)
    assert written.sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert written.size_bytes == path.stat().st_size
    assert read_vector(path, SPEC).tobytes() == flat.tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_same_vector_same_file(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    digests = {write_vector(tmp_path / f"{i}", flat, SPEC).sha256.hex() for i in range(5)}
    assert digests == {"af2e9f5afc601c46f26606fb4cc0ba799030efc71095926a3fdeec8163b444b1"}


def test_other_programs_read_it(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    }
    model, spec = build_model(config), parameter_spec(config)
    flat = flatten(model)
    write_vector(tmp_path / "model.safetensors", flat, spec)
    load_flat(model, np.zeros_like(flat))
    safetensors.torch.load_model(model, tmp_path / "model.safetensors")
    assert np.array_equal(flatten(model), flat)


def test_overwriting_is_atomic(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    path = tmp_path / "weights.safetensors"
    write_vector(path, flat, SPEC)
    with path.open("rb") as open_before:
        write_vector(path, flat + 1, SPEC)
        old = open_before.read()
    assert old != path.read_bytes()
    assert np.array_equal(read_vector(path, SPEC), flat + 1)


def test_failure_leaves_nothing_behind(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_vector(tmp_path / "taken", flat, SPEC)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_a_flush_that_fails_on_the_way_is_not_forgotten(
    tmp_path: Path, flat: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[int] = []

    def fail_once(descriptor: int) -> None:
        flushes.append(descriptor)
        if len(flushes) == 1:  # the kernel tells of a lost write once
            raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(state, "_PIECE_BYTES", 4)
    monkeypatch.setattr(state, "_FLUSH_BYTES", 4)
    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OSError, match="the disk failed"):
        write_vector(tmp_path / "x", flat, SPEC)
    assert list(tmp_path.iterdir()) == []


def test_wrong_vectors_are_our_bug(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    for wrong in (flat[1:], flat.astype(np.float64)):
        with pytest.raises(ValueError, match="does not fit"):
            write_vector(tmp_path / "x", wrong, SPEC)  # type: ignore[arg-type]


def test_damaged_files_are_refused(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    path = tmp_path / "weights.safetensors"
    write_vector(path, flat, SPEC)
    good = path.read_bytes()
    header_bytes = struct.unpack("<Q", good[:8])[0]
    damaged = {
        "empty": b"",
        "cut in the length": good[:5],
        "cut": good[:-1],
        "longer": good + b"\x00",
        "huge header": struct.pack("<Q", 1 << 40) + good[8:],
        "larger header": struct.pack("<Q", header_bytes + 4) + good[8:],
        "garbage header": good[:8] + b"\xff" * header_bytes + good[8 + header_bytes :],
    }
    for what, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(BadRecord):
            read_vector(path, SPEC)
            raise AssertionError(what)


def test_every_damaged_header_byte_is_refused_or_harmless(
    tmp_path: Path, flat: NDArray[np.float32]
) -> None:
    path = tmp_path / "weights.safetensors"
    write_vector(path, flat, SPEC)
    good = path.read_bytes()
    for index in range(8 + struct.unpack("<Q", good[:8])[0]):
        path.write_bytes(good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :])
        try:
            vector = read_vector(path, SPEC)
        except BadRecord:
            continue
        assert sorted(vector.tolist()) == sorted(flat.tolist())


def test_a_header_that_only_the_library_understands_is_refused(tmp_path: Path) -> None:
    spec: ParameterSpec = (("a", (2,)), ("b", (2,)))
    header = b'{"a":["F32",[2],[0,8]],"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "x").write_bytes(data)
    assert set(safetensors.numpy.load(data)) == {"a", "b"}
    with pytest.raises(BadRecord, match="names no offsets"):
        read_vector(tmp_path / "x", spec)


@pytest.mark.parametrize("left", [0, 5, 20, -1])
def test_a_file_that_changes_once_it_was_checked_is_refused(
    tmp_path: Path, flat: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    path = tmp_path / "weights.safetensors"
    write_vector(path, flat, SPEC)
    read = state._read_parameters

    def cut_and_read(*arguments: Any) -> NDArray[np.float32]:
        path.write_bytes(path.read_bytes()[:left])
        return read(*arguments)

    monkeypatch.setattr(state, "_read_parameters", cut_and_read)
    with pytest.raises(BadRecord):
        read_vector(path, SPEC)


def test_other_parameters_are_refused(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    path = tmp_path / "weights.safetensors"
    others: list[dict[str, NDArray[np.generic]]] = [
        {"b.weight": flat[:12].reshape(4, 3), "a.weight": flat[12:17], "a.bias": flat[17:]},
        {"c.weight": flat[:12].reshape(3, 4), "a.weight": flat[12:17], "a.bias": flat[17:]},
        {
            "b.weight": flat.view(np.int32)[:12].reshape(3, 4),
            "a.weight": flat[12:17],
            "a.bias": flat[17:],
        },
        {"b.weight": flat},
    ]
    for tensors in others:
        path.write_bytes(safetensors.numpy.save(tensors))
        with pytest.raises(BadRecord):
            read_vector(path, SPEC)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, flat: NDArray[np.float32], value: float
) -> None:
    flat[3] = value
    write_vector(tmp_path / "x", flat, SPEC)
    with pytest.raises(BadRecord, match="not finite"):
        read_vector(tmp_path / "x", SPEC)


def test_file_is_plain_safetensors(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    write_vector(tmp_path / "x", flat, SPEC)
    data = (tmp_path / "x").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}
    assert header["b.weight"]["shape"] == [3, 4]
