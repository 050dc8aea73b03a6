"""A dataset: packed token shards, their manifest, and the order of the sequences.

Invariants:

* The manifest is canonical JSON (RFC 8785); its SHA-256 names the dataset. What is not canonical
  or not fully understood is refused.
* A shard is raw little-endian token ids, ``sequences * sequence_length`` of them and nothing
  else, in a file named ``<sha256>.bin``.
* The order is fixed at build time: shuffled once, by sequence, with the recorded seed. A run
  reads training sequences ``0 .. train_sequences`` in order, so a lease is a range.
* The validation shard holds sequences that are in no training shard.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import rfc8785
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.digest import file_sha256
from protocol.errors import BadDigest, BadRecord, UsageError
from protocol.limits import MAX_MANIFEST_BYTES
from protocol.manifest import Hex256, explain_validation

DATASET_FORMAT: Final = "barnraise-dataset/1"
MANIFEST_NAME: Final = "dataset.json"
TOKENIZER_NAME: Final = "tokenizer.json"
SHARDS_NAME: Final = "shards"
MAX_SHARDS: Final = 4000
"""Keeps a manifest under ``MAX_MANIFEST_BYTES`` at about 150 bytes a shard."""
MAX_SOURCES: Final = 256

_JSON_INTEGER_LIMIT = 1 << 53  # RFC 8785: integers beyond it do not survive JSON
_UINT16_VOCAB = 1 << 16

Dtype = Literal["uint16", "uint32"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ShardInfo(_Frozen):
    """One shard: what it must hash to and how much it holds."""

    sha256: Hex256
    sequences: int = Field(gt=0, lt=1 << 40)
    bytes: int = Field(gt=0, lt=_JSON_INTEGER_LIMIT)

    @property
    def file_name(self) -> str:
        return f"{self.sha256}.bin"


class Source(_Frozen):
    """Where text came from. ``sha256`` is of the list of its files in ``sha256sum`` format."""

    name: str = Field(min_length=1, max_length=200)
    licence: str = Field(min_length=1, max_length=200)
    files: int = Field(gt=0, lt=_JSON_INTEGER_LIMIT)
    documents: int = Field(ge=0, lt=_JSON_INTEGER_LIMIT)
    bytes: int = Field(ge=0, lt=_JSON_INTEGER_LIMIT)
    sha256: Hex256


class DatasetManifest(_Frozen):
    format: Literal["barnraise-dataset/1"] = DATASET_FORMAT
    dtype: Dtype
    sequence_length: int = Field(gt=1, le=1 << 20)
    vocab_size: int = Field(gt=1, lt=1 << 31)
    eos_token_id: int = Field(ge=0)
    tokenizer_sha256: Hex256
    shuffle_seed: int = Field(ge=0, lt=_JSON_INTEGER_LIMIT)
    shards: tuple[ShardInfo, ...] = Field(min_length=1, max_length=MAX_SHARDS)
    validation: ShardInfo
    sources: tuple[Source, ...] = Field(min_length=1, max_length=MAX_SOURCES)
    licence: str = Field(min_length=1, max_length=2000)
    tokens: int = Field(gt=0, lt=_JSON_INTEGER_LIMIT)  # of the training shards

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.eos_token_id >= self.vocab_size:
            raise ValueError("eos_token_id is outside the vocabulary")
        if self.dtype == "uint16" and self.vocab_size > _UINT16_VOCAB:
            raise ValueError("vocab_size does not fit uint16")
        for shard in (*self.shards, self.validation):
            if shard.bytes != shard.sequences * self.sequence_bytes:
                raise ValueError(f"shard {shard.sha256}: bytes and sequences do not agree")
        if self.tokens != self.train_sequences * self.sequence_length:
            raise ValueError("tokens is not the sum over the training shards")
        return self

    @property
    def sequence_bytes(self) -> int:
        """Bytes of one sequence in a shard."""
        return self.sequence_length * np.dtype(self.dtype).itemsize

    @property
    def train_sequences(self) -> int:
        """Training sequences of one epoch."""
        return sum(shard.sequences for shard in self.shards)

    def canonical(self) -> bytes:
        """RFC 8785 bytes: what is hashed, stored and sent."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> bytes:
        """SHA-256 of :meth:`canonical`, 32 bytes: the dataset's name."""
        return hashlib.sha256(self.canonical()).digest()

    @classmethod
    def parse(cls, data: bytes) -> DatasetManifest:
        """Read a manifest, refusing what is oversized, not canonical or not understood.

        Raises:
            UsageError: with the offending field and what to do.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise UsageError(f"dataset manifest of more than {MAX_MANIFEST_BYTES} bytes")
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            raise UsageError(explain_validation("dataset manifest", error)) from error
        if manifest.canonical() != data:
            raise UsageError(
                "the dataset manifest is not in canonical form (RFC 8785): fetch it again"
            )
        return manifest


def dtype_for(vocab_size: int) -> Dtype:
    """The smallest token type that holds every id."""
    return "uint16" if vocab_size <= _UINT16_VOCAB else "uint32"


def verify_shard(path: Path, shard: ShardInfo) -> None:
    """Check size, then digest, of a shard file.

    Raises:
        BadDigest: the file is missing, short, long, or hashes to something else.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadDigest(
            f"shard {path} cannot be read ({error.strerror}): restore it from a copy"
        ) from error
    if size != shard.bytes:
        raise BadDigest(f"shard {path} has {size} bytes, not {shard.bytes}: restore it from a copy")
    found = file_sha256(path)
    if found != shard.sha256:
        raise BadDigest(
            f"shard {path} is damaged (it hashes to {found[:16]}...): restore it from a copy, or "
            "build the dataset again"
        )


class SequenceReader:
    """Reads sequences of a dataset by their place in the epoch.

    Files are mapped for the time of one call only, so a shard cache may evict them in between.
    """

    def __init__(self, manifest: DatasetManifest, resolve: Callable[[str], Path]) -> None:
        """``resolve`` gives the local, already verified file of a shard's SHA-256."""
        self.manifest = manifest
        self._resolve = resolve
        counts = (shard.sequences for shard in manifest.shards)
        self._starts = list(itertools.accumulate(counts, initial=0))

    def needed(self, start: int, end: int) -> list[ShardInfo]:
        """The shards that hold training sequences ``[start, end)``, in order.

        Raises:
            BadRecord: the range is empty or not within the epoch.
        """
        return [shard for shard, _, _ in self._pieces(start, end)]

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        """Training sequences ``[start, end)`` of the epoch: int64 ``[end - start, length]``.

        Raises:
            BadRecord: the range is not within the epoch, or an id is outside the vocabulary.
            BadDigest: a shard file is missing or has the wrong size.
        """
        parts = [self._read(shard, first, last) for shard, first, last in self._pieces(start, end)]
        return np.concatenate(parts)

    def validation(self, max_sequences: int | None = None) -> NDArray[np.int64]:
        """The first ``max_sequences`` held-out sequences (default: all), int64 ``[n, length]``.

        Raises:
            BadRecord, BadDigest: as :meth:`batch`.
        """
        shard = self.manifest.validation
        count = shard.sequences if max_sequences is None else min(max_sequences, shard.sequences)
        return self._read(shard, 0, count)

    def _pieces(self, start: int, end: int) -> list[tuple[ShardInfo, int, int]]:
        total = self._starts[-1]
        if not 0 <= start < end <= total:
            raise BadRecord(f"sequences [{start}, {end}) are not within the epoch's {total}")
        pieces = []
        index = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            base, limit = self._starts[index], self._starts[index + 1]
            last = min(end, limit)
            pieces.append((self.manifest.shards[index], start - base, last - base))
            start, index = last, index + 1
        return pieces

    def _read(self, shard: ShardInfo, first: int, last: int) -> NDArray[np.int64]:
        path = self._resolve(shard.sha256)
        length = self.manifest.sequence_length
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        try:
            if path.stat().st_size != shard.bytes:
                raise BadDigest(f"shard {path} has the wrong size: fetch it again")
            tokens = np.memmap(path, dtype=dtype, mode="r", shape=(shard.sequences, length))
        except OSError as error:
            raise BadDigest(f"shard {path} cannot be read ({error.strerror})") from error
        rows = tokens[first:last].astype(np.int64)
        if rows.size and int(rows.max()) >= self.manifest.vocab_size:
            raise BadRecord(f"shard {shard.sha256} holds a token id outside the vocabulary")
        return rows


def read_manifest(folder: Path) -> DatasetManifest:
    """The manifest of a dataset folder.

    Raises:
        UsageError: there is none, it is too large, or it is not understood.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{folder} is not a dataset folder ({path.name}: {error.strerror}): "
            "build one with 'barnraise data build'"
        ) from error
    return DatasetManifest.parse(data)


def folder_reader(folder: Path, manifest: DatasetManifest) -> SequenceReader:
    """A reader over a folder whose files are known to be good; verifies nothing."""
    return SequenceReader(manifest, lambda sha256: folder / SHARDS_NAME / f"{sha256}.bin")


def verify_folder(folder: Path, manifest: DatasetManifest) -> None:
    """Check every shard and the tokenizer against the manifest.

    Raises:
        BadDigest: naming the first file that is missing or damaged.
    """
    for shard in (*manifest.shards, manifest.validation):
        verify_shard(folder / SHARDS_NAME / shard.file_name, shard)
    tokenizer = folder / TOKENIZER_NAME
    try:
        found = file_sha256(tokenizer)
    except OSError as error:
        raise BadDigest(f"{tokenizer} cannot be read ({error.strerror})") from error
    if found != manifest.tokenizer_sha256:
        raise BadDigest(f"{tokenizer} is not the dataset's tokenizer: its digest differs")


def open_folder(folder: Path) -> SequenceReader:
    """Open a dataset folder after verifying every digest in it.

    Raises:
        UsageError: not a dataset folder.
        BadDigest: a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    verify_folder(folder, manifest)
    return folder_reader(folder, manifest)
