"""The run's public files, by SHA-256, in bounded pieces.

Invariants:

* Only files of the run can be asked for, by digest: no request names a path.
* One piece per reader is in memory at a time, read in a thread; gRPC's flow control paces it.
* A dataset's file is hashed before it is first sent, and again when its size or time changed: a
  damaged one is the organiser's to mend, and sending it would help nobody. The reader hashes the
  whole too, and may resume at any offset.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from coordinator.checkpoints import MOMENTUM, WEIGHTS, CheckpointStore
from protocol.dataset import DatasetManifest
from protocol.digest import file_sha256
from protocol.errors import BadRecord, NotFound
from protocol.limits import MAX_PIECE_BYTES
from protocol.wire import service_pb2

SHA256_BYTES = 32

_log = structlog.get_logger()


@dataclass(frozen=True)
class Blob:
    """A file that may be sent to anyone."""

    total_bytes: int
    read: Callable[[int, int], bytes]  # (offset, length); blocks

    async def pieces(self, offset: int) -> AsyncIterator[service_pb2.Piece]:
        """The bytes from ``offset`` to the end, at most 1 MiB at a time.

        Raises:
            BadRecord: the offset is beyond the end.
            NotFound: the file went away meanwhile.
        """
        if offset > self.total_bytes:
            raise BadRecord(f"offset {offset} is beyond the {self.total_bytes} bytes of the file")
        while True:
            try:
                data = await asyncio.to_thread(self.read, offset, MAX_PIECE_BYTES)
            except FileNotFoundError as error:
                raise NotFound(
                    "the file was removed meanwhile: ask for the newest state"
                ) from error
            yield service_pb2.Piece(offset=offset, total_bytes=self.total_bytes, data=data)
            offset += len(data)
            if offset >= self.total_bytes or not data:
                return


class BlobIndex:
    """Finds the run's files by digest."""

    def __init__(
        self, folder: Path, dataset: DatasetManifest, checkpoints: CheckpointStore
    ) -> None:
        """Index a dataset folder.

        Args:
            folder: holds ``dataset.json``, ``tokenizer.json`` and ``shards/``.
            dataset: its manifest.
            checkpoints: the run's states.
        """
        self._checkpoints = checkpoints
        self._files = {
            hashlib.sha256(dataset.canonical()).hexdigest(): folder / "dataset.json",
            dataset.tokenizer_sha256: folder / "tokenizer.json",
        }
        for shard in (*dataset.shards, dataset.validation):
            self._files[shard.sha256] = folder / "shards" / f"{shard.sha256}.bin"
        self._verified: dict[str, tuple[int, int]] = {}  # sha256 -> (bytes, mtime_ns)

    async def find(self, sha256: bytes) -> Blob:
        """A public file by its digest.

        Raises:
            BadRecord: not a SHA-256.
            NotFound: no file of this run.
        """
        if len(sha256) != SHA256_BYTES:
            raise BadRecord("a digest is 32 bytes")
        path = self._files.get(sha256.hex())
        return await asyncio.to_thread(self._open_file if path else self._open_state, sha256)

    async def state(self, kind: str, sha256: bytes) -> Blob:
        """A checkpoint's file by kind and digest.

        Raises:
            NotFound: not kept, or not any more.
        """
        return await asyncio.to_thread(self._checkpoint, kind, sha256)

    def _open_file(self, sha256: bytes) -> Blob:
        path = self._files[sha256.hex()]
        try:
            status = path.stat()
            self._verify(path, sha256.hex(), (status.st_size, status.st_mtime_ns))
        except OSError as error:
            _log.error("dataset_file_lost", path=str(path), problem=error.strerror)
            raise NotFound(
                f"the coordinator lost {path.name}: the organiser must restore the dataset folder"
            ) from error
        return Blob(status.st_size, lambda offset, length: _read(path, offset, length))

    def _verify(self, path: Path, sha256: str, stamp: tuple[int, int]) -> None:
        if self._verified.get(sha256) == stamp:
            return
        if file_sha256(path) != sha256:
            _log.error("dataset_file_damaged", path=str(path), advice="restore it from a copy")
            raise NotFound(
                f"the coordinator's copy of {path.name} is damaged: the organiser must restore the "
                "dataset folder"
            )
        self._verified[sha256] = stamp

    def _open_state(self, sha256: bytes) -> Blob:
        for kind in (WEIGHTS, MOMENTUM):
            if self._checkpoints.contains(kind, sha256):
                return self._checkpoint(kind, sha256)
        raise NotFound(f"no file {sha256.hex()[:16]}... belongs to this run, or it is kept no more")

    def _checkpoint(self, kind: str, sha256: bytes) -> Blob:
        try:
            total_bytes = self._checkpoints.size(kind, sha256)
        except FileNotFoundError as error:
            raise NotFound(
                "this state is kept no more: ask for work again to get the newest"
            ) from error
        store = self._checkpoints
        return Blob(total_bytes, lambda offset, length: store.read(kind, sha256, offset, length))


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
