"""``barnraise data``: what a build makes, survives, refuses, and how much memory it takes."""

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

import barnraise
from coordinator.data import embedded
from coordinator.data.build import build_dataset
from coordinator.data.journal import locked
from coordinator.data.options import BuildOptions, Input, Progress
from coordinator.data.readers import BLOCK_BYTES, FRAGMENT_CHARS, text_blocks
from coordinator.data.shuffle import sort_keys
from coordinator.data.tokenizer import load
from protocol.dataset import DatasetManifest, open_folder, read_manifest
from protocol.errors import UsageError

DRIVER = Path(__file__).parent.parent / "data_build_driver.py"
BYTES_ONLY = "train:257"


def write_corpus(folder: Path, files: int = 3, lines: int = 200, seed: int = 1) -> str:
    """Some random words; returns the glob of the files."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(500)]
    paragraphs = [" ".join(rng.choices(words, k=10)) + "\n" for _ in range(200)]
    for number in range(files):
        (folder / f"{number}.txt").write_text("".join(rng.choices(paragraphs, k=lines)))
    return f"{folder}/*.txt"


def options_for(tmp_path: Path, pattern: str, **changes: Any) -> BuildOptions:
    base = BuildOptions(
        out=tmp_path / "out",
        inputs=(Input("text", pattern),),
        tokenizer=BYTES_ONLY,
        sequence_length=32,
        shard_bytes=8192,
        workers=1,
    )
    return dataclasses.replace(base, **changes)


def test_processes_are_started_for_much_text_only(tmp_path: Path) -> None:
    options = options_for(tmp_path, "x", workers=0)
    cores = len(os.sched_getaffinity(0))
    assert [options.worker_count(text_bytes) for text_bytes in (1, 1 << 40)] == [1, cores]
    assert dataclasses.replace(options, workers=3).worker_count(1) == 3


# --- what is built ---------------------------------------------------------------------------


def test_neither_workers_nor_buffer_nor_checkpoints_show_in_the_result(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus", files=5, lines=2000)
    base = options_for(tmp_path, pattern, tokenizer="train:400")
    alone = build_dataset(base)
    several = build_dataset(
        dataclasses.replace(
            base, out=tmp_path / "other", workers=2, buffer_bytes=4 << 20, checkpoint_s=0.0
        )
    )
    assert alone.digest == several.digest
    assert (base.out / "dataset.json").read_bytes() == alone.canonical()
    assert open_folder(base.out).manifest == alone
    assert sorted(path.name for path in base.out.iterdir()) == [
        "dataset.json",
        "shards",
        "sources",
        "tokenizer.json",
    ]


def test_another_seed_is_another_order_of_the_same_sequences(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus")
    base = options_for(tmp_path, pattern, seed=1)
    first = build_dataset(base)
    second = build_dataset(dataclasses.replace(base, seed=2, out=tmp_path / "other"))
    assert first.digest != second.digest
    rows = [all_rows(folder) for folder in (base.out, tmp_path / "other")]
    assert rows[0] != rows[1]
    assert sorted(rows[0]) == sorted(rows[1])


def all_rows(folder: Path) -> list[list[int]]:
    reader = open_folder(folder)
    train = reader.batch(0, reader.manifest.train_sequences)
    rows: list[list[int]] = np.concatenate([reader.validation(), train]).tolist()
    return rows


def test_sort_keys_never_change() -> None:
    # Written down once: another order would be another dataset under the same seed.
    assert sort_keys(0, 0, 3).tolist() == GOLDEN_KEYS
    assert sort_keys(0, 1, 2).tolist() == GOLDEN_KEYS[1:]


GOLDEN_KEYS = [11681013648066424536, 16039811480705522651, 2692241929614068787]


def test_validation_is_the_fraction_asked_for_within_bounds(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus")
    base = options_for(tmp_path, pattern, validation_fraction=0.1)
    manifest = build_dataset(base)
    total = manifest.train_sequences + manifest.validation.sequences
    assert manifest.validation.sequences == round(total * 0.1)
    most = build_dataset(dataclasses.replace(base, validation_fraction=0.9, force=True))
    assert most.validation.bytes <= base.shard_bytes


def test_inputs_of_all_kinds_are_mixed_and_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext one" + b"." * 60)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text('{"body": "json \\ud800 one"}\n\n{"body": "  "}\n')
    table = pa.table({"body": ["parquet one", None, "parquet two"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=1)
    manifest = build_dataset(
        options_for(
            tmp_path,
            "",
            inputs=(
                Input("text", f"{tmp_path}/*.txt", licence="CC0-1.0", name="texts"),
                Input("jsonl", f"{tmp_path}/*.jsonl", field="body"),
                Input("parquet", f"{tmp_path}/*.parquet", field="body", licence="CC0-1.0"),
            ),
            sequence_length=2,
            validation_fraction=0.5,
        )
    )
    names = [(source.name, source.files, source.documents) for source in manifest.sources]
    folder = tmp_path.name
    assert names == [
        ("texts", 2, 1),
        (f"{folder}/*.jsonl", 1, 1),
        (f"{folder}/*.parquet", 1, 2),
    ]
    assert manifest.licence == "CC0-1.0; not stated"
    size = sum((tmp_path / name).stat().st_size for name in ("a.txt", "empty.txt"))
    assert manifest.sources[0].bytes == size


def test_file_lists_check_with_sha256sum(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus")
    options = options_for(tmp_path, pattern)
    (source,) = build_dataset(options).sources
    listing = options.out / "sources" / f"{source.sha256}.txt"
    assert hashlib.sha256(listing.read_bytes()).hexdigest() == source.sha256
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", str(listing)],
        cwd=tmp_path / "corpus",
        check=True,
        capture_output=True,
    )
    assert checked.stdout.count(b": OK") == 3


def test_documents_come_back_between_ends_of_document(tmp_path: Path) -> None:
    texts = ["first <|eos|> é", "second\r\n", "third"]
    (tmp_path / "all.txt").write_bytes("=====".join(texts).encode())
    options = options_for(
        tmp_path, f"{tmp_path}/all.txt", separator="=====", sequence_length=2, shard_bytes=4096
    )
    manifest = build_dataset(options)
    rows = all_rows(options.out)
    ends = sum(row.count(manifest.eos_token_id) for row in rows)
    assert len(rows) == (sum(len(text.encode()) for text in texts) + 3) // 2
    assert ends == 3, "text that spells the end-of-document token must not become it"


def test_a_long_document_is_read_in_pieces_and_stays_one(tmp_path: Path) -> None:
    line = "a line of a very long document\n"
    text = line * (3 * FRAGMENT_CHARS // len(line))
    (tmp_path / "long.txt").write_text(text)
    options = options_for(tmp_path, f"{tmp_path}/long.txt", sequence_length=len(line))
    manifest = build_dataset(options)
    rows = all_rows(options.out)
    assert manifest.sources[0].documents == 1
    assert len(rows) == len(text) // len(line)
    assert {tuple(row) for row in rows} == {tuple(rows[0])}


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)} | {"</s>": 70_000}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    tokenizer.save(str(tmp_path / "given.json"))
    pattern = write_corpus(tmp_path / "corpus")
    options = options_for(tmp_path, pattern, tokenizer=str(tmp_path / "given.json"))
    manifest = build_dataset(options)
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 70_001)
    assert sum(row.count(70_000) for row in all_rows(options.out)) >= 2
    size = sum(path.stat().st_size for path in (tmp_path / "corpus").iterdir())
    total = manifest.train_sequences + manifest.validation.sequences
    assert total == (size + 3) // 32, "neither truncated nor padded"
    given = (tmp_path / "given.json").read_bytes()
    assert (options.out / "tokenizer.json").read_bytes() == given


def test_shakespeare_is_plain_text() -> None:
    documents = list(embedded.shakespeare_documents())
    assert len(documents) == 38
    assert 4_800_000 < sum(len(text) for text in documents) < 5_300_000
    hamlet = next(text for text in documents if "To be, or not to be" in text)
    assert "\nHAMLET\n" in hamlet
    assert not any(mark in text for text in documents for mark in ("**", "# ", "_", " \n"))


def test_training_is_deterministic(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus")
    files = []
    for attempt in range(2):
        options = options_for(tmp_path, pattern, tokenizer="train:600", out=tmp_path / str(attempt))
        build_dataset(options)
        files.append((options.out / "tokenizer.json").read_bytes())
    assert files[0] == files[1]
    assert load(files[0]).token_to_id("<|eos|>") == 0


# --- what a build survives -------------------------------------------------------------------


def run_driver(tmp_path: Path, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """One build in its own process. Returns only when its children are gone too: they hold
    the pipes."""
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps(arguments))
    return subprocess.run(
        [sys.executable, str(DRIVER), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A corpus, and the digest of its dataset."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pattern = write_corpus(folder / "corpus", files=40, lines=350)
    manifest = build_dataset(options_for(folder, pattern))
    return pattern, manifest.digest.hex()


@pytest.mark.parametrize(
    ("phase", "count", "workers"),
    [
        ("tokenizer", 1, 1),
        ("tokenizer", 2, 1),
        ("tokenise", 3, 1),
        ("tokenise", 2, 2),
        ("shuffle", 2, 1),
        ("shards", 1, 1),
        ("shards", 20, 1),
        ("publish", 1, 1),
    ],
)
def test_a_killed_build_continues_to_the_same_digest(
    tmp_path: Path, undisturbed: tuple[str, str], phase: str, count: int, workers: int
) -> None:
    pattern, digest = undisturbed
    arguments = {
        "out": str(tmp_path / "out"),
        "text": pattern,
        "tokenizer": BYTES_ONLY,
        "sequence_length": 32,
        "shard_bytes": 8192,
        "buffer_bytes": 4 << 20,
        "workers": workers,
        "checkpoint_s": 0.0,
    }
    killed = run_driver(tmp_path, kill=[phase, count], **arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out" / "dataset.json").exists()
    seen: list[Progress] = []
    options = options_for(tmp_path, pattern, workers=1)
    manifest = build_dataset(options, seen.append)
    assert manifest.digest.hex() == digest
    assert open_folder(tmp_path / "out").manifest == manifest
    assert not (tmp_path / "out" / ".build").exists()
    if phase != "tokenizer":
        assert seen[0].phase == phase, "earlier phases are not done again"


def test_tokenising_continues_in_the_middle(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus", files=40, lines=350)
    options = options_for(tmp_path, pattern, checkpoint_s=0.0)
    seen: list[int] = []

    def stop(progress: Progress) -> None:
        if progress.phase == "tokenise":
            seen.append(progress.done)
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(options, stop)
    again: list[Progress] = []
    build_dataset(options, again.append)
    assert again[0].done > seen[1]


def test_a_full_disk_loses_nothing(tmp_path: Path, undisturbed: tuple[str, str]) -> None:
    pattern, digest = undisturbed
    arguments = {
        "out": str(tmp_path / "out"),
        "text": pattern,
        "tokenizer": BYTES_ONLY,
        "sequence_length": 32,
        "shard_bytes": 8192,
        "workers": 1,
        "checkpoint_s": 0.0,
    }
    full = run_driver(tmp_path, file_limit_bytes=1 << 20, **arguments)
    assert full.returncode == 2, full.stderr
    assert "no space left" in full.stderr
    assert "same command again" in full.stderr
    manifest = build_dataset(options_for(tmp_path, pattern))
    assert manifest.digest.hex() == digest


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    buffer_mb = 4
    pattern = write_corpus(tmp_path / "corpus", files=4, lines=45_000)
    size = sum(path.stat().st_size for path in (tmp_path / "corpus").iterdir())
    assert 2 * size > 5 * (buffer_mb << 20), "two bytes a token: five buffers of tokens"
    done = run_driver(
        tmp_path,
        out=str(tmp_path / "out"),
        text=pattern,
        tokenizer=BYTES_ONLY,
        tokenizer_sample_bytes=1 << 20,
        buffer_bytes=buffer_mb << 20,
        workers=2,
    )
    assert done.returncode == 0, done.stderr
    growth_kib = json.loads(done.stdout)["growth_kib"]
    assert growth_kib < (buffer_mb + 12) * 1024, "buffer, and units under way"


def interrupt(options: BuildOptions) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "shuffle":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(options, stop)


def test_leftovers_of_another_command_are_not_mixed_in(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus")
    options = options_for(tmp_path, pattern)
    interrupt(options)
    other = dataclasses.replace(options, seed=5, sequence_length=16)
    with pytest.raises(UsageError, match=r"\(seed, sequence-length\).*--restart"):
        build_dataset(other)
    fresh = build_dataset(dataclasses.replace(other, restart=True))
    assert fresh.sequence_length == 16


def test_changed_inputs_are_not_mixed_in(tmp_path: Path) -> None:
    pattern = write_corpus(tmp_path / "corpus")
    options = options_for(tmp_path, pattern)
    interrupt(options)
    (tmp_path / "corpus" / "0.txt").write_text("something else")
    with pytest.raises(UsageError, match=r"input files changed.*--restart"):
        build_dataset(options)
    assert build_dataset(dataclasses.replace(options, restart=True)).tokens > 0


def test_a_finished_dataset_is_only_replaced_by_force(tmp_path: Path) -> None:
    options = options_for(tmp_path, write_corpus(tmp_path / "corpus"))
    old = build_dataset(options)
    with pytest.raises(UsageError, match="--force"):
        build_dataset(options)
    forced = dataclasses.replace(options, seed=9, force=True)
    interrupt(forced)
    assert open_folder(options.out).manifest == old, "the old one is whole until the new one is"
    new = build_dataset(forced)
    assert open_folder(options.out).manifest == new
    shards = {shard.file_name for shard in (*new.shards, new.validation)}
    assert {path.name for path in (options.out / "shards").iterdir()} == shards


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    options = options_for(tmp_path, write_corpus(tmp_path / "corpus"))
    build_dataset(options)
    (options.out / "shards" / "notes.txt").write_text("mine")
    build_dataset(dataclasses.replace(options, seed=9, force=True))
    assert (options.out / "shards" / "notes.txt").read_text() == "mine"


def test_two_builds_do_not_share_a_folder(tmp_path: Path) -> None:
    options = options_for(tmp_path, write_corpus(tmp_path / "corpus"))
    with locked(options.out), pytest.raises(UsageError, match="another build"):
        build_dataset(options)
    assert build_dataset(options).tokens > 0


# --- what is refused -------------------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run ``barnraise data ...`` in ``tmp_path``: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["barnraise", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            barnraise.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


GOOD_TEXT = "All the world's a stage, and all the men and women merely players.\n" * 50


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (GOOD_TEXT.encode(), ["--text", "*.md"], "no file matches"),
        (GOOD_TEXT.encode(), ["--text", "."], "is a folder"),
        (b"", ["--text", "*.txt"], "corpus is empty"),
        (b" \n\n", ["--text", "*.txt"], "fills only 0 sequences"),
        (b"too short", ["--text", "*.txt"], "--sequence-length"),
        (b"good\xff", ["--text", "*.txt"], "in.txt: byte 4 is not utf-8"),
        (b"x" * BLOCK_BYTES + b"\xc3", ["--text", "*.txt"], f"byte {BLOCK_BYTES} is not utf-8"),
        (b'{"text": "a"}\n{"text"', ["--jsonl", "*.txt"], "in.txt:2: not a JSON object"),
        (b"[1]", ["--jsonl", "*.txt"], "in.txt:1: not a JSON object but list"),
        (b'{"body": "a"}', ["--jsonl", "*.txt"], "no field 'text'; choose with --field one of"),
        (b'{"text": 3}', ["--jsonl", "*.txt"], "field 'text' is int"),
        (b'{"text": "\xff"}', ["--jsonl", "*.txt"], "in.txt:1: byte 10 of the line"),
        (b"PAR?", ["--parquet", "*.txt"], "not a parquet file"),
        (
            GOOD_TEXT.encode(),
            ["--text", "*.txt", "--tokenizer", "train:9999"],
            "for a vocabulary of",
        ),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--tokenizer", "train:99"], "at least 257"),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--tokenizer", "none.json"], "No such file"),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--tokenizer", "in.txt"], "not a tokenizer.json"),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--encoding", "klingon"], "--encoding"),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--buffer-mb", "1"], "--buffer-mb"),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--sequence-length", "1"], "--sequence-length"),
        (GOOD_TEXT.encode(), ["--text", "*.txt", "--out", "in.txt"], "is a file"),
        (GOOD_TEXT.encode(), ["--text", "a", "--text", "b", *["--licence", "x"] * 3], "3 times"),
    ],
)
def test_bad_input_is_explained(
    tmp_path: Path, command: Any, content: bytes, arguments: list[str], message: str
) -> None:
    (tmp_path / "in.txt").write_bytes(content)
    defaults = ["--out", "data", "--workers", "1", "--quiet", "--tokenizer", BYTES_ONLY]
    code, out, err = command("build", *defaults, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_bad_parquet_columns_are_explained(tmp_path: Path, command: Any) -> None:
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "in.parquet")
    base = ["build", "--parquet", "in.parquet", "--out", "data", "--workers", "1", "--quiet"]
    code, _, err = command(*base)
    assert (code, "no column 'text'; choose with --field one of: n" in err) == (2, True)
    code, _, err = command(*base, "--field", "n")
    assert (code, "is int64, not text" in err) == (2, True)


def test_a_tokenizer_without_an_end_needs_a_name(tmp_path: Path, command: Any) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[END]": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[END]"])
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "in.txt").write_text("a a b a " * 200)
    base = ["build", "--text", "in.txt", "--tokenizer", "t.json", "--out", "data", "--quiet"]
    base += ["--workers", "1"]
    code, _, err = command(*base)
    assert code == 2
    assert "--eos" in err
    assert "[END]" in err
    code, out, _ = command(*base, "--eos", "[END]", "--json")
    assert code == 0
    assert json.loads(out)["vocab_size"] == 3
    assert read_manifest(tmp_path / "data").eos_token_id == 1


def test_latin1_is_read_when_told(tmp_path: Path, command: Any) -> None:
    (tmp_path / "in.txt").write_bytes(("Zwölf Boxkämpfer. " * 100).encode("latin-1"))
    arguments = ["--text", "in.txt", "--out", "data", "--workers", "1", "--tokenizer", BYTES_ONLY]
    code, _, err = command("build", *arguments)
    assert code == 2
    assert "byte 2 is not utf-8" in err
    code, _, _ = command("build", *arguments, "--encoding", "latin-1")
    assert code == 0


def test_utf8_is_decoded_across_blocks(tmp_path: Path) -> None:
    text = "x" + "é" * BLOCK_BYTES
    (tmp_path / "in.txt").write_bytes(text.encode())
    assert "".join(text_blocks(tmp_path / "in.txt", "utf-8")) == text


def test_build_and_inspect_on_the_command_line(tmp_path: Path, command: Any) -> None:
    (tmp_path / "in.txt").write_text(GOOD_TEXT)
    code, out, err = command(
        *["build", "--text", "in.txt", "--out", "data", "--workers", "1", "--json"],
        *["--tokenizer", BYTES_ONLY, "--sequence-length", "64", "--source-name", "Jaques"],
    )
    assert code == 0, err
    assert "Tokenise" in err, "plain lines of progress without a terminal"
    assert "no --licence" in err
    built = json.loads(out)
    code, out, _ = command("inspect", "data", "--verify", "--json")
    assert code == 0
    assert json.loads(out) == built | {"verified": True}
    code, out, _ = command("inspect", "data")
    assert (code, "Jaques: 1 files, 1 documents" in out) == (0, True)
    digest = DatasetManifest.parse((tmp_path / "data" / "dataset.json").read_bytes()).digest
    assert built["digest"] == digest.hex()


def test_inspect_finds_damage(tmp_path: Path, command: Any) -> None:
    (tmp_path / "in.txt").write_text(GOOD_TEXT)
    arguments = ["--text", "in.txt", "--out", "data", "--workers", "1", "--tokenizer", BYTES_ONLY]
    assert command("build", *arguments, "--quiet")[0] == 0
    shard = next((tmp_path / "data" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-2] + b"\0\1")
    code, out, err = command("inspect", "data", "--verify")
    assert (code, out) == (1, "")
    assert shard.name in err
    code, _, err = command("inspect", "nowhere")
    assert (code, "not a dataset folder" in err) == (2, True)


def test_help_is_quick_and_shows_examples(command: Any) -> None:
    code, out, _ = command("build", "--help")
    assert code == 0
    assert "barnraise data build --text" in out
    check = (
        "import sys; import coordinator.data.cli; "
        "sys.exit(any(name in sys.modules for name in "
        "('torch', 'pyarrow', 'tokenizers', 'numpy', 'rich.progress')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
