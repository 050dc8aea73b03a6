"""The state of a run between rounds: its digest, and its files.

Invariants:

* The digest is over values (little-endian float32 chunks), not over a file format.
* The same vector always gives the same file, hence the same SHA-256, and loads in any program
  that reads safetensors, under the model's own parameter names.
* A file appears under its name complete or not at all.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from protocol import merkle
from protocol.errors import BadRecord
from protocol.model import ParameterSpec, element_count, slices

FloatVector = NDArray[np.float32]

# One entry of the header: name, dtype, shape and offsets; 200 bytes leave room for all numbers.
_HEADER_BYTES_PER_PARAMETER = 200
_HEADER_SLACK_BYTES = 1024


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
    data = vector.astype("<f4", copy=False).view(np.uint8).data
    step = 4 * chunk_elements
    return merkle.root(
        [merkle.leaf_hash(data[start : start + step]) for start in range(0, len(data), step)]
    )


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
    tensors = {name: flat[where].reshape(shape) for name, shape, where in slices(spec)}
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    _replace(path, data)
    return WrittenFile(hashlib.sha256(data).digest(), len(data))


def read_vector(path: Path, spec: ParameterSpec) -> FloatVector:
    """Read a flat vector from an untrusted safetensors file.

    Raises:
        BadRecord: not a file of exactly these float32 parameters, all finite.
        OSError: the file cannot be read.
    """
    _check_size(path, spec)
    flat = np.empty(element_count(spec), np.float32)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            if set(file.keys()) != {name for name, _ in spec}:
                raise BadRecord(f"{path.name} does not hold this model's parameters")
            for name, shape, where in slices(spec):
                entry = file.get_slice(name)
                if entry.get_dtype() != "F32" or tuple(entry.get_shape()) != shape:
                    raise BadRecord(f"{path.name}: parameter {name} has another type or shape")
                flat[where] = file.get_tensor(name).reshape(-1)
    except safetensors.SafetensorError as error:
        raise BadRecord(f"{path.name} is not a safetensors file: {error}") from error
    if not np.isfinite(flat).all():
        raise BadRecord(f"{path.name} holds a value that is not finite")
    return flat


def _check_size(path: Path, spec: ParameterSpec) -> None:
    """Bound the header before it is parsed, and the whole file to the byte."""
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


def _replace(path: Path, data: bytes) -> None:
    """Write to a temporary file beside ``path``, then rename over it."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".writing-{path.name}-", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut could undo the rename
    finally:
        os.close(folder)
