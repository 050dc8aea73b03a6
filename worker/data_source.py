"""The data of a unit, as verified local files.

Invariant: a shard is read only after its SHA-256, from the dataset manifest that the run manifest
names, was right.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from protocol.dataset import DatasetManifest, SequenceReader
from protocol.errors import BadDigest, TransientError, UsageError
from protocol.limits import MAX_MANIFEST_BYTES
from protocol.manifest import RunManifest
from worker.session import Session
from worker.shards import BlobStore

log = structlog.get_logger()


class DataSource:
    """Fetches dataset manifest and shards once, through the blob cache."""

    def __init__(self, manifest: RunManifest, session: Session, blobs: BlobStore) -> None:
        self._sha256 = bytes.fromhex(manifest.dataset_sha256)
        self._manifest = manifest
        self._session = session
        self._blobs = blobs
        self._dataset: DatasetManifest | None = None

    async def dataset_file(self) -> Path:
        """The dataset manifest's file.

        Raises:
            TransientError: it cannot be fetched now.
            UsageError: it is not understood, or does not fit the run.
        """
        path = await self._blob(self._sha256, None, MAX_MANIFEST_BYTES)
        if self._dataset is None:
            dataset = DatasetManifest.parse(await asyncio.to_thread(path.read_bytes))
            if dataset.sequence_length != self._manifest.sequence_length:
                raise UsageError(
                    "the dataset's sequence length is not the run's: tell the organiser"
                )
            self._dataset = dataset
        return path

    async def shards(self, start: int, end: int) -> dict[str, Path]:
        """Verified files of the shards that hold sequences [start, end), by SHA-256 in hex."""
        await self.dataset_file()
        assert self._dataset is not None
        reader = SequenceReader(self._dataset, lambda digest: self._blobs.path(_raw(digest)))
        return {
            shard.sha256: await self._blob(_raw(shard.sha256), shard.bytes, shard.bytes)
            for shard in reader.needed(start, end)
        }

    async def _blob(self, sha256: bytes, total_bytes: int | None, limit_bytes: int) -> Path:
        path = await asyncio.to_thread(self._blobs.find, sha256)
        if path is not None:
            return path
        target = self._blobs.partial(sha256)
        try:
            await self._session.download_blob(
                sha256, target, total_bytes=total_bytes, limit_bytes=limit_bytes
            )
        except BadDigest as error:
            raise TransientError(f"{error}; will ask again") from error
        await asyncio.to_thread(self._blobs.adopt, target, sha256)
        log.info("data fetched", sha256=sha256.hex()[:16])
        return self._blobs.path(sha256)


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest)
