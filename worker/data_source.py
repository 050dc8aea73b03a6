"""The data of a unit, as verified local files.

Invariant: a shard is read only after its SHA-256, from the dataset manifest that the run manifest
names, was right; it is hashed again for each unit, for a disk may rot, and a unit does not count
if one was written to meanwhile. What a unit reads stays in the cache until another one begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import structlog

from protocol.dataset import DatasetManifest, SequenceReader
from protocol.errors import UsageError
from protocol.limits import MAX_MANIFEST_BYTES
from protocol.manifest import RunManifest
from worker.blob_fetch import BlobFetcher, Wanted
from worker.shards import BlobStore

log = structlog.get_logger()


class DataSource:
    """Fetches dataset manifest and shards through the blob cache."""

    def __init__(self, manifest: RunManifest, fetcher: BlobFetcher, blobs: BlobStore) -> None:
        self._sha256 = bytes.fromhex(manifest.dataset_sha256)
        self._manifest = manifest
        self._fetcher = fetcher
        self._blobs = blobs
        self._dataset: DatasetManifest | None = None
        self.found = 0  # shards of units that were here ...
        self.fetched = 0  # ... and that had to come first
        blobs.pin("dataset", [self._sha256])

    async def dataset_file(self) -> Path:
        """The dataset manifest's file.

        Raises:
            TransientError: it cannot be fetched now.
            UsageError: it is not understood, or does not fit the run.
        """
        await asyncio.to_thread(self._blobs.find, self._sha256, anew=True)
        fetched = await self._fetcher.fetch_unsized(self._sha256, MAX_MANIFEST_BYTES)
        _say(self._sha256, fetched.givers)
        if self._dataset is None:
            dataset = DatasetManifest.parse(await asyncio.to_thread(fetched.path.read_bytes))
            if dataset.sequence_length != self._manifest.sequence_length:
                raise UsageError(
                    "the dataset's sequence length is not the run's: tell the organiser"
                )
            self._dataset = dataset
        return fetched.path

    async def dataset(self) -> DatasetManifest:
        """The dataset's manifest. Raises as :meth:`dataset_file`."""
        if self._dataset is None:
            await self.dataset_file()
        assert self._dataset is not None
        return self._dataset

    async def shards(self, start: int, end: int) -> dict[str, Path]:
        """Verified files of the shards that hold sequences [start, end), by SHA-256 in hex."""
        dataset = await self.dataset()
        reader = SequenceReader(dataset, lambda digest: self._blobs.path(bytes.fromhex(digest)))
        needed = reader.needed(start, end)
        self._blobs.pin("unit", [bytes.fromhex(shard.sha256) for shard in needed])
        self._blobs.spare_recent()
        return {
            shard.sha256: await self._shard_of_unit(bytes.fromhex(shard.sha256), shard.bytes)
            for shard in needed
        }

    async def _shard_of_unit(self, sha256: bytes, total_bytes: int) -> Path:
        path = await asyncio.to_thread(self._blobs.find, sha256, anew=True)
        if path is not None:
            self.found += 1
            return path
        self.fetched += 1
        return await self._fetch(sha256, total_bytes)

    async def shard(self, sha256: bytes, total_bytes: int) -> Path:
        """One shard's file, hashed now, fetched if need be: nobody has asked for it yet, so
        nothing that was used since the last unit began, or :meth:`BlobStore.spare_recent`, goes
        for it.

        Raises:
            TransientError: it cannot be fetched now.
        """
        path = await asyncio.to_thread(self._blobs.find, sha256, anew=True)
        return path or await self._fetch(sha256, total_bytes, guess=True)

    async def _fetch(self, sha256: bytes, total_bytes: int, *, guess: bool = False) -> Path:
        wanted = Wanted(sha256, total_bytes, "a part of the data")
        fetched = await self._fetcher.fetch(wanted, guess=guess)
        _say(sha256, fetched.givers)
        return fetched.path

    def is_here(self, sha256: str) -> bool:
        """Whether there is a file of this name; says nothing of what is in it."""
        return self._blobs.path(bytes.fromhex(sha256)).exists()

    def has_changed(self, shards: Iterable[str]) -> bool:
        """Whether one of these (SHA-256 in hex) is not as it was verified; never hashes."""
        return any(self._blobs.known(bytes.fromhex(shard)) is None for shard in shards)


def _say(sha256: bytes, givers: tuple[str, ...]) -> None:
    if givers:
        log.info("data fetched", sha256=sha256.hex()[:16], source=", ".join(givers))
