"""Manifest and shards of a dataset: what is read, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from protocol.dataset import (
    DatasetManifest,
    SequenceReader,
    ShardInfo,
    Source,
    dtype_for,
    folder_reader,
    open_folder,
    read_manifest,
    verify_shard,
)
from protocol.digest import file_sha256
from protocol.errors import BadDigest, BadRecord, UsageError
from protocol.limits import MAX_MANIFEST_BYTES

LENGTH = 4
COUNTS = (3, 1, 2)


def write_shard(folder: Path, rows: np.ndarray) -> ShardInfo:
    data = rows.tobytes()
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / f"{sha256}.bin").write_bytes(data)
    return ShardInfo(sha256=sha256, sequences=len(rows), bytes=len(data))


def make_folder(folder: Path, dtype: str = "uint16", top: int = 999) -> np.ndarray:
    """A dataset of six training and two validation sequences; returns all eight."""
    (folder / "shards").mkdir(parents=True)
    rows = np.arange(8 * LENGTH, dtype=f"<{np.dtype(dtype).str[1:]}").reshape(8, LENGTH)
    rows[5, 3] = top
    infos, start = [], 0
    for count in (*COUNTS, 2):
        infos.append(write_shard(folder / "shards", rows[start : start + count]))
        start += count
    (folder / "tokenizer.json").write_bytes(b"{}")
    source = Source(name="n", licence="CC0", files=1, documents=1, bytes=1, sha256="0" * 64)
    manifest = DatasetManifest(
        dtype=dtype,
        sequence_length=LENGTH,
        vocab_size=1000,
        eos_token_id=0,
        tokenizer_sha256=hashlib.sha256(b"{}").hexdigest(),
        shuffle_seed=7,
        shards=tuple(infos[:3]),
        validation=infos[3],
        sources=(source,),
        licence="CC0",
        tokens=6 * LENGTH,
    )
    (folder / "dataset.json").write_bytes(manifest.canonical())
    return rows


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_reads_across_shards_in_order(tmp_path: Path, dtype: str) -> None:
    rows = make_folder(tmp_path, dtype)
    reader = open_folder(tmp_path)
    assert reader.manifest.train_sequences == 6
    for start in range(6):
        for end in range(start + 1, 7):
            batch = reader.batch(start, end)
            assert batch.dtype == np.int64
            np.testing.assert_array_equal(batch, rows[start:end])


def test_validation_is_its_own_shard(tmp_path: Path) -> None:
    rows = make_folder(tmp_path)
    reader = open_folder(tmp_path)
    np.testing.assert_array_equal(reader.validation(), rows[6:])
    np.testing.assert_array_equal(reader.validation(1), rows[6:7])
    np.testing.assert_array_equal(reader.validation(100), rows[6:])


def test_needed_names_only_the_shards_of_the_range(tmp_path: Path) -> None:
    make_folder(tmp_path)
    reader = open_folder(tmp_path)
    shards = list(reader.manifest.shards)
    assert reader.needed(0, 3) == shards[:1]
    assert reader.needed(2, 4) == shards[:2]
    assert reader.needed(3, 4) == shards[1:2]
    assert reader.needed(0, 6) == shards


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 7), (3, 3), (4, 2), (6, 7)])
def test_a_range_outside_the_epoch_is_refused(tmp_path: Path, start: int, end: int) -> None:
    make_folder(tmp_path)
    with pytest.raises(BadRecord, match="epoch"):
        open_folder(tmp_path).batch(start, end)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, top=1000)
    reader = open_folder(tmp_path)
    assert reader.batch(0, 5).max() < 1000
    with pytest.raises(BadRecord, match="vocabulary"):
        reader.batch(0, 6)


def test_reader_refuses_a_shard_of_the_wrong_size(tmp_path: Path) -> None:
    make_folder(tmp_path)
    manifest = read_manifest(tmp_path)
    shard = tmp_path / "shards" / manifest.shards[0].file_name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BadDigest, match="size"):
        folder_reader(tmp_path, manifest).batch(0, 1)
    shard.unlink()
    with pytest.raises(BadDigest, match="cannot be read"):
        SequenceReader(manifest, lambda sha256: shard).batch(0, 1)


def test_verify_shard(tmp_path: Path) -> None:
    info = write_shard(tmp_path, np.zeros((2, LENGTH), dtype="<u2"))
    path = tmp_path / info.file_name
    verify_shard(path, info)
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    with pytest.raises(BadDigest, match="is damaged"):
        verify_shard(path, info)
    path.write_bytes(b"")
    with pytest.raises(BadDigest, match="0 bytes"):
        verify_shard(path, info)
    path.unlink()
    with pytest.raises(BadDigest, match="No such file"):
        verify_shard(path, info)


@pytest.mark.parametrize("victim", ["shards", "tokenizer.json"])
def test_open_folder_finds_one_flipped_bit(tmp_path: Path, victim: str) -> None:
    make_folder(tmp_path)
    path = tmp_path / victim
    if path.is_dir():
        path /= read_manifest(tmp_path).validation.file_name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadDigest):
        open_folder(tmp_path)


def test_a_folder_without_a_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="barnraise data build"):
        open_folder(tmp_path)


def test_manifest_round_trips_and_names_itself(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data = (tmp_path / "dataset.json").read_bytes()
    manifest = DatasetManifest.parse(data)
    assert manifest.canonical() == data
    assert manifest.digest == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown field"),
        ({"format": "barnraise-dataset/2"}, "format"),
        ({"dtype": "int64"}, "dtype"),
        ({"sequence_length": 5}, "do not agree"),
        ({"sequence_length": "4"}, "sequence_length"),
        ({"vocab_size": 65537}, "uint16"),
        ({"eos_token_id": 1000}, "outside the vocabulary"),
        ({"tokens": 25}, "sum over"),
        ({"shards": []}, "shards"),
        ({"tokenizer_sha256": "A" * 64}, "tokenizer_sha256"),
        ({"shuffle_seed": 1 << 53}, "shuffle_seed"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make_folder(tmp_path)
    raw = json.loads((tmp_path / "dataset.json").read_bytes()) | change
    data = json.dumps(raw, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(UsageError, match=message):
        DatasetManifest.parse(data)


def test_a_manifest_with_other_spelling_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data = (tmp_path / "dataset.json").read_bytes()
    with pytest.raises(UsageError, match="canonical"):
        DatasetManifest.parse(data + b"\n")
    with pytest.raises(UsageError, match="canonical"):
        DatasetManifest.parse(data[:-1] + b',"tokens":24}')


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"null", b"{}"])
def test_what_is_no_manifest_is_a_usage_error(data: bytes) -> None:
    with pytest.raises(UsageError, match="dataset manifest"):
        DatasetManifest.parse(data)


def test_a_large_manifest_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(UsageError, match="more than"):
        read_manifest(tmp_path)


def test_dtype_is_the_smallest_that_holds_the_vocabulary() -> None:
    assert dtype_for(65536) == "uint16"
    assert dtype_for(65537) == "uint32"


def test_file_sha256_is_the_standard_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-4, example
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
