"""Encoded updates on this machine's disk: one file each, the chunks in order.

Invariants:

* A file is named by round, assignment and commitment: what does not hash to the commitment is never
  sent anywhere, and never spoken of as if it were the update.
* A file outlives its round as long as an audit may ask for it: see :mod:`worker.retained`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from protocol import merkle
from protocol.errors import NotFound, TransientError
from protocol.manifest import Codec, RunManifest
from protocol.projection import project_update
from protocol.update import ChunkLayout, EncodedUpdate
from protocol.wire import records_pb2 as wire

_NAME = re.compile(r"(\d{10,20})-([0-9a-f]{32})-([0-9a-f]{64})\.update")
_PROJECTED_AT_ONCE = 32


@dataclass(frozen=True)
class UpdateName:
    """What the file of an update is called."""

    round: int  # kept until audits of this round are over
    assignment_id: bytes  # 16 bytes
    root: bytes  # of the commitment

    def __str__(self) -> str:
        return f"{self.round:010d}-{self.assignment_id.hex()}-{self.root.hex()}.update"

    @classmethod
    def of(cls, path: Path) -> UpdateName | None:
        """None when the file is not named like an update."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        return cls(int(match[1]), bytes.fromhex(match[2]), bytes.fromhex(match[3]))


def find_update(folder: Path, assignment_id: bytes) -> Path | None:
    """The encoded update of an assignment, if it is still here; blocking."""
    found = folder.glob(f"*-{assignment_id.hex()}-*.update")
    return next((path for path in found if UpdateName.of(path)), None)


def adopt_update(output: Path, folder: Path, name: UpdateName) -> Path:
    """Move what the trainer wrote to its final name, durably, once; blocking.

    Raises:
        TransientError: the disk failed.
    """
    final = folder / str(name)
    try:
        if output.exists():
            output.replace(final)
        else:  # done before; perhaps in the round before
            final = find_update(folder, name.assignment_id) or final
        for other in folder.glob(f"*-{name.assignment_id.hex()}-*.update"):
            if other != final:  # of a process that was killed before it signed anything
                other.unlink(missing_ok=True)
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


@dataclass(frozen=True)
class ChunkFile:
    """A range of one member's encoded chunks in a file; every read is checked against the
    commitment. Its methods block."""

    path: Path
    offset: int  # bytes before the first chunk
    layout: ChunkLayout
    codec: Codec
    first: int  # the file holds chunks [first, end)
    end: int
    member: str  # whose commitment
    leaf_hashes: Sequence[bytes]  # of all chunks of the vector; they lead to the commitment

    def bytes_of(self, chunks: Sequence[int]) -> int:
        """What these chunks take together.

        Raises:
            NotFound: one of them is not in this file.
        """
        if any(not self.first <= chunk < self.end for chunk in chunks):
            raise NotFound("a chunk that is not kept here")
        return sum(self.layout.encoded_bytes(self.codec, chunk) for chunk in chunks)

    def read(self, chunk: int) -> bytes:
        """One encoded chunk.

        Raises:
            NotFound: it is not here (any more), or was damaged on disk.
        """
        size = self.bytes_of([chunk])
        # All chunks but the vector's last have the size of the first.
        full = self.layout.encoded_bytes(self.codec, self.first)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + (chunk - self.first) * full)
                encoded = file.read(size)
        except OSError as error:
            raise NotFound(f"chunk {chunk} is not here any more") from error
        if merkle.leaf_hash(encoded) != self.leaf_hashes[chunk]:
            raise NotFound(f"chunk {chunk} was damaged on disk")
        return encoded

    def show(self, chunks: Sequence[int]) -> list[wire.OpenedChunk]:
        """Chunks with their audit paths, in the order asked for.

        Raises:
            NotFound: see :meth:`read`.
        """
        roots = merkle.subtree_roots(self.leaf_hashes)
        prove = partial(merkle.inclusion_proof, size=self.layout.count, subtree=roots)
        return [
            wire.OpenedChunk(
                chunk=chunk, encoded=self.read(chunk), proof=prove(chunk), member=self.member
            )
            for chunk in chunks
        ]

    def project(self, first: int, end: int, seed: bytes) -> bytes:
        """Packed projections of chunks [first, end); see :mod:`protocol.projection`.

        Raises:
            NotFound: see :meth:`read`.
        """
        packed = []
        for start in range(first, end, _PROJECTED_AT_ONCE):
            chunks = range(start, min(start + _PROJECTED_AT_ONCE, end))
            encoded = [self.read(chunk) for chunk in chunks]
            packed.append(project_update(encoded, self.codec, self.layout, seed, start))
        return b"".join(packed)


def open_update(path: Path, elements: int, manifest: RunManifest, worker: str) -> ChunkFile:
    """Our own update, for those who ask later; blocking: hashes the whole file.

    Args:
        elements: of the flat vector.
        worker: who committed to it.

    Raises:
        NotFound: the file is gone, or is not what was committed to.
    """
    layout = ChunkLayout(elements, manifest.update.chunk_elements)
    codec, name = manifest.update.codec, UpdateName.of(path)
    try:
        with path.open("rb") as file:
            sizes = (layout.encoded_bytes(codec, chunk) for chunk in range(layout.count))
            leaves = tuple(merkle.leaf_hash(file.read(size)) for size in sizes)
    except OSError as error:
        raise NotFound("the update is not here any more") from error
    if name is None or merkle.root(leaves) != name.root:
        raise NotFound("the update was damaged on disk")
    return ChunkFile(path, 0, layout, codec, 0, layout.count, worker, leaves)


def sha256s(chunks: Sequence[wire.OpenedChunk]) -> list[bytes]:
    """What binds shown chunks to the answer that they come with."""
    return [hashlib.sha256(chunk.encoded).digest() for chunk in chunks]
