"""Where replays are kept: proven chunk by chunk, and never another auditor's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from coordinator.audit.replays import ReplayStore
from protocol.errors import BadDigest, NotFound
from protocol.update import ChunkLayout, EncodedUpdate, encode_update

LAYOUT = ChunkLayout(1000, 256)
JOB, OTHER_JOB = b"j" * 16, b"k" * 16


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ReplayStore:
    local = request.param == "file"
    return ReplayStore(str(tmp_path / "blobs") if local else f"memory://{uuid4().hex}")


def update(seed: int) -> EncodedUpdate:
    vector = np.random.default_rng(seed).standard_normal(LAYOUT.elements).astype(np.float32)
    return encode_update(vector, LAYOUT, "int8", run_id=bytes(32), round_=0, worker="w")


def test_chunks_come_back_and_the_digest_is_of_all_of_them(store: ReplayStore) -> None:
    made = update(1)
    sha256, size_bytes = store.save(JOB, made.chunks)
    assert sha256 == hashlib.sha256(b"".join(made.chunks)).digest()
    assert size_bytes == sum(map(len, made.chunks))
    found = store.read(JOB, LAYOUT, "int8", [3, 0], root=made.root)
    assert found == {3: made.chunks[3], 0: made.chunks[0]}


def test_an_auditor_that_lost_its_job_cannot_replace_the_other_ones_replay(
    store: ReplayStore,
) -> None:
    signed, late = update(1), update(2)
    store.save(JOB, signed.chunks)
    store.save(JOB, late.chunks)
    assert store.read(JOB, LAYOUT, "int8", [1], root=signed.root) == {1: signed.chunks[1]}


def test_deleting_a_job_leaves_the_others(store: ReplayStore) -> None:
    made = update(1)
    store.save(JOB, made.chunks)
    store.save(OTHER_JOB, made.chunks)
    store.delete(JOB)
    store.delete(JOB)
    with pytest.raises(NotFound, match="kept no more"):
        store.read(JOB, LAYOUT, "int8", [0], root=made.root)
    assert store.read(OTHER_JOB, LAYOUT, "int8", [0], root=made.root)


@pytest.mark.parametrize(
    ("at", "says"), [(0, "chunk 0 .* damaged"), (-1, "not what its auditor signed")]
)
def test_a_flipped_bit_is_seen(tmp_path: Path, at: int, says: str) -> None:
    store, made = ReplayStore(str(tmp_path)), update(1)
    store.save(JOB, made.chunks)
    file = next(tmp_path.glob("replays/*.update"))
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadDigest, match=says):
        store.read(JOB, LAYOUT, "int8", [0], root=made.root)


def test_a_cut_file_is_seen(tmp_path: Path) -> None:
    store, made = ReplayStore(str(tmp_path)), update(1)
    store.save(JOB, made.chunks)
    file = next(tmp_path.glob("replays/*.update"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BadDigest, match="bytes, not"):
        store.read(JOB, LAYOUT, "int8", [0], root=made.root)
