"""Resumable downloads in bounded pieces.

Invariants:

* Nothing is accepted beyond the promised size, and nothing out of place.
* A broken stream keeps what came; the next attempt asks from there. A finished file is believed
  only when its SHA-256 is right; else it is deleted, because no resume can mend it. If its
  beginning was there before, from whomever, it is fetched anew once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc

from protocol.channel import backoff_s, hinted_s, translate
from protocol.digest import file_sha256
from protocol.errors import BadDigest, BadRecord, TransientError
from protocol.limits import MAX_PIECE_BYTES
from protocol.wire import service_pb2 as api

PieceSource = Callable[[int], AsyncIterator[api.Piece]]
"""``offset -> pieces`` from there on."""

_ATTEMPTS = 6


async def download(
    source: PieceSource,
    *,
    sha256: bytes,
    total_bytes: int | None,
    target: Path,
    limit_bytes: int | None = None,
) -> None:
    """Stream pieces to ``target``, resuming after what is there already.

    Args:
        total_bytes: the size, where it is known; bounds what is accepted.
        limit_bytes: bounds it where it is not.

    Raises:
        BadDigest: the bytes are wrong; the file is gone.
        TransientError: the stream kept breaking, or the disk is full; what came is kept.
        ProtocolError: refused, see :func:`protocol.channel.translate`.
    """
    bound = total_bytes if total_bytes is not None else limit_bytes
    assert bound is not None, "a download is always bounded"
    resumed = await asyncio.to_thread(_size, target) > 0
    await _collect(source, target, bound, total_bytes)
    try:
        await asyncio.to_thread(_check, target, sha256)
    except BadDigest:
        if not resumed:
            raise
        await _collect(source, target, bound, total_bytes)
        await asyncio.to_thread(_check, target, sha256)


async def _collect(source: PieceSource, target: Path, bound: int, total_bytes: int | None) -> None:
    for failures in range(_ATTEMPTS):
        try:
            await _append(source, target, bound, total_bytes)
            return
        except grpc.aio.AioRpcError as error:
            problem = translate(error)
            if not isinstance(problem, TransientError) or failures + 1 == _ATTEMPTS:
                raise problem from error
            hint_s = hinted_s(problem)
        await asyncio.sleep((hint_s or 0.0) + backoff_s(failures))


async def _append(source: PieceSource, target: Path, bound: int, total_bytes: int | None) -> None:
    try:
        offset = await asyncio.to_thread(_size, target)
        if total_bytes is not None and offset == total_bytes:
            return
        if offset > bound:  # no prefix of what is wanted
            await asyncio.to_thread(target.unlink)
            offset = 0
        file = target.open("ab")  # in this thread: else who gives up meanwhile leaves it open
        try:
            async for piece in source(offset):
                if len(piece.data) > MAX_PIECE_BYTES or piece.offset != offset:
                    raise BadRecord("the coordinator sent a piece out of place")
                offset += len(piece.data)
                if offset > bound or piece.total_bytes > bound:
                    raise BadRecord(f"the coordinator sent more than {bound} bytes")
                await asyncio.to_thread(file.write, piece.data)
            await asyncio.to_thread(file.flush)
            await asyncio.to_thread(os.fsync, file.fileno())
        finally:
            await asyncio.to_thread(file.close)
    except OSError as error:
        raise TransientError(
            f"cannot write {target}: {error.strerror}; free some disk, the download will go on"
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(path: Path, sha256: bytes) -> None:
    if not path.exists() or file_sha256(path) != sha256.hex():
        path.unlink(missing_ok=True)
        raise BadDigest("the coordinator sent a file with another digest than promised")
