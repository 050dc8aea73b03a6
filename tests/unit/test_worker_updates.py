"""Encoded updates on disk, and chunks of them shown to whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocol import merkle
from protocol.errors import NotFound, TransientError
from protocol.manifest import RunManifest
from protocol.projection import project_update
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from worker.updates import (
    UpdateName,
    adopt_update,
    find_update,
    open_update,
    read_update,
    sha256s,
)

ELEMENTS = 5 * 4096 + 100
UNIT = bytes(range(16))


def encoded(manifest: RunManifest) -> EncodedUpdate:
    layout = ChunkLayout(ELEMENTS, manifest.update.chunk_elements)
    vector = np.random.default_rng(1).standard_normal(ELEMENTS).astype(np.float32)
    codec, run_id = manifest.update.codec, manifest.run_id
    return encode_update(vector, layout, codec, run_id=run_id, round_=0, worker="me")


def stored(update: EncodedUpdate, folder: Path, round_: int = 3) -> Path:
    path = folder / str(UpdateName(round_, UNIT, update.root))
    path.write_bytes(b"".join(update.chunks))
    return path


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4"])
def test_what_was_written_is_read_back_and_its_chunks_lead_to_the_root(
    make_manifest: Callable[..., RunManifest], tmp_path: Path, codec: str
) -> None:
    manifest = make_manifest(update={"codec": codec})
    update = encoded(manifest)
    path = stored(update, tmp_path)
    assert read_update(path, ELEMENTS, manifest) == update
    file = open_update(path, ELEMENTS, manifest, "me")
    assert tuple(file.leaf_hashes) == update.leaf_hashes
    shown = file.show([5, 0, 3])
    assert [(chunk.chunk, chunk.member) for chunk in shown] == [(5, "me"), (0, "me"), (3, "me")]
    for chunk in shown:
        assert chunk.encoded == update.chunks[chunk.chunk]
        leaf = merkle.leaf_hash(chunk.encoded)
        merkle.verify_inclusion(leaf, chunk.chunk, 6, list(chunk.proof), update.root)
    assert len(sha256s(shown)) == 3


def test_projections_are_those_of_the_chunks(manifest: RunManifest, tmp_path: Path) -> None:
    update = encoded(manifest)
    file = open_update(stored(update, tmp_path), ELEMENTS, manifest, "me")
    seed, codec = bytes(32), manifest.update.codec
    expected = project_update(update.chunks[1:6], codec, file.layout, seed, first=1)
    assert file.project(1, 6, seed) == expected


def test_what_is_not_here_or_was_damaged_is_not_shown(
    manifest: RunManifest, tmp_path: Path
) -> None:
    update = encoded(manifest)
    path = stored(update, tmp_path)
    file = open_update(path, ELEMENTS, manifest, "me")
    for chunk in (6, 99):
        with pytest.raises(NotFound):
            file.read(chunk)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the last chunk, after the file was opened
    path.write_bytes(data)
    assert file.read(0) == update.chunks[0]
    with pytest.raises(NotFound, match="damaged"):
        file.read(5)
    with pytest.raises(NotFound, match="damaged"):
        open_update(path, ELEMENTS, manifest, "me")
    path.unlink()
    with pytest.raises(NotFound):
        file.read(0)
    with pytest.raises(NotFound):
        open_update(path, ELEMENTS, manifest, "me")


def test_a_file_of_another_size_is_no_update(manifest: RunManifest, tmp_path: Path) -> None:
    data = b"".join(encoded(manifest).chunks)
    assert read_update(tmp_path / "none", ELEMENTS, manifest) is None
    for name, wrong in (("short", data[:-1]), ("long", data + b"!")):
        (tmp_path / name).write_bytes(wrong)
        assert read_update(tmp_path / name, ELEMENTS, manifest) is None


def test_a_name_says_round_unit_and_commitment() -> None:
    name = UpdateName(12, UNIT, bytes(32))
    assert UpdateName.of(Path("/somewhere") / str(name)) == name
    assert UpdateName(1 << 63, UNIT, bytes(32)) == UpdateName.of(
        Path(str(UpdateName(1 << 63, UNIT, bytes(32))))
    )
    assert UpdateName.of(Path("journal.db")) is None


def test_adopting_is_done_once_however_often_it_is_tried(tmp_path: Path) -> None:
    output, name = tmp_path / "output", UpdateName(1, UNIT, bytes(32))
    output.write_bytes(b"chunks")
    with pytest.raises(TransientError, match="cannot keep"):
        adopt_update(output, tmp_path / "none", name)
    first = adopt_update(output, tmp_path, name)
    assert adopt_update(output, tmp_path, name) == first == find_update(tmp_path, UNIT)
    assert first.read_bytes() == b"chunks"
    assert not output.exists()


def test_training_again_after_a_kill_leaves_only_the_newer_update(tmp_path: Path) -> None:
    output = tmp_path / "output"
    for root in (bytes(32), b"r" * 32):  # another device rounds otherwise
        output.write_bytes(root)
        kept = adopt_update(output, tmp_path, UpdateName(1, UNIT, root))
    assert list(tmp_path.iterdir()) == [kept]
    assert find_update(tmp_path, bytes(16)) is None
