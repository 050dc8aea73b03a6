"""Points in the fetching and the serving of blobs."""

from __future__ import annotations

from typing import Any

from chaos_injector import Install, after, before

from worker import peer_blobs
from worker.partial_blob import PartialBlob


def _block(_partial: PartialBlob, block: int, _data: bytes, source: str) -> dict[str, Any]:
    return {"block": block, "source": source}


POINTS: dict[str, Install] = {
    # A block has come and is about to be written; it is written, and noted.
    "blob.keep": before(PartialBlob, "keep", _block),
    "blob.kept": after(PartialBlob, "keep", _block),
    # A peer reads the piece that it serves next.
    "blob.serve": before(peer_blobs, "_read_piece", lambda _fd, _size, offset: {"offset": offset}),
}
