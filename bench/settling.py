"""From the mean of a round to the next state, stored and proven: what everybody waits for.

Coordinator: the held chunks are decoded, the outer step is taken, both vectors are hashed chunk by
chunk, both files and the mean are written and flushed to the disk. Member: both files are read and
checked, the step is taken from a mean that is decoded already, both files are written. Measured
against the same in plain numpy and safetensors, one whole vector after the other, as we did it
before; both come to the same bytes, which is checked. The disk is in the seconds.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from bench.report import Row, ratio_columns, write_report
from bench.train import make_manifest
from coordinator.audit.base_weights import keep_mean
from coordinator.checkpoints import CheckpointStore
from protocol import merkle
from protocol.manifest import RunManifest
from protocol.model import ParameterSpec, element_count, parameter_spec, slices
from protocol.outer import outer_step
from protocol.state import StateDescriptor, read_vector, vector_root, write_vector
from protocol.state_step import MeanOfChunk, NextState, decoding, slicing, step_state
from protocol.threads import for_each
from protocol.update import MEAN_SOURCE, ChunkLayout, decode_update, encode_update

FloatVector = NDArray[np.float32]
Digests = tuple[bytes, ...]
"""Roots of weights and momentum, SHA-256 of their files."""

SIZES = {"25 million": (512, 6, 12_000), "124 million": (768, 12, 50_257)}  # hidden, layers, words
NOTE = (
    "an int8 mean; seconds of the clock on {cores} cores, of the processor in brackets, medians of "
    "{turns} turns of both; ratio = plain / ours within a turn"
)


def run(quick: bool) -> list[Row]:
    """Measure every size; ``quick`` only proves that it runs."""
    turns = 1 if quick else 5
    sizes = {"1 million": (128, 2, 4_000)} if quick else SIZES
    rows = [row for name, size in sizes.items() for row in _measure(name, size, turns)]
    note = NOTE.format(cores=os.cpu_count(), turns=turns)
    write_report("settling-quick" if quick else "settling", rows, note=note)
    return rows


@dataclass
class _Round:
    """A state, and the mean that leads to the next one."""

    manifest: RunManifest
    spec: ParameterSpec
    layout: ChunkLayout
    weights: FloatVector
    momentum: FloatVector
    chunks: tuple[bytes, ...]
    mean: FloatVector

    @classmethod
    def of(cls, size: tuple[int, int, int]) -> _Round:
        hidden, layers, words = size
        config: dict[str, object] = {
            "model_type": "gpt2",
            "n_embd": hidden,
            "n_layer": layers,
            "n_head": 8,
            "n_positions": 1024,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "vocab_size": words,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
        manifest = make_manifest(config, 1)
        spec = parameter_spec(config)
        generator = np.random.default_rng(1)
        weights, momentum, update = (
            generator.standard_normal(element_count(spec), dtype=np.float32) for _ in range(3)
        )
        layout = ChunkLayout(len(weights), manifest.update.chunk_elements)
        codec = manifest.update.codec
        chunks = encode_update(
            update, layout, codec, run_id=manifest.run_id, round_=1, worker=MEAN_SOURCE
        ).chunks
        mean = decode_update(chunks, layout, codec)
        return cls(manifest, spec, layout, weights, momentum, chunks, mean)


def _measure(name: str, size: tuple[int, int, int], turns: int) -> list[Row]:
    round_ = _Round.of(size)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        sides = {
            "coordinator": (_coordinator_plainly, _coordinator),
            "member": (_member_plainly, _member),
        }
        return [
            _compare(name, who, round_, Path(folder), plainly, ours, turns)
            for who, (plainly, ours) in sides.items()
        ]


def _compare(
    name: str,
    who: str,
    round_: _Round,
    folder: Path,
    plainly: Callable[[_Round, Path], Digests],
    ours: Callable[[_Round, Path], Digests],
    turns: int,
) -> Row:
    write_vector(folder / "weights", round_.weights, round_.spec)
    write_vector(folder / "momentum", round_.momentum, round_.spec)
    found: list[tuple[float, float, float, float]] = []
    for _ in range(turns):
        plain_s, plain_cpu_s, expected = _seconds(lambda: plainly(round_, folder))
        ours_s, ours_cpu_s, digests = _seconds(lambda: ours(round_, folder))
        assert digests == expected, "not the same bytes"
        found.append((plain_s, plain_cpu_s, ours_s, ours_cpu_s))
    plain_s, plain_cpu_s, ours_s, ours_cpu_s = map(statistics.median, zip(*found, strict=True))
    ratios = [turn[0] / turn[2] for turn in found]
    return {
        "elements": name,
        "who": who,
        "plain": f"{plain_s:.2f} ({plain_cpu_s:.2f})",
        "ours": f"{ours_s:.2f} ({ours_cpu_s:.2f})",
        **ratio_columns(ratios, digits=2),
    }


def _seconds(work: Callable[[], Digests]) -> tuple[float, float, Digests]:
    os.sync()  # what was written before is not of this turn
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    digests = work()
    return time.monotonic() - begun_s, time.process_time() - begun_cpu_s, digests


# ---- as it is done ---------------------------------------------------------------------


def _coordinator(round_: _Round, folder: Path) -> Digests:
    """Like coordinator.state_desk."""
    mean = decoding(round_.chunks, round_.layout, round_.manifest.update.codec)
    after = _step(round_, round_.weights, round_.momentum, mean)
    store = CheckpointStore(str(folder / "ours"), round_.manifest)
    descriptor = StateDescriptor(1, 1, after.weights_root, after.momentum_root)
    with ThreadPoolExecutor() as threads:
        keeping = threads.submit(keep_mean, store, round_.manifest, round_.chunks)
        saved = store.save(after.weights, after.momentum, descriptor)
        keeping.result()
    return after.weights_root, after.momentum_root, saved.weights_sha256, saved.momentum_sha256


def _member(round_: _Round, folder: Path) -> Digests:
    """Like worker.state_cache."""
    before = [read_vector(folder / name, round_.spec) for name in ("weights", "momentum")]
    for vector in before:
        vector_root(vector, round_.layout.chunk_elements)
    after = _step(round_, before[0], before[1], slicing(round_.mean, round_.layout))
    parts = (("new weights", after.weights), ("new momentum", after.momentum))
    files = for_each(lambda n: write_vector(folder / parts[n][0], parts[n][1], round_.spec), 2)
    return after.weights_root, after.momentum_root, *(file.sha256 for file in files)


def _step(
    round_: _Round, weights: FloatVector, momentum: FloatVector, mean: MeanOfChunk
) -> NextState:
    after = step_state(weights, momentum, mean, round_.layout, round_.manifest.outer)
    assert after is not None
    return after


# ---- plainly ---------------------------------------------------------------------------


def _coordinator_plainly(round_: _Round, folder: Path) -> Digests:
    mean = decode_update(round_.chunks, round_.layout, round_.manifest.update.codec)
    digests = _onwards_plainly(round_, round_.weights, round_.momentum, mean, folder)
    for chunk in round_.chunks:
        merkle.leaf_hash(chunk)
    _write_plainly(folder / "plain mean", b"".join(round_.chunks))
    return digests


def _member_plainly(round_: _Round, folder: Path) -> Digests:
    before = []
    for name in ("weights", "momentum"):
        tensors = safetensors.numpy.load_file(folder / name)
        vector = np.concatenate([tensors[name].reshape(-1) for name, _ in round_.spec])
        assert np.isfinite(vector).all()
        _root_plainly(vector, round_)
        before.append(vector)
    return _onwards_plainly(round_, before[0], before[1], round_.mean, folder)


def _onwards_plainly(
    round_: _Round, weights: FloatVector, momentum: FloatVector, mean: FloatVector, folder: Path
) -> Digests:
    after = outer_step(weights, momentum, mean, round_.manifest.outer)
    assert all(np.isfinite(vector).all() for vector in after)
    roots = [_root_plainly(vector, round_) for vector in after]
    files = []
    for name, vector in zip(("plain weights", "plain momentum"), after, strict=True):
        places = slices(round_.spec)
        tensors = {name: vector[where].reshape(shape) for name, shape, where in places}
        data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        _write_plainly(folder / name, data)
        files.append(hashlib.sha256(data).digest())
    return (*roots, *files)


def _root_plainly(vector: FloatVector, round_: _Round) -> bytes:
    size = round_.layout.chunk_elements
    chunks = [vector[start : start + size] for start in range(0, len(vector), size)]
    return merkle.root([merkle.leaf_hash(chunk.data.cast("B")) for chunk in chunks])


def _write_plainly(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
