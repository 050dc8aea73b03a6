"""Properties of datasets: order, cutting, and independence from how a build is run."""

import hashlib
import itertools
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.data.build import build_dataset, split_sequences
from coordinator.data.inputs import InputFile, find_files
from coordinator.data.options import BuildOptions, Input
from coordinator.data.readers import Fragment, split_documents
from coordinator.data.shuffle import Shuffler, sort_keys
from coordinator.data.tokenise import Cursor, read_units
from protocol.dataset import DatasetManifest, SequenceReader, ShardInfo, Source, open_folder
from protocol.errors import UsageError

LENGTH = 3
MANY = settings(max_examples=60, deadline=None)
FEW = settings(max_examples=8, deadline=None)


def shuffled(rows: np.ndarray, seed: int, buffer_bytes: int, skip: int = 0) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.tofile(folder / "tokens")
        shuffler = Shuffler(folder / "buckets", rows.dtype.name, rows.shape[1], buffer_bytes)
        shuffler.scatter(folder / "tokens", len(rows), seed, lambda done: None)
        parts = list(shuffler.ordered(skip))
        return np.concatenate(parts) if parts else rows[:0]


def numbered(count: int) -> np.ndarray:
    return np.arange(count * LENGTH, dtype="<u4").reshape(count, LENGTH)


@MANY
@given(st.integers(1, 200), st.integers(0, 2**53 - 1), st.integers(1, 20_000), st.data())
def test_shuffle_is_a_permutation_that_no_buffer_changes(
    count: int, seed: int, buffer_bytes: int, data: st.DataObject
) -> None:
    rows = numbered(count)
    expected = rows[np.argsort(sort_keys(seed, 0, count), kind="stable")]
    np.testing.assert_array_equal(shuffled(rows, seed, buffer_bytes), expected)
    skip = data.draw(st.integers(0, count))
    np.testing.assert_array_equal(shuffled(rows, seed, buffer_bytes, skip), expected[skip:])


@MANY
@given(st.integers(0, 2**53 - 1), st.integers(0, 500), st.integers(1, 100))
def test_sort_keys_are_one_stream_wherever_it_is_entered(seed: int, start: int, count: int) -> None:
    whole = sort_keys(seed, 0, start + count)
    np.testing.assert_array_equal(sort_keys(seed, start, count), whole[start:])


@MANY
@given(
    st.lists(st.text(alphabet="ab \n-é", max_size=30), max_size=8),
    st.sampled_from([None, "-", "--", "\n-\n"]),
    st.integers(4, 20),
)
def test_cutting_loses_nothing(blocks: list[str], separator: str | None, limit: int) -> None:
    fragments = list(split_documents(blocks, separator, limit))
    documents, text = [], ""
    for fragment in fragments:
        text += fragment.text
        if fragment.ends_document:
            documents.append(text)
            text = ""
    assert text == ""
    whole = "".join(blocks)
    expected = whole.split(separator) if separator else [whole]
    if expected[-1] == "":
        expected.pop()
    assert documents == expected


@MANY
@given(st.text(alphabet="ab \n", max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_a_piece_is_bounded_and_ends_where_a_line_does(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    blocks = [text[a:b] for a, b in itertools.pairwise(edges)]
    for fragment in split_documents(blocks, None, 16):
        if not fragment.ends_document:
            assert len(fragment.text) <= 16
            assert "\n" not in fragment.text[:-1] or fragment.text.endswith("\n")


@MANY
@given(
    st.integers(2, 10**7), st.integers(2, 4096), st.integers(4096, 1 << 26), st.floats(0.0001, 0.9)
)
def test_every_sequence_goes_to_exactly_one_shard(
    total: int, sequence_bytes: int, shard_bytes: int, fraction: float
) -> None:
    options = BuildOptions(
        out=Path("unused"),
        inputs=(Input("text", "*"),),
        shard_bytes=shard_bytes,
        validation_fraction=fraction,
    )
    split = split_sequences(total, sequence_bytes, options)
    assert 1 <= split.validation < total
    written = finished = 0
    while written < total:
        size = split.size_of(finished, written)
        assert size > 0
        written, finished = written + size, finished + 1
    assert written == total
    assert finished - 1 <= 4000


@MANY
@given(st.data())
def test_reader_gives_every_range_as_if_there_were_no_shards(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    dtype = data.draw(st.sampled_from(["uint16", "uint32"]))
    rows = numbered(sum(counts)).astype(f"<{np.dtype(dtype).str[1:]}")
    start = data.draw(st.integers(0, len(rows) - 1))
    end = data.draw(st.integers(start + 1, len(rows)))
    with tempfile.TemporaryDirectory() as name:
        manifest = write_shards(Path(name), rows, counts, dtype)
        reader = SequenceReader(manifest, lambda sha256: Path(name) / sha256)
        np.testing.assert_array_equal(reader.batch(start, end), rows[start:end])
        assert sum(shard.sequences for shard in reader.needed(start, end)) >= end - start
    assert DatasetManifest.parse(manifest.canonical()) == manifest


def write_shards(folder: Path, rows: np.ndarray, counts: list[int], dtype: str) -> DatasetManifest:
    infos, start = [], 0
    for count in counts:
        data = rows[start : start + count].tobytes()
        sha256 = hashlib.sha256(data).hexdigest()
        (folder / sha256).write_bytes(data)
        infos.append(ShardInfo(sha256=sha256, sequences=count, bytes=len(data)))
        start += count
    return DatasetManifest(
        dtype=dtype,
        sequence_length=LENGTH,
        vocab_size=1000,
        eos_token_id=0,
        tokenizer_sha256="0" * 64,
        shuffle_seed=0,
        shards=tuple(infos),
        validation=infos[0],
        sources=(Source(name="n", licence="l", files=1, documents=0, bytes=0, sha256="0" * 64),),
        licence="l",
        tokens=len(rows) * LENGTH,
    )


@MANY
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_but_a_manifest_parse(data: bytes) -> None:
    try:
        DatasetManifest.parse(data)
    except UsageError as error:
        assert str(error)
    else:
        raise AssertionError("noise was taken for a manifest")


def write_corpus(folder: Path, texts: list[str]) -> BuildOptions:
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text, encoding="utf-8", newline="")
    return BuildOptions(out=folder / "out", inputs=(Input("text", f"{folder}/*.txt"),))


@MANY
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6).filter(any), st.data())
def test_reading_continues_from_any_cursor(texts: list[str], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        options = write_corpus(Path(name), texts)
        files = find_files(options)
        start = data.draw(st.integers(0, len(files) - 1))
        before = fragments_from(options, files[:start], Cursor())
        rest = fragments_from(options, files, Cursor(start))
        assert before + rest == fragments_from(options, files, Cursor())
        of_this_file = len(fragments_from(options, files[: start + 1], Cursor(start)))
        skip = data.draw(st.integers(0, of_this_file))
        assert fragments_from(options, files, Cursor(start, skip)) == rest[skip:]


def fragments_from(options: BuildOptions, files: list[InputFile], start: Cursor) -> list[Fragment]:
    return [f for unit in read_units(options, files, start) for f in unit.fragments]


WORDS = st.lists(
    st.sampled_from(["barn", "raise", "the roof", "zwölf", "日本", "🙂", "\n"]),
    min_size=200,
    max_size=400,
)


@FEW
@given(WORDS, st.integers(0, 2**53 - 1), st.integers(2, 16))
def test_a_build_holds_exactly_the_packed_corpus(words: list[str], seed: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = len(words) // 2
        texts = [" ".join(words[:half]), " ".join(words[half:])]
        (folder / "a.txt").write_text(texts[0], encoding="utf-8", newline="")
        (folder / "b.txt").write_text(texts[1], encoding="utf-8", newline="")
        options = BuildOptions(
            out=folder / "out",
            inputs=(Input("text", f"{folder}/*.txt"),),
            tokenizer="train:257",
            sequence_length=length,
            seed=seed,
            shard_bytes=4096,
            validation_fraction=0.2,
            workers=1,
        )
        manifest = build_dataset(options)
        reader = open_folder(folder / "out")
        assert_is_permutation_of(texts, reader, manifest, length)


def assert_is_permutation_of(
    texts: list[str], reader: SequenceReader, manifest: DatasetManifest, length: int
) -> None:
    """257 tokens are bytes and end of document, so packing can be redone with plain Python."""
    import tokenizers

    folder = reader._resolve("x").parent.parent
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    stream: list[int] = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert len(ids) == len(text.encode())
        stream += [*ids, manifest.eos_token_id]
    total = len(stream) // length
    packed = sorted(tuple(stream[i * length : (i + 1) * length]) for i in range(total))
    train = reader.batch(0, manifest.train_sequences)
    rows = np.concatenate([reader.validation(), train])
    assert sorted(map(tuple, rows.tolist())) == packed
    assert manifest.tokens == manifest.train_sequences * length
