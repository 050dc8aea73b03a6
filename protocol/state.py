"""The state of a run between rounds: its digest, and its files.

Invariants:

* The digest is over values (little-endian float32 chunks), not over a file format.
* The same vector always gives the same file, hence the same SHA-256, and loads in any program
  that reads safetensors, under the model's own parameter names.
* A file appears under its name complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from protocol import merkle
from protocol.errors import BadRecord
from protocol.model import ParameterSpec, element_count, slices
from protocol.threads import for_each

FloatVector = NDArray[np.float32]

# One entry of the header: name, dtype, shape and offsets; 200 bytes leave room for all numbers.
_HEADER_BYTES_PER_PARAMETER = 200
_HEADER_SLACK_BYTES = 1024

_ALIGNMENT = 8  # of a file's data, as the library has it
_PIECE_BYTES = 1 << 20  # hashed and written while it is in the processor's cache
_FLUSH_BYTES = 32 << 20  # not worth a flush of their own
_CHECKED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class StateDescriptor:
    """What a state digest commits to.

    ``round`` counts the rounds that have settled; a skipped round changes nothing.
    """

    round: int
    merged_tokens: int
    weights_root: bytes
    momentum_root: bytes

    @property
    def digest(self) -> bytes:
        """RFC 6962 root over four leaves: both roots, then both counts as u64 big-endian."""
        leaves = (
            self.weights_root,
            self.momentum_root,
            self.round.to_bytes(8, "big"),
            self.merged_tokens.to_bytes(8, "big"),
        )
        return merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])


@dataclass(frozen=True)
class WrittenFile:
    """Identity of a file that was just written."""

    sha256: bytes
    size_bytes: int


def vector_root(vector: FloatVector, chunk_elements: int) -> bytes:
    """RFC 6962 root over a vector's chunks as little-endian float32."""
    count = -(-len(vector) // chunk_elements)

    def leaf(chunk: int) -> bytes:
        return leaf_of(vector[chunk * chunk_elements : (chunk + 1) * chunk_elements])

    return merkle.root(for_each(leaf, count))


def leaf_of(chunk: FloatVector) -> bytes:
    """RFC 6962 leaf hash of one chunk of a vector, as little-endian float32."""
    return merkle.leaf_hash(chunk.astype("<f4", copy=False).view(np.uint8).data)


def describe(
    weights: FloatVector,
    momentum: FloatVector,
    *,
    round_: int,
    merged_tokens: int,
    chunk_elements: int,
) -> StateDescriptor:
    """Compute the descriptor of a state."""
    return StateDescriptor(
        round_,
        merged_tokens,
        vector_root(weights, chunk_elements),
        vector_root(momentum, chunk_elements),
    )


def write_vector(path: Path, flat: FloatVector, spec: ParameterSpec) -> WrittenFile:
    """Write a flat vector as a safetensors file, atomically and durably.

    Returns:
        SHA-256 and size of the file: the same for the same vector, always.
    """
    if flat.shape != (element_count(spec),) or flat.dtype != np.float32:
        raise ValueError("the vector does not fit the parameters")
    return _replace(path, _file_parts(flat, spec))


def _file_parts(flat: FloatVector, spec: ParameterSpec) -> Iterator[memoryview]:
    """A safetensors file as the library writes it, piece by piece: it makes two more copies of all.

    Parameters are in the order of their names.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ordered = sorted(slices(spec))
    end = 0
    for name, shape, where in ordered:
        start, end = end, end + 4 * (where.stop - where.start)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield memoryview(len(encoded).to_bytes(8, "little") + encoded)
    for _, _, where in ordered:
        data = flat[where].astype("<f4", copy=False).view(np.uint8).data
        for offset in range(0, len(data), _PIECE_BYTES):
            yield data[offset : offset + _PIECE_BYTES]


def read_vector(path: Path, spec: ParameterSpec) -> FloatVector:
    """Read a flat vector from an untrusted safetensors file.

    Raises:
        BadRecord: not a file of exactly these float32 parameters, all finite.
        OSError: the file cannot be read.
    """
    header_bytes = _check_size(path, spec)
    try:
        with safetensors.safe_open(path, framework="numpy") as library:
            if set(library.keys()) != {name for name, _ in spec}:
                raise BadRecord(f"{path.name} does not hold this model's parameters")
            for name, shape in spec:
                entry = library.get_slice(name)
                if entry.get_dtype() != "F32" or tuple(entry.get_shape()) != shape:
                    raise BadRecord(f"{path.name}: parameter {name} has another type or shape")
    except safetensors.SafetensorError as error:
        raise BadRecord(f"{path.name} is not a safetensors file: {error}") from error
    flat = _read_parameters(path, spec, header_bytes)
    pieces = range(0, len(flat), _CHECKED_ELEMENTS)
    finite = for_each(
        lambda piece: bool(np.isfinite(flat[pieces[piece] :][:_CHECKED_ELEMENTS]).all()),
        len(pieces),
    )
    if not all(finite):
        raise BadRecord(f"{path.name} holds a value that is not finite")
    return flat


def _read_parameters(path: Path, spec: ParameterSpec, header_bytes: int) -> FloatVector:
    """The values, of a file whose header was checked: the library would make two more copies."""
    flat = np.empty(element_count(spec), "<f4")
    with path.open("rb", buffering=0) as file:
        try:
            header = json.loads(file.read(8 + header_bytes)[8:])
            offsets = [int(header[name]["data_offsets"][0]) for name, _ in spec]
        except (ValueError, LookupError, TypeError) as error:  # the library reads lists, too
            raise BadRecord(
                f"{path.name} is not a safetensors file: its header names no offsets"
            ) from error
        for offset, (_, _, where) in zip(offsets, slices(spec), strict=True):
            file.seek(8 + header_bytes + offset)
            data = flat[where].view(np.uint8).data
            while data:
                count = file.readinto(data)
                if not count:
                    raise BadRecord(f"{path.name} became shorter while it was read")
                data = data[count:]
    return flat.astype(np.float32, copy=False)


def _check_size(path: Path, spec: ParameterSpec) -> int:
    """Bound the header before it is parsed, and the whole file to the byte; the header's bytes."""
    most = _HEADER_SLACK_BYTES + sum(
        _HEADER_BYTES_PER_PARAMETER + len(name.encode()) for name, _ in spec
    )
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) != 8:
            raise BadRecord(f"{path.name} is not a safetensors file: too short")
        (header_bytes,) = struct.unpack("<Q", prefix)
        expected = 8 + header_bytes + 4 * element_count(spec)
        if header_bytes > most or os.fstat(file.fileno()).st_size != expected:
            raise BadRecord(f"{path.name} does not have the size of this model")
        return int(header_bytes)


def _write(file: IO[bytes], parts: Iterable[memoryview]) -> WrittenFile:
    """Write durably; the disk takes what it has while the rest is hashed."""
    digest, size_bytes, next_flush_bytes = hashlib.sha256(), 0, _FLUSH_BYTES
    flushes: list[Future[None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="flush") as disk:
        for part in parts:
            digest.update(part)
            size_bytes += len(part)
            while part:
                part = part[file.write(part) :]
            if size_bytes >= next_flush_bytes and (not flushes or flushes[-1].done()):
                next_flush_bytes = size_bytes + _FLUSH_BYTES
                flushes.append(disk.submit(os.fsync, file.fileno()))
    for flush in flushes:
        flush.result()  # a failure is told once, to whoever asked first
    os.fsync(file.fileno())
    return WrittenFile(digest.digest(), size_bytes)


def _replace(path: Path, parts: Iterable[memoryview]) -> WrittenFile:
    """Write to a temporary file beside ``path``, then rename over it."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".writing-{path.name}-", delete=False, buffering=0
    ) as file:
        temporary = Path(file.name)
        try:
            written = _write(file, parts)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut could undo the rename
    finally:
        os.close(folder)
    return written
