"""Checkpoints by digest: safetensors files on any fsspec file system.

Invariants:

* A file's name is the SHA-256 of its bytes, so a name that exists is a state that is whole: files
  are written under a temporary name, flushed, and renamed (remote stores put whole objects).
* Saving the same state again is a no-op: a coordinator that was killed between the file and the
  database row does the same work again and lands on the same name.
* Whatever is read is hashed before it is used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt

from protocol.digest import file_sha256
from protocol.errors import BadDigest, TransientError
from protocol.manifest import RunManifest
from protocol.model import ParameterSpec, element_count, parameter_spec
from protocol.state import StateDescriptor, read_vector, write_vector
from protocol.threads import for_each

Vector = npt.NDArray[np.float32]

WEIGHTS, MOMENTUM = "weights", "momentum"
_TEMPORARY = ".part-"


@dataclass(frozen=True)
class SavedState:
    """Names and sizes of the two files of a state."""

    weights_sha256: bytes
    weights_bytes: int
    momentum_sha256: bytes
    momentum_bytes: int


class CheckpointStore:
    """Saves and loads states of one run. Every method blocks: call it off the event loop."""

    def __init__(self, url: str, manifest: RunManifest, *, sweep: bool = True) -> None:
        """Open (and make, if it is a local folder) the store.

        Args:
            url: an fsspec URL or a local path.
            manifest: names the parameters of the model.
            sweep: remove what a killed process left; false where a server may be writing.

        Raises:
            TransientError: the store cannot be reached or written.
        """
        self.url = url
        self._manifest = manifest
        self._fs, root = fsspec.url_to_fs(url)
        self._root: str = root.rstrip("/")
        self._local = Path(self._root) if "file" in _protocols(self._fs) else None
        with self._explained("open"):
            self._fs.makedirs(self._root, exist_ok=True)
            if sweep:
                self._sweep()

    @cached_property
    def spec(self) -> ParameterSpec:
        """Names and shapes, in the order of the flat vector."""
        return parameter_spec(self._manifest.model_config_json)

    @property
    def elements(self) -> int:
        """Elements of the flat vector."""
        return element_count(self.spec)

    def save(self, weights: Vector, momentum: Vector, descriptor: StateDescriptor) -> SavedState:
        """Store a state; on return both files are durable.

        Args:
            weights: flat float32, one value per parameter element.
            momentum: the same shape.
            descriptor: the state's digests, written down beside the names in error texts.

        Raises:
            TransientError: the store refused (disk full, network): nothing is half-written.
        """
        with self._explained(f"save the state after round {descriptor.round} to"):
            spec = self.spec  # here: threads that load the model's library at once fail
            parts = ((WEIGHTS, weights), (MOMENTUM, momentum))
            saved = for_each(lambda part: self._put(*parts[part], spec), len(parts))
        return SavedState(*saved[0], *saved[1])

    def save_weights(self, weights: Vector) -> bytes:
        """Store weights alone, rebuilt for an audit; returns the file's SHA-256.

        Raises:
            TransientError: as :meth:`save`.
        """
        with self._explained("save weights to"):
            return self._put(WEIGHTS, weights, self.spec)[0]

    def load(self, saved: SavedState) -> tuple[Vector, Vector]:
        """Read a state back.

        Raises:
            BadDigest: a file is missing a byte or has a wrong one.
            TransientError: the store cannot be read.
        """
        return (
            self._get(WEIGHTS, saved.weights_sha256),
            self._get(MOMENTUM, saved.momentum_sha256),
        )

    def load_weights(self, weights_sha256: bytes) -> Vector:
        """The weights alone; raises as :meth:`load`."""
        return self._get(WEIGHTS, weights_sha256)

    def contains(self, kind: str, sha256: bytes) -> bool:
        """Whether the store holds this file."""
        with self._explained("look into"):
            return bool(self._fs.exists(self._path(kind, sha256)))

    def read(self, kind: str, sha256: bytes, offset: int, length: int) -> bytes:
        """``length`` bytes of a file from ``offset``, fewer at its end.

        The reader checks the digest of the whole; a piece alone proves nothing.

        Raises:
            FileNotFoundError: no such file.
            TransientError: the store cannot be read.
        """
        with self._explained("read"), self._fs.open(self._path(kind, sha256), "rb") as file:
            file.seek(offset)
            data: bytes = file.read(length)
            return data

    def size(self, kind: str, sha256: bytes) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: no such file.
            TransientError: the store cannot be read.
        """
        with self._explained("read"):
            return int(self._fs.size(self._path(kind, sha256)))

    def prune(self, keep: Collection[SavedState], weights: Collection[bytes] = ()) -> int:
        """Delete every file that is of no state in ``keep``, nor weights with such a SHA-256.

        Returns:
            How many files went.
        """
        names = {self._name(WEIGHTS, s.weights_sha256) for s in keep}
        names |= {self._name(MOMENTUM, s.momentum_sha256) for s in keep}
        names |= {self._name(WEIGHTS, sha256) for sha256 in weights}
        removed = 0
        with self._explained("prune"):
            for path in self._fs.ls(self._root, detail=False):
                name = path.rsplit("/", 1)[-1]
                if name.endswith(".safetensors") and name not in names:
                    self._fs.rm_file(path)
                    removed += 1
        return removed

    # ---- files ----

    @staticmethod
    def _name(kind: str, sha256: bytes) -> str:
        return f"{kind}-{sha256.hex()}.safetensors"

    def _path(self, kind: str, sha256: bytes) -> str:
        return f"{self._root}/{self._name(kind, sha256)}"

    def _put(self, kind: str, vector: Vector, spec: ParameterSpec) -> tuple[bytes, int]:
        with self._scratch() as scratch:
            file = scratch / f"{kind}.safetensors"
            written = write_vector(file, vector, spec)  # durable when it returns
            target = self._path(kind, written.sha256)
            if self._local is not None:
                file.replace(target)
                _fsync(self._local)
            elif not self._fs.exists(target):
                self._fs.put_file(str(file), target)
        return written.sha256, written.size_bytes

    def _get(self, kind: str, sha256: bytes) -> Vector:
        with self._explained("read"), self._scratch() as scratch:
            if self._local is not None:
                file = Path(self._path(kind, sha256))
            else:
                file = scratch / f"{kind}.safetensors"
                self._fs.get_file(self._path(kind, sha256), str(file))
            if file_sha256(file) != sha256.hex():
                raise BadDigest(
                    f"the stored {kind} {sha256.hex()[:16]} are damaged: restore the file "
                    f"{self._path(kind, sha256)} from a copy"
                )
            return read_vector(file, self.spec)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder of the same file system as the target, where that is local: rename is atomic."""
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._local))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a killed process left."""
        if self._local is not None:
            for leftover in self._local.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TransientError(
                f"cannot {doing} the checkpoint store {self._root}: {error.strerror or error}; "
                "free space or restore access: the same step is tried again"
            ) from error


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
