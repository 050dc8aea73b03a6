"""Encoded updates on disk, and chunks of them shown to whoever asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocol import merkle
from protocol.errors import TransientError
from protocol.limits import MAX_RECORD_BYTES
from protocol.manifest import RunManifest
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from worker.updates import (
    KEPT_UPDATES,
    adopt_update,
    open_chunks,
    prune_updates,
    read_update,
    update_file,
)

ELEMENTS = 5 * 4096 + 100


def encoded(manifest: RunManifest) -> EncodedUpdate:
    layout = ChunkLayout(ELEMENTS, manifest.update.chunk_elements)
    vector = np.random.default_rng(1).standard_normal(ELEMENTS).astype(np.float32)
    codec, run_id = manifest.update.codec, manifest.run_id
    return encode_update(vector, layout, codec, run_id=run_id, round_=0, worker="me")


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4"])
def test_what_was_written_is_read_back_and_its_chunks_lead_to_the_root(
    make_manifest: Callable[..., RunManifest], tmp_path: Path, codec: str
) -> None:
    manifest = make_manifest(update={"codec": codec})
    update = encoded(manifest)
    path = tmp_path / "x"
    path.write_bytes(b"".join(update.chunks))
    again = read_update(path, ELEMENTS, manifest)
    assert again == update
    opened = open_chunks(update, [5, 0, 3])
    assert opened is not None
    assert [chunk.chunk for chunk in opened] == [5, 0, 3]
    for chunk in opened:
        assert chunk.encoded == update.chunks[chunk.chunk]
        leaf = merkle.leaf_hash(chunk.encoded)
        merkle.verify_inclusion(leaf, chunk.chunk, 6, list(chunk.proof), update.root)


def test_what_cannot_be_shown_is_not_answered(manifest: RunManifest, tmp_path: Path) -> None:
    update = encoded(manifest)
    assert open_chunks(update, []) is None
    assert open_chunks(update, [6]) is None
    assert open_chunks(update, [0] * 7) is None
    assert open_chunks(EncodedUpdate.of((bytes(MAX_RECORD_BYTES),)), [0]) is None
    assert read_update(tmp_path / "none", ELEMENTS, manifest) is None
    (tmp_path / "short").write_bytes(b"".join(update.chunks)[:-1])
    assert read_update(tmp_path / "short", ELEMENTS, manifest) is None
    (tmp_path / "long").write_bytes(b"".join(update.chunks) + b"!")
    assert read_update(tmp_path / "long", ELEMENTS, manifest) is None


def test_the_newest_few_stay_and_so_does_what_a_round_needs(tmp_path: Path) -> None:
    files = [update_file(tmp_path, bytes([number]) * 16) for number in range(KEPT_UPDATES + 3)]
    for number, path in enumerate(files):
        path.write_bytes(b"chunks")
        os.utime(path, ns=(number, number))
    (tmp_path / "unrelated").touch()
    prune_updates(tmp_path, {files[0], None})
    kept = {files[0], *files[-KEPT_UPDATES:], tmp_path / "unrelated"}
    assert set(tmp_path.iterdir()) == kept


def test_adopting_is_done_once_however_often_it_is_tried(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_bytes(b"chunks")
    with pytest.raises(TransientError, match="cannot keep"):
        adopt_update(output, tmp_path / "none", bytes(16))
    first = adopt_update(output, tmp_path, bytes(16))
    assert adopt_update(output, tmp_path, bytes(16)) == first
    assert first.read_bytes() == b"chunks" and not output.exists()
