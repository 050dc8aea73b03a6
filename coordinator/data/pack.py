"""Token files that grow: the spool of packed text, and shards named by their digest.

Invariants:

* Packing is concatenation: documents in corpus order, an end-of-document id after each; sequence
  i is tokens ``[i * length, (i + 1) * length)``; what does not fill the last one is left out.
* The spool is cut back to its last journalled length before anything is appended.
* A shard gets its final name only when it is complete and on the disk.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from protocol.dataset import ShardInfo


class Spool:
    """A file that is appended to, from a journalled length on."""

    def __init__(self, path: Path, length_bytes: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._stream = os.fdopen(descriptor, "r+b")
        self._stream.truncate(length_bytes)
        self._stream.seek(length_bytes)

    def append(self, data: bytes) -> None:
        self._stream.write(data)

    def sync(self) -> int:
        """Bring everything to the disk; returns the length in bytes."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # A full disk fails the flush of what is buffered too; the journal knows nothing of it.
        try:
            self._stream.close()
        except OSError:
            if exception[0] is None:
                raise


class ShardWriter:
    """Writes one shard after another, each under a temporary name until it is finished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "partial"
        self._begin()

    def _begin(self) -> None:
        self._stream = self._path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self.sequences = 0
        self._bytes = 0

    def write(self, rows: NDArray[Any]) -> None:
        """Append contiguous rows ``[n, length]``."""
        view = rows.reshape(-1).view(np.uint8).data
        self._digest.update(view)
        self.sequences += len(rows)
        self._bytes += len(view)
        while view:
            view = view[self._stream.write(view) :]

    def finish(self) -> ShardInfo:
        """Sync, name and describe the shard; what is written next begins another."""
        os.fsync(self._stream.fileno())
        self._stream.close()
        info = ShardInfo(
            sha256=self._digest.hexdigest(), sequences=self.sequences, bytes=self._bytes
        )
        self._path.replace(self._folder / info.file_name)
        self._begin()
        return info

    def close(self) -> None:
        """Drop a shard that was begun."""
        self._stream.close()
