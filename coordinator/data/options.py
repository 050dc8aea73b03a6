"""What a build is asked to do, and what it tells while it does it.

Invariant: two builds with equal :meth:`BuildOptions.result_key` and equal input files make the
same dataset, byte for byte. Everything that is not in the key (workers, buffer, checkpoints)
only changes how fast and with how much memory.
"""

from __future__ import annotations

import encodings
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from protocol.errors import UsageError

InputKind = Literal["text", "jsonl", "parquet", "shakespeare"]
Phase = Literal["tokenizer", "tokenise", "shuffle", "shards", "publish"]
PHASES: tuple[Phase, ...] = get_args(Phase)

MIN_BUFFER_BYTES = 4 << 20
MIN_SHARD_BYTES = 4 << 10
_BYTES_PER_WORKER = 8 << 20
"""Tokenised in about the time that a process takes to start."""


@dataclass(frozen=True)
class Input:
    """One ``--text``, ``--jsonl``, ``--parquet`` or ``--embedded``."""

    kind: InputKind
    pattern: str = ""  # glob; empty for an embedded corpus
    field: str = "text"  # of a JSON object, or a parquet column
    name: str = ""  # in the manifest; default: the pattern
    licence: str = ""  # default: that of an embedded corpus, else "not stated"


@dataclass(frozen=True)
class BuildOptions:
    out: Path
    inputs: tuple[Input, ...]
    tokenizer: str = "train:8192"  # or the path of a tokenizer.json
    eos: str | None = None  # end-of-document token; found by its usual names if not given
    tokenizer_sample_bytes: int = 64 << 20
    sequence_length: int = 256
    seed: int = 0
    shard_bytes: int = 16 << 20
    validation_fraction: float = 0.01
    separator: str | None = None  # between documents in a text file; default: one per file
    encoding: str = "utf-8"
    buffer_bytes: int = 256 << 20
    workers: int = 0  # 0: one per available core, fewer for little text
    force: bool = False
    restart: bool = False
    checkpoint_s: float = 2.0

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            UsageError: naming the option and its bounds.
        """
        _require(bool(self.inputs), "give at least one input")
        for item in self.inputs:
            _require(len(item.name) <= 200, "--source-name is longer than 200 characters")
            _require(len(item.licence) <= 200, "--licence is longer than 200 characters")
        _require(2 <= self.sequence_length <= 1 << 20, "--sequence-length must be 2 to 1048576")
        _require(0 <= self.seed < 1 << 53, "--seed must be 0 to 2^53-1")
        _require(0 < self.validation_fraction < 1, "--validation-fraction must be between 0 and 1")
        _require(
            self.shard_bytes >= MIN_SHARD_BYTES, f"--shard-bytes must be {MIN_SHARD_BYTES} or more"
        )
        _require(
            self.buffer_bytes >= MIN_BUFFER_BYTES,
            f"--buffer-mb must be {MIN_BUFFER_BYTES >> 20} or more",
        )
        _require(self.workers >= 0, "--workers must not be negative")
        _require(self.separator is None or 0 < len(self.separator) <= 1000, "--separator is empty")
        _require(
            _is_text_encoding(self.encoding),
            f"--encoding {self.encoding} is not known; try utf-8, latin-1 or utf-16",
        )

    def worker_count(self, text_bytes: int) -> int:
        """Tokenising processes for so much text; 1 means none besides this one."""
        worth_it = max(1, text_bytes // _BYTES_PER_WORKER)
        return self.workers or min(len(os.sched_getaffinity(0)), worth_it)

    def result_key(self) -> dict[str, object]:
        """The options that decide the result, as JSON values."""
        return {
            "inputs": [asdict(item) for item in self.inputs],
            "tokenizer": self.tokenizer,
            "eos": self.eos,
            "tokenizer_sample_bytes": self.tokenizer_sample_bytes,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "shard_bytes": self.shard_bytes,
            "validation_fraction": self.validation_fraction,
            "separator": self.separator,
            "encoding": self.encoding,
        }


@dataclass(frozen=True)
class Progress:
    """How far a phase has come. ``total`` is 0 while it is not known."""

    phase: Phase
    done: int
    total: int
    unit: Literal["bytes", "sequences"]


ProgressCallback = Callable[[Progress], None]


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)


def _is_text_encoding(name: str) -> bool:
    # Only Python's own: an installed package may register a codec that answers to every name.
    if encodings.search_function(name.lower()) is None:
        return False
    try:
        "a".encode(name)  # bytes-to-bytes codecs such as hex refuse
    except LookupError:
        return False
    return True
