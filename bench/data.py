"""Text to dataset: ``barnraise data build`` against the same tokenizer called plainly.

The text is the source of an installed package, a document a file, nearly all of it ASCII. Plainly
means ``encode_batch_fast`` of the ``tokenizers`` package, which divides a batch of documents among
its own threads, and then, for the whole build, what one writes around it: concatenate, permute the
sequences in memory, write. Ours works in bounded memory, goes on after a kill, and hashes what it
reads and writes; its processes are started within its time. Both start with empty caches, and come
to the same tokens, which is checked.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.report import Row, ratio_columns, write_report
from coordinator.data import tokenizer as tokenizers_of_ours
from coordinator.data.build import build_dataset
from coordinator.data.inputs import InputFile, find_files
from coordinator.data.options import BuildOptions, Input
from coordinator.data.readers import FRAGMENT_CHARS
from coordinator.data.tokenise import Cursor, Encoder, encode_units, read_units
from protocol.dataset import SHARDS_NAME

SEQUENCE_LENGTH, VOCABULARY = 256, 4096
_BATCH_DOCUMENTS = 1000
"""As in the examples of the libraries that map over a text."""

NOTE = (
    "{mb:.1f} MB of Python, a byte-level BPE of {words:,} tokens, {cores} cores; by the clock, "
    "medians of {turns} turns of both; ratio = ours / plain within a turn"
)

Tokens = NDArray[np.uint16]


def run(quick: bool) -> list[Row]:
    """Measure and report; ``quick`` only proves that it runs."""
    turns, most_bytes = (1, 1 << 20) if quick else (3, 16 << 20)
    with tempfile.TemporaryDirectory() as name:
        corpus = _Corpus.of(Path(name), most_bytes)
        rows = [
            _compare(
                "tokenise, one process", corpus, turns, _plain_tokens_alone, _our_tokens_alone
            ),
            _compare("tokenise, all cores", corpus, turns, _plain_tokens, _our_tokens),
            _compare("whole build, all cores", corpus, turns, _plain_build, _our_build),
        ]
    note = NOTE.format(
        mb=corpus.size_bytes / 1e6, words=VOCABULARY, cores=os.cpu_count(), turns=turns
    )
    write_report("data-quick" if quick else "data", rows, note=note)
    return rows


@dataclass
class _Corpus:
    """Files, and a tokenizer of them."""

    folder: Path
    options: BuildOptions
    files: list[InputFile]
    size_bytes: int
    tokenizer: bytes
    eos: int

    @classmethod
    def of(cls, folder: Path, most_bytes: int) -> _Corpus:
        texts = folder / "texts"
        texts.mkdir()
        total = 0
        for number, path in enumerate(sorted(Path(transformers.__file__).parent.rglob("*.py"))):
            data = path.read_bytes()
            # Longer ones are read in fragments, so as to bound memory.
            if data.strip() and len(data) < FRAGMENT_CHARS and total + len(data) <= most_bytes:
                (texts / f"{number:05d}.txt").write_bytes(data)
                total += len(data)
        tokenizer = folder / "tokenizer.json"
        options = BuildOptions(
            out=folder / "dataset",
            inputs=(Input("text", f"{texts}/*.txt"),),
            tokenizer=f"train:{VOCABULARY}",
            tokenizer_sample_bytes=2 << 20,
            sequence_length=SEQUENCE_LENGTH,
            force=True,
        )
        files = find_files(options)
        tokenizer.write_bytes(tokenizers_of_ours.train(options, files))
        data = tokenizer.read_bytes()
        eos = tokenizers_of_ours.inspect(tokenizers_of_ours.load(data), None).eos_token_id
        options = BuildOptions(**{**options.__dict__, "tokenizer": str(tokenizer)})
        return cls(folder, options, files, total, data, eos)


def _compare(
    what: str,
    corpus: _Corpus,
    turns: int,
    plainly: Callable[[_Corpus], Tokens],
    ours: Callable[[_Corpus], Tokens],
) -> Row:
    found: list[tuple[float, float]] = []
    for _ in range(turns):
        plain_s, expected = _seconds(plainly, corpus)
        ours_s, tokens = _seconds(ours, corpus)
        assert np.array_equal(np.sort(expected), np.sort(tokens)), "not the same tokens"
        found.append((plain_s, ours_s))
    plain_s, ours_s = map(statistics.median, zip(*found, strict=True))
    ratios = [turn[0] / turn[1] for turn in found]
    return {
        "what": what,
        "plain_MB_per_s": round(corpus.size_bytes / 1e6 / plain_s, 2),
        "ours_MB_per_s": round(corpus.size_bytes / 1e6 / ours_s, 2),
        "plain_tokens_per_s": round(len(tokens) / plain_s),
        "ours_tokens_per_s": round(len(tokens) / ours_s),
        **ratio_columns(ratios, digits=2),
    }


def _seconds(work: Callable[[_Corpus], Tokens], corpus: _Corpus) -> tuple[float, Tokens]:
    begun_s = time.monotonic()
    tokens = work(corpus)
    return time.monotonic() - begun_s, tokens


# ---- ours ------------------------------------------------------------------------------


def _our_tokens_alone(corpus: _Corpus) -> Tokens:
    encoder = Encoder(corpus.tokenizer, corpus.eos, "uint16")
    units = read_units(corpus.options, corpus.files, Cursor())
    return _joined([encoder.encode(unit.fragments) for unit in units])


def _our_tokens(corpus: _Corpus) -> Tokens:
    units = read_units(corpus.options, corpus.files, Cursor())
    workers = corpus.options.worker_count(corpus.size_bytes)
    encoded = encode_units(units, workers, corpus.tokenizer, corpus.eos, "uint16")
    return _joined([data for _, data in encoded])


def _our_build(corpus: _Corpus) -> Tokens:
    manifest = build_dataset(corpus.options)
    shards = corpus.options.out / SHARDS_NAME
    parts = [shards / shard.file_name for shard in (manifest.validation, *manifest.shards)]
    return _joined([part.read_bytes() for part in parts])


# ---- plainly ---------------------------------------------------------------------------


def _plain_tokens_alone(corpus: _Corpus) -> Tokens:
    return _encoded_plainly(corpus, parallel=False)


def _plain_tokens(corpus: _Corpus) -> Tokens:
    return _encoded_plainly(corpus, parallel=True)


def _encoded_plainly(corpus: _Corpus, *, parallel: bool) -> Tokens:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
    tokenizer = Tokenizer.from_str(corpus.tokenizer.decode())
    tokenizer.encode_special_tokens = True
    parts: list[bytes] = []
    for start in range(0, len(corpus.files), _BATCH_DOCUMENTS):
        files = corpus.files[start : start + _BATCH_DOCUMENTS]
        texts = [file.path.read_bytes().decode() for file in files]
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, corpus.eos], "<u2").tobytes())
    return _joined(parts)


def _plain_build(corpus: _Corpus) -> Tokens:
    tokens = _encoded_plainly(corpus, parallel=True)
    sequences = tokens[: len(tokens) // SEQUENCE_LENGTH * SEQUENCE_LENGTH]
    rows = np.random.default_rng(0).permutation(sequences.reshape(-1, SEQUENCE_LENGTH))
    with (corpus.folder / "plain.bin").open("wb") as file:
        rows.tofile(file)
        os.fsync(file.fileno())
    return rows.reshape(-1)


def _joined(parts: list[bytes]) -> Tokens:
    return np.frombuffer(b"".join(parts), "<u2")
