"""Blobs of the run (weights, above all) from peer to peer, named by their SHA-256.

Invariants:

* A piece is at most 1 MiB and must continue exactly where the last one ended; the total is the
  one that the caller knows from a signed record, so nobody can fill a disk.
* A caller that has what it wants hangs up; nothing more is read for it.
* Files are read in threads; opening one takes microseconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Container
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator  # noqa: UP035  # ServicerBase reads typing's

from hivemind.p2p import P2PContext, ServicerBase

from protocol.errors import BadDigest, BadRecord, TransientError
from protocol.limits import MAX_PIECE_BYTES
from protocol.wire import service_pb2 as service
from worker.meter import AHEAD_BYTES, NetworkBudget
from worker.p2pd import P2pd
from worker.patience import patience
from worker.streams import BoundedP2P

PIECE_BYTES = MAX_PIECE_BYTES // 2
"""What we send; what we accept is at most twice that."""

_SLOW_PIECE_BYTES = 64 << 10

MAX_UPLOADS = 8
"""Blobs served at once; others wait their turn, so that each upload ends in good time."""

MAX_UPLOADS_TO_STRANGERS = 3
"""Of them, those to peers that are in no reduce here."""

MAX_UPLOADS_PER_PEER = 4

STALL_S = 30.0
"""A peer that sends nothing for so long is given up; another one may continue."""

Resolve = Callable[[bytes], Path | None]
"""SHA-256 to the local file that has it, already verified."""


class BlobService(ServicerBase):  # type: ignore[misc]
    """Serves files by digest: request a GetShardRequest, answer a stream of Pieces."""

    def __init__(self, run_id: bytes, budget: NetworkBudget | None = None) -> None:
        self._run_id = run_id
        self._budget = budget or NetworkBudget()
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)
        self._to_strangers = asyncio.Semaphore(MAX_UPLOADS_TO_STRANGERS)
        self._to_peers: Counter[str] = Counter()
        self._familiar: Container[str] = frozenset()
        self.resolve: Resolve = lambda sha256: None
        self.small: dict[bytes, bytes] = {}  # what we serve from memory

    async def add_p2p_handlers(self, p2p: BoundedP2P, **options: Any) -> None:
        """Serve on this daemon."""
        self._familiar = p2p.callers.familiar
        await super().add_p2p_handlers(p2p, **options)

    @asynccontextmanager
    async def _one_more(self, peer_id: str) -> AsyncIterator[None]:
        """Wait for our turn to upload; strangers wait for one of their few first.

        Raises:
            TransientError: this peer has as many as it may.
        """
        if self._to_peers[peer_id] >= MAX_UPLOADS_PER_PEER:
            raise TransientError(f"{MAX_UPLOADS_PER_PEER} blobs are on their way to you already")
        self._to_peers[peer_id] += 1
        try:
            async with AsyncExitStack() as turns:
                if peer_id not in self._familiar:
                    await turns.enter_async_context(self._to_strangers)
                await turns.enter_async_context(self._uploads)
                yield
        finally:
            self._to_peers[peer_id] -= 1
            self._to_peers += Counter()  # drops the zeros

    async def rpc_blob(
        self, request: service.GetShardRequest, context: P2PContext
    ) -> AsyncIterator[service.Piece]:
        if request.run_id != self._run_id:
            raise BadRecord("a blob of another run")
        async with self._one_more(context.remote_id.to_base58()):
            small = self.small.get(request.sha256)
            if small is not None and request.offset <= len(small):
                size = self._piece_bytes
                for offset in range(request.offset, len(small), size):
                    data = small[offset : offset + size]
                    yield service.Piece(offset=offset, total_bytes=len(small), data=data)
                return
            async for piece in self._from_file(request):
                yield piece

    @property
    def _piece_bytes(self) -> int:
        """Small on a slow line: whoever waits for a piece of ours waits for :data:`STALL_S`."""
        return _SLOW_PIECE_BYTES if self._budget.is_capped else PIECE_BYTES

    async def _from_file(self, request: service.GetShardRequest) -> AsyncIterator[service.Piece]:
        path = self.resolve(request.sha256)
        if path is None:
            raise TransientError("this peer does not hold that blob")
        try:
            # In this thread: a caller that hangs up while another one opens would leave it open.
            file = path.open("rb")
        except OSError as error:
            raise TransientError("this peer does not hold that blob any more") from error
        with file:
            total_bytes = os.fstat(file.fileno()).st_size
            offset = request.offset
            while offset < total_bytes:
                size = self._piece_bytes
                data = await asyncio.to_thread(_read_piece, file.fileno(), size, offset)
                if not data:
                    raise TransientError("the blob shrank while it was read")
                yield service.Piece(offset=offset, total_bytes=total_bytes, data=data)
                offset += len(data)


def _read_piece(descriptor: int, size: int, offset: int) -> bytes:
    return os.pread(descriptor, size, offset)


class BlobClient:
    """Asks peers for blobs."""

    def __init__(self, p2p: P2pd, handle: str, run_id: bytes) -> None:
        self._p2p, self._handle, self._run_id = p2p, handle, run_id

    async def pieces(
        self, peer_id: str, sha256: bytes, offset: int
    ) -> AsyncIterator[service.Piece]:
        """What a peer sends of a blob from ``offset`` on: unchecked. Close it to hang up.

        Raises:
            TransientError: the peer failed or does not hold it.
        """
        request = service.GetShardRequest(run_id=self._run_id, sha256=sha256, offset=offset)
        async with self._p2p.stream(peer_id, self._handle, service.Piece) as stream:
            await stream.expect(AHEAD_BYTES)  # or more: the first piece tells
            await stream.send(request)
            await stream.finish()
            while (piece := await stream.receive()) is not None:
                stream.left(piece.total_bytes - piece.offset - len(piece.data))
                yield piece

    async def fetch_small(self, peer_id: str, sha256: bytes, total_bytes: int) -> bytes:
        """Fetch a blob into memory; the caller bounds ``total_bytes``.

        Raises:
            TransientError: as :meth:`pieces`.
            BadDigest: the bytes are not the blob.
            BadRecord: the peer sent other pieces than those asked for.
        """
        pieces = self.pieces(peer_id, sha256, 0)
        data = b"".join([part async for part in checked_data(pieces, 0, total_bytes, peer_id)])
        if hashlib.sha256(data).digest() != sha256:
            raise BadDigest(f"what {peer_id} sent is not blob {sha256.hex()}")
        return data


async def checked_data(
    pieces: AsyncIterator[service.Piece],
    offset: int,
    total_bytes: int | None,
    source: str,
    *,
    limit_bytes: int | None = None,
    stall_s: float = STALL_S,
) -> AsyncGenerator[bytes, None]:
    """The data from ``offset`` to the end, each piece checked for its place and size.

    Args:
        pieces: from a source that nobody vouches for; closed at the end.
        total_bytes: the size, where it is known.
        limit_bytes: bounds it where it is not; the first piece tells it.
        source: its name, for the messages.

    Raises:
        TransientError: the source fell silent or ended too early.
        BadRecord: it sent something else than asked for.
    """
    async with aclosing(pieces):  # type: ignore[type-var]
        while total_bytes is None or offset < total_bytes:
            try:
                async with patience(stall_s):
                    piece = await anext(pieces, None)
            except TimeoutError as error:
                raise TransientError(f"{source} stopped sending") from error
            if piece is None:
                raise TransientError(f"{source} stopped at byte {offset}")
            if total_bytes is None:
                total_bytes = _bounded(piece.total_bytes, limit_bytes)
            _check(piece, offset, total_bytes)
            offset += len(piece.data)
            yield piece.data


def _bounded(total_bytes: int, limit_bytes: int | None) -> int:
    assert limit_bytes is not None, "a download is always bounded"
    if total_bytes > limit_bytes:
        raise BadRecord(f"a blob of {total_bytes} bytes where {limit_bytes} are the most")
    return total_bytes


def _check(piece: service.Piece, offset: int, total_bytes: int) -> None:
    if piece.total_bytes != total_bytes:
        raise BadRecord(f"a blob of {piece.total_bytes} bytes where {total_bytes} are due")
    if piece.offset != offset or not 0 < len(piece.data) <= MAX_PIECE_BYTES:
        raise BadRecord("a piece in the wrong place, empty or over the limit")
    if offset + len(piece.data) > total_bytes:
        raise BadRecord("a piece that goes beyond the end of its blob")
