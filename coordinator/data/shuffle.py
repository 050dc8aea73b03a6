"""A seeded permutation of the sequences, through the disk.

Invariants:

* Sequence i has a 64-bit key, word i of a Philox stream keyed by the seed; the order is by
  (key, i). So the permutation depends on the seed and the number of sequences alone, never on
  the size of the buffer or of a bucket.
* Memory stays within the buffer: sequences are scattered by the top bits of their key into
  bucket files, and a bucket that is still too large is scattered again by the next bits.

Source: external radix distribution (Knuth, TAOCP 3, 5.2.5 and 5.4.7); Philox: Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_DOMAIN = b"barnraise-shuffle/1"
MAX_BUCKETS_LOG2 = 10
_KEY_BITS = 64
_WORDS_PER_BLOCK = 4  # of one Philox 4x64 counter

Records = NDArray[np.void]  # key, tokens


def sort_keys(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Keys of sequences ``start .. start + count``."""
    key = int.from_bytes(hashlib.sha256(KEY_DOMAIN + seed.to_bytes(8, "big")).digest()[:16], "big")
    block, offset = divmod(start, _WORDS_PER_BLOCK)
    generator = np.random.Philox(key=key, counter=block)
    words = generator.random_raw(offset + count)
    return np.asarray(words, dtype=np.uint64)[offset:]


class Shuffler:
    """Scatters packed sequences into buckets under ``folder`` and reads them back in order."""

    def __init__(self, folder: Path, dtype: str, length: int, buffer_bytes: int) -> None:
        token = np.dtype(dtype).newbyteorder("<")
        self._folder = folder
        self._token = token
        self._length = length
        self._record = np.dtype([("key", "<u8"), ("tokens", token, (length,))])
        # Scattering holds a block four times (tokens, records, order, sorted records), reading
        # a bucket holds it twice.
        self._block = max(1, buffer_bytes // (8 * self._record.itemsize))
        self._bucket = max(1, buffer_bytes // (4 * self._record.itemsize))

    def scatter(
        self, tokens: Path, sequences: int, seed: int, on_block: Callable[[int], None]
    ) -> None:
        """Distribute the first ``sequences`` sequences of a token file into buckets.

        Starts from nothing: an earlier, interrupted attempt is removed.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        bits = self._bits(sequences)
        with tokens.open("rb") as stream:
            for start in range(0, sequences, self._block):
                count = min(self._block, sequences - start)
                records = np.empty(count, dtype=self._record)
                records["key"] = sort_keys(seed, start, count)
                flat = np.fromfile(stream, dtype=self._token, count=count * self._length)
                records["tokens"] = flat.reshape(count, self._length)
                self._distribute(records, self._folder, 0, bits)
                on_block(start + count)

    def ordered(self, skip: int = 0) -> Iterator[NDArray[Any]]:
        """The shuffled sequences from number ``skip`` on, as arrays ``[n, length]``."""
        yield from self._ordered(self._folder, skip, used=0)

    def _ordered(self, folder: Path, skip: int, used: int) -> Iterator[NDArray[Any]]:
        for bucket in sorted(folder.iterdir()):
            if not bucket.is_file():
                continue  # a part of an interrupted second scattering
            count = bucket.stat().st_size // self._record.itemsize
            if skip >= count:
                skip -= count
                continue
            if count > self._bucket and used < _KEY_BITS:
                yield from self._ordered_large(bucket, count, skip, used)
            else:
                yield self._sorted(bucket)[skip:]
            skip = 0

    def _ordered_large(
        self, bucket: Path, count: int, skip: int, used: int
    ) -> Iterator[NDArray[Any]]:
        # The bits that all its keys share are those of its name.
        used += int(bucket.suffix.removeprefix("."))
        folder = bucket.with_suffix(".parts")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        bits = max(1, self._bits(count))
        with bucket.open("rb") as stream:
            while (records := np.fromfile(stream, self._record, self._block)).size:
                self._distribute(records, folder, used, bits)
        yield from self._ordered(folder, skip, used)
        shutil.rmtree(folder)

    def _sorted(self, bucket: Path) -> NDArray[Any]:
        records = np.fromfile(bucket, dtype=self._record)
        # Stable, and buckets keep the order of arrival: equal keys stay in sequence order.
        order = np.argsort(records["key"], kind="stable")
        tokens: NDArray[Any] = records["tokens"][order]
        return tokens

    def _bits(self, sequences: int) -> int:
        """Buckets (log2) so that each is about half of what may be sorted in memory."""
        wanted = max(1, -(-2 * sequences // self._bucket))
        return min(MAX_BUCKETS_LOG2, (wanted - 1).bit_length())

    def _distribute(self, records: Records, folder: Path, used: int, bits: int) -> None:
        if bits == 0:
            numbers = np.zeros(len(records), dtype=np.uint64)
        else:
            numbers = (records["key"] << np.uint64(used)) >> np.uint64(_KEY_BITS - bits)
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        present, firsts = np.unique(numbers, return_index=True)
        for number, part in zip(present, np.split(order, firsts[1:]), strict=True):
            with (folder / f"{int(number):05d}.{bits}").open("ab") as stream:
                stream.write(records[part].view(np.uint8).data)
