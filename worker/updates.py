"""Encoded updates on this machine's disk: one file each, the chunks in order.

Invariants:

* A file that does not hash to its commitment is never sent anywhere.
* The newest :data:`KEPT_UPDATES` outlive their rounds, to show chunks of them when the coordinator
  asks; older ones are deleted.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from protocol import merkle
from protocol.errors import TransientError
from protocol.limits import MAX_RECORD_BYTES
from protocol.manifest import RunManifest
from protocol.update import ChunkLayout, EncodedUpdate
from protocol.wire import records_pb2 as wire

KEPT_UPDATES = 3
_SUFFIX = ".update"


def update_file(folder: Path, assignment_id: bytes) -> Path:
    """Where the encoded update of an assignment is kept."""
    return folder / f"{assignment_id.hex()}{_SUFFIX}"


def adopt_update(output: Path, folder: Path, assignment_id: bytes) -> Path:
    """Move what the trainer wrote to its final name, durably, once; blocking.

    Raises:
        TransientError: the disk failed.
    """
    final = update_file(folder, assignment_id)
    try:
        if output.exists():
            output.replace(final)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # else a power cut could undo the rename
        finally:
            os.close(descriptor)
    except OSError as error:
        raise TransientError(f"cannot keep {final}: {error.strerror}") from error
    return final


def read_update(path: Path, elements: int, manifest: RunManifest) -> EncodedUpdate | None:
    """Read an encoded update back; blocking.

    Args:
        elements: of the flat vector.

    Returns:
        None when the file is not here any more, or has another size. Whether it is what was
        committed, its root says.
    """
    layout = ChunkLayout(elements, manifest.update.chunk_elements)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    chunks, start = [], 0
    for chunk in range(layout.count):
        size = layout.encoded_bytes(manifest.update.codec, chunk)
        chunks.append(data[start : start + size])
        start += size
    return EncodedUpdate.of(tuple(chunks)) if start == len(data) else None


def open_chunks(update: EncodedUpdate, chunks: Sequence[int]) -> list[wire.OpenedChunk] | None:
    """Chunks with their audit paths, in the order asked for.

    Returns:
        None when one does not exist, or they would not fit into a record.
    """
    count = len(update.chunks)
    if not chunks or len(chunks) > count or max(chunks) >= count:
        return None
    if sum(len(update.chunks[chunk]) for chunk in chunks) > MAX_RECORD_BYTES * 3 // 4:
        return None
    roots = merkle.subtree_roots(update.leaf_hashes)
    prove = partial(merkle.inclusion_proof, size=count, subtree=roots)
    return [
        wire.OpenedChunk(chunk=chunk, encoded=update.chunks[chunk], proof=prove(chunk))
        for chunk in chunks
    ]


def prune_updates(folder: Path, needed: Collection[Path | None]) -> None:
    """Delete all but the newest few and those that a round still needs; blocking."""
    over = [path for path in folder.glob(f"*{_SUFFIX}") if path not in needed]
    over.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in over[KEPT_UPDATES:]:
        path.unlink(missing_ok=True)
