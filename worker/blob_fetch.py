"""Fetches blobs by digest from several sources at once.

Invariants:

* A blob's size comes from a signed record; no source can make us keep more.
* Only bytes with the right SHA-256 get into the cache. What came before a failure stays in the
  scratch folder (:mod:`worker.partial_blob`) and is continued, from whichever source.
* One transfer of a blob at a time.
* Room for all of a blob is made before its first byte is asked for (:mod:`worker.disk`); what was
  begun and is not going on goes first.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from protocol.errors import BadDigest, PeerFault, TransientError, UsageError
from worker.blob_transfer import BlobTransfer, nobody_serves
from worker.disk import Expendable
from worker.partial_blob import PartialBlob, drop_partial, idle_partials, tidy_partials
from worker.peer_blobs import checked_data
from worker.shards import BlobStore
from worker.sources import Source, Sources

_UNSIZED_STALL_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """A blob as a signed record names it."""

    sha256: bytes
    total_bytes: int
    what: str = "a file of the run"  # for a person


@dataclass(frozen=True)
class Fetched:
    """A verified file of the cache, and who gave it: nobody, when it was here."""

    path: Path
    givers: tuple[str, ...] = ()


class BlobFetcher:
    """Gets blobs into the cache of this machine."""

    def __init__(self, blobs: BlobStore, sources: Sources) -> None:
        self._blobs = blobs
        self._sources = sources
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._in_use: set[Path] = set()
        blobs.give_first(self._expendable)

    async def fetch(
        self, wanted: Wanted, state_digest: bytes | None = None, *, guess: bool = False
    ) -> Fetched:
        """A blob from this disk or from wherever it is.

        Args:
            state_digest: of the state that it belongs to, if it is a part of one.
            guess: it may never be needed: nothing that was used lately goes for it.

        Raises:
            TransientError: no source had it, or the disk is full; what came is kept: call again.
            NoRoom: the owner's limit or the disk has no room for it.
        """
        async with self._alone(wanted.sha256):
            path = await asyncio.to_thread(self._blobs.find, wanted.sha256)
            if path is not None:
                return Fetched(path)
            return await self._transfer(wanted, state_digest, guess)

    async def fetch_unsized(self, sha256: bytes, limit_bytes: int) -> Fetched:
        """A small blob whose size no record tells, whole from one source after the other.

        Raises:
            TransientError: as :meth:`fetch`.
        """
        async with self._alone(sha256):
            path = await asyncio.to_thread(self._blobs.find, sha256)
            if path is not None:
                return Fetched(path)
            return await self._whole(sha256, limit_bytes)

    def _alone(self, sha256: bytes) -> asyncio.Lock:
        return self._locks.setdefault(sha256, asyncio.Lock())

    async def _whole(self, sha256: bytes, limit_bytes: int) -> Fetched:
        problems: dict[str, str] = {}
        for source in await self._sources.of(sha256):
            try:
                data = await _read(source, sha256, limit_bytes)
            except PeerFault as error:
                self._sources.convict(source.name, str(error))
                problems[source.name] = str(error)
            except (TransientError, UsageError) as error:
                self._sources.refused(source.name, sha256)
                problems[source.name] = str(error)
            else:
                await asyncio.to_thread(self._blobs.put, data)
                return Fetched(self._blobs.path(sha256), (source.name,))
        raise nobody_serves(sha256, problems)

    def _expendable(self, guess: bool) -> list[Expendable]:
        """Downloads that were begun and do not go on now, the oldest first."""
        if guess:
            return []
        idle = idle_partials(self._blobs.scratch, frozenset(self._in_use))
        return [Expendable(size_bytes, partial(drop_partial, path)) for path, size_bytes in idle]

    async def _transfer(self, wanted: Wanted, state_digest: bytes | None, guess: bool) -> Fetched:
        path = self._blobs.partial(wanted.sha256)
        incoming = PartialBlob(path, wanted.total_bytes)
        self._in_use.add(path)
        try:
            await asyncio.to_thread(tidy_partials, self._blobs.scratch, frozenset(self._in_use))
            reserve = self._blobs.reserve
            await asyncio.to_thread(reserve, path, wanted.total_bytes, wanted.what, guess=guess)
            await asyncio.to_thread(incoming.open)
            sources = await self._sources.of(wanted.sha256, state_digest)
            await BlobTransfer(wanted.sha256, incoming, sources, self._sources).run()
            await asyncio.to_thread(incoming.finish)
            await asyncio.to_thread(self._blobs.install, path, wanted.sha256)
        except OSError as error:
            raise TransientError(
                f"cannot write {path}: {error.strerror}; free some disk, the download will go on"
            ) from error
        finally:
            self._blobs.release(path)
            self._in_use.discard(path)
        givers = dict.fromkeys(given.source for given in incoming.given.values())
        return Fetched(self._blobs.path(wanted.sha256), tuple(givers))


async def _read(source: Source, sha256: bytes, limit_bytes: int) -> bytes:
    pieces = source.pieces(sha256, 0)
    chunks = checked_data(
        pieces, 0, None, source.name, limit_bytes=limit_bytes, stall_s=_UNSIZED_STALL_S
    )
    data = b"".join([chunk async for chunk in chunks])
    if hashlib.sha256(data).digest() != sha256:
        raise BadDigest(f"{source.name} served another file than {sha256.hex()}")
    return data
