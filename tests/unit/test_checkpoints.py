from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from coordinator import checkpoints
from coordinator.checkpoints import MOMENTUM, WEIGHTS, CheckpointStore, SavedState, Vector
from protocol import threads
from protocol.errors import BadDigest, TransientError
from protocol.manifest import RunManifest
from protocol.model import ParameterSpec, parameter_spec
from protocol.state import StateDescriptor, describe


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "blobs") if request.param == "file" else f"memory://{uuid4().hex}"


@pytest.fixture
def store(url: str, manifest: RunManifest) -> CheckpointStore:
    return CheckpointStore(url, manifest)


def state(store: CheckpointStore, seed: int) -> tuple[Vector, Vector, StateDescriptor]:
    generator = np.random.default_rng(seed)
    weights, momentum = (generator.standard_normal(store.elements, np.float32) for _ in range(2))
    described = describe(weights, momentum, round_=seed, merged_tokens=1, chunk_elements=4096)
    return weights, momentum, described


def test_what_is_loaded_is_what_was_saved(store: CheckpointStore) -> None:
    weights, momentum, described = state(store, 1)
    saved = store.save(weights, momentum, described)
    found_weights, found_momentum = store.load(saved)
    np.testing.assert_array_equal(found_weights, weights)
    np.testing.assert_array_equal(found_momentum, momentum)
    assert store.size(WEIGHTS, saved.weights_sha256) == saved.weights_bytes
    data = store.read(WEIGHTS, saved.weights_sha256, 0, saved.weights_bytes + 1)
    assert hashlib.sha256(data).digest() == saved.weights_sha256
    assert store.read(WEIGHTS, saved.weights_sha256, 10, 5) == data[10:15]


def test_the_model_is_loaded_by_who_saves_and_not_by_two_threads_at_once(
    store: CheckpointStore, url: str, manifest: RunManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading: list[threading.Thread] = []

    def load(config: dict[str, Any]) -> ParameterSpec:
        loading.append(threading.current_thread())
        return parameter_spec(config)

    monkeypatch.setattr(checkpoints, "parameter_spec", load)
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    saving = state(store, 1)
    del loading[:]
    CheckpointStore(url, manifest).save(*saving)
    assert loading == [threading.current_thread()]


def test_saving_again_lands_on_the_same_names(store: CheckpointStore) -> None:
    assert store.save(*state(store, 1)) == store.save(*state(store, 1))


def test_a_newly_opened_store_finds_the_state(url: str, manifest: RunManifest) -> None:
    first = CheckpointStore(url, manifest)
    saved = first.save(*state(first, 1))
    second = CheckpointStore(url, manifest)
    assert second.contains(MOMENTUM, saved.momentum_sha256)
    assert len(second.load_weights(saved.weights_sha256)) == second.elements


def test_pruning_keeps_what_is_asked(store: CheckpointStore) -> None:
    kept, dropped = (store.save(*state(store, seed)) for seed in (1, 2))
    assert store.prune([kept]) == 2
    store.load(kept)
    with pytest.raises(FileNotFoundError):
        store.load(dropped)


@pytest.fixture
def local(tmp_path: Path, manifest: RunManifest) -> tuple[CheckpointStore, SavedState, Path]:
    store = CheckpointStore(str(tmp_path / "blobs"), manifest)
    saved = store.save(*state(store, 1))
    return store, saved, next((tmp_path / "blobs").glob("weights-*"))


def test_a_flipped_bit_is_seen(local: tuple[CheckpointStore, SavedState, Path]) -> None:
    store, saved, file = local
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadDigest, match="damaged: restore"):
        store.load(saved)


def test_what_a_killed_process_left_is_removed(
    local: tuple[CheckpointStore, SavedState, Path], manifest: RunManifest
) -> None:
    _, saved, file = local
    leftover = file.parent / ".part-killed"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes(b"half")
    CheckpointStore(str(file.parent), manifest).load(saved)
    assert not leftover.exists()


def test_a_full_disk_is_a_passing_failure(
    local: tuple[CheckpointStore, SavedState, Path], full_disk: Callable[[int], Any]
) -> None:
    store, saved, file = local
    before = set(file.parent.iterdir())
    with full_disk(4096), pytest.raises(TransientError, match="free space or restore access"):
        store.save(*state(store, 2))
    assert set(file.parent.iterdir()) == before
    store.load(saved)
