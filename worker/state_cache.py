"""The run's weights and momentum on this machine.

Invariants:

* A file is used only when its SHA-256 is the signed head's and the root recomputed from its values
  is the head's too; the head itself must hash to its own state digest.
* Own outer steps are kept, so that in the normal course nothing is downloaded again. A state
  that the coordinator does not confirm is dropped.
* The state in use stays, and beside it the one that a step from it leads to; older ones go for want
  of room (:mod:`worker.disk`).
* A file that changed on the disk is dropped and fetched again (:mod:`worker.blob_fetch`): it is
  hashed before a unit is trained from it, and the values that an outer step starts from are.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from protocol.envelope import Signed
from protocol.errors import BadRecord, TransientError
from protocol.manifest import RunManifest
from protocol.outer import outer_step
from protocol.state import StateDescriptor, describe, read_vector, vector_root, write_vector
from protocol.wire import records_pb2 as wire
from worker.blob_fetch import BlobFetcher, Wanted
from worker.journal import CachedState, Journal
from worker.shards import BlobStore

if TYPE_CHECKING:
    from protocol.model import ParameterSpec

log = structlog.get_logger()

FloatVector = NDArray[np.float32]
Part = Literal["weights", "momentum"]
_KEPT_STATES = 2
_STEP_TRIES = 3


@dataclass(frozen=True)
class _Part:
    name: Part
    file: Wanted
    root: bytes


class _Changed(Exception):
    """A file changed on the disk since it was verified; it has been dropped. Private."""


def check_head(head: wire.RunHead) -> StateDescriptor:
    """What a run head says of its state.

    Raises:
        BadRecord: its digest does not follow from its parts.
    """
    descriptor = StateDescriptor(
        head.settled_rounds, head.merged_tokens, head.weights_root, head.momentum_root
    )
    if descriptor.digest != head.state_digest:
        raise BadRecord("the run head's digest does not follow from its parts")
    return descriptor


class StateCache:
    """Finds, verifies, advances and keeps states of one run."""

    def __init__(
        self, manifest: RunManifest, fetcher: BlobFetcher, blobs: BlobStore, journal: Journal
    ) -> None:
        self._manifest = manifest
        self._fetcher = fetcher
        self._blobs = blobs
        self._journal = journal
        self._spec: ParameterSpec | None = None
        self._spec_lock = threading.Lock()
        self._checked_roots: dict[bytes, bytes] = {}  # sha256 of a file -> root of its values

    async def file(self, head: Signed[wire.RunHead], part: Part, *, anew: bool = False) -> Path:
        """The verified safetensors file of the head's weights or momentum, fetched if need be.

        Args:
            anew: hash it again even if nothing seems to have touched it.

        Raises:
            TransientError: no source had it; try again later.
            BadRecord: the head contradicts itself.
        """
        record = head.record
        check_head(record)
        wanted = _part_of(record, part)
        self._blobs.pin("state", _files_of(record))
        path = await asyncio.to_thread(self._held, wanted, anew)
        if path is not None:
            return path
        if part == "momentum" and record.settled_rounds == 0:
            path = await asyncio.to_thread(self._zeros, wanted)
        if path is None:
            path = await self._fetch(record, wanted)
        await asyncio.to_thread(self._note_fetched, record, part)
        return path

    def learn_spec(self, spec: ParameterSpec) -> None:
        """Take names and shapes from who has loaded the model: loading it here takes seconds."""
        self._spec = spec

    def elements(self) -> int:
        """Elements of the model's flat vector; blocking."""
        from protocol.model import element_count

        return element_count(self._spec_now())

    async def advance(
        self, head: Signed[wire.RunHead], mean_update: FloatVector, merged_tokens: int
    ) -> StateDescriptor:
        """Apply the outer step to the head's state and keep the result.

        Args:
            head: the state that the round started from.
            mean_update: flat float32, the reduced mean.
            merged_tokens: of the run, after this round.

        Returns:
            The new state's descriptor.

        Raises:
            TransientError: no source had the head's state, or the disk failed.
        """
        for _ in range(_STEP_TRIES):
            await self.file(head, "weights")
            await self.file(head, "momentum")
            try:
                return await asyncio.to_thread(
                    self._advance, head.record, mean_update, merged_tokens
                )
            except _Changed as error:
                log.warning("fetching it again", problem=str(error))
        raise TransientError("the state keeps changing on this disk: check the disk")

    async def confirm(self, head: Signed[wire.RunHead]) -> bool:
        """Compare the own newest state with a new head; drop what it contradicts.

        Returns:
            Whether the head's state is the one held here.
        """
        return await asyncio.to_thread(self._confirm, head.record)

    def _spec_now(self) -> ParameterSpec:
        # Two threads that load the model library at once see each other's half of it, and fail.
        with self._spec_lock:
            if self._spec is None:
                from protocol.model import parameter_spec  # loads torch: seconds

                self._spec = parameter_spec(self._manifest.model_config_json)
            return self._spec

    # ---- blocking parts: in a thread ---------------------------------------------------

    def _held(self, wanted: _Part, anew: bool = False) -> Path | None:
        sha256 = wanted.file.sha256
        path = self._blobs.find(sha256, anew=anew)
        if path is None:
            return None
        try:
            root = self._checked_roots.get(sha256)
            if root is None:
                root = self._root(read_vector(path, self._spec_now()))
            problem = "" if root == wanted.root else "its values have another root"
        except (BadRecord, OSError) as error:
            problem = str(error)
        if not problem:
            self._checked_roots[sha256] = wanted.root
            return path
        if self._blobs.find(sha256, anew=True) is None:
            return None  # it changed after it had been hashed
        raise BadRecord(f"the run head's {wanted.name} are not what it says of them: {problem}")

    def _root(self, vector: FloatVector) -> bytes:
        return vector_root(vector, self._manifest.update.chunk_elements)

    def _zeros(self, wanted: _Part) -> Path | None:
        """Before the first outer step momentum is zero: make it, do not fetch it."""
        temporary = self._blobs.scratch / "momentum.zeros"
        self._blobs.reserve(temporary, wanted.file.total_bytes, "the run's momentum")
        try:
            zeros = np.zeros(self.elements(), np.float32)
            written = write_vector(temporary, zeros, self._spec_now())
        except OSError as error:
            raise TransientError(f"cannot write {temporary}: {error.strerror}") from error
        finally:
            self._blobs.release(temporary)
        if written.sha256 != wanted.file.sha256:
            temporary.unlink()
            return None
        self._blobs.install(temporary, written.sha256)
        return self._held(wanted)

    def _advance(
        self, head: wire.RunHead, mean_update: FloatVector, merged_tokens: int
    ) -> StateDescriptor:
        for part in ("weights", "momentum"):
            self._blobs.pin(f"next {part}", [])  # what an earlier attempt came to
        weights, momentum = outer_step(
            self._values(_part_of(head, "weights")),
            self._values(_part_of(head, "momentum")),
            mean_update,
            self._manifest.outer,
        )
        descriptor = describe(
            weights,
            momentum,
            round_=head.settled_rounds + 1,
            merged_tokens=merged_tokens,
            chunk_elements=self._manifest.update.chunk_elements,
        )
        weights_sha256 = self._write(weights, "weights", descriptor.weights_root, head)
        momentum_sha256 = self._write(momentum, "momentum", descriptor.momentum_root, head)
        self._journal.keep_state(
            CachedState(descriptor.digest, descriptor.round, weights_sha256, momentum_sha256)
        )
        self._prune(descriptor.digest)
        return descriptor

    def _values(self, wanted: _Part) -> FloatVector:
        """What an outer step starts from, checked as it is in memory."""
        try:
            vector = read_vector(self._blobs.path(wanted.file.sha256), self._spec_now())
            if self._root(vector) == wanted.root:
                return vector
            problem = "has other values"
        except (BadRecord, OSError) as error:
            problem = str(error)
        self._blobs.find(wanted.file.sha256, anew=True)
        raise _Changed(f"the file of the {wanted.name} changed on this disk: {problem}")

    def _write(self, vector: FloatVector, part: Part, root: bytes, head: wire.RunHead) -> bytes:
        temporary = self._blobs.scratch / f"{part}.new"
        total_bytes = _part_of(head, part).file.total_bytes  # that of every state of this run
        self._blobs.reserve(temporary, total_bytes, f"the new {part}")
        try:
            written = write_vector(temporary, vector, self._spec_now())
        except OSError as error:
            raise TransientError(
                f"cannot keep the new {part}: {error.strerror}; free some disk"
            ) from error
        finally:
            self._blobs.release(temporary)
        self._blobs.pin(f"next {part}", [written.sha256])
        self._blobs.install(temporary, written.sha256)
        self._checked_roots[written.sha256] = root
        return written.sha256

    def _confirm(self, head: wire.RunHead) -> bool:
        held = self._journal.state(head.state_digest)
        for state in self._journal.states():
            if state.settled_rounds > head.settled_rounds:
                # Of a round that was skipped, or lost when the coordinator was restored.
                log.info("the run went on without this state", own=state.digest.hex()[:16])
                self._drop(state)
            elif state.settled_rounds == head.settled_rounds and state.digest != head.state_digest:
                log.warning(
                    "own outer step differs from the coordinator's: fetching its state",
                    own=state.digest.hex()[:16],
                    head=head.state_digest.hex()[:16],
                )
                self._drop(state)
        return held is not None

    def _note_fetched(self, head: wire.RunHead, part: Part) -> None:
        """Else nobody would ever delete it."""
        momentum = head.momentum_sha256 if part == "momentum" else None
        self._journal.keep_state(
            CachedState(head.state_digest, head.settled_rounds, head.weights_sha256, momentum)
        )
        self._prune(head.state_digest)

    def _prune(self, in_use: bytes) -> None:
        """Keep the state in use and the newest others: it may be older than what is held here."""
        others = [state for state in self._journal.states() if state.digest != in_use]
        for state in others[_KEPT_STATES - 1 :]:
            self._drop(state)

    def _drop(self, state: CachedState) -> None:
        self._journal.drop_state(state.digest)
        used = {blob for other in self._journal.states() for blob in _blobs_of(other)}
        unused = [blob for blob in _blobs_of(state) if blob not in used]
        self._blobs.drop(unused)
        for blob in unused:
            self._checked_roots.pop(blob, None)

    # ---- fetching ----------------------------------------------------------------------

    async def _fetch(self, head: wire.RunHead, wanted: _Part) -> Path:
        fetched = await self._fetcher.fetch(wanted.file, head.state_digest)
        path = await asyncio.to_thread(self._held, wanted)
        if path is None:
            raise TransientError(f"the {wanted.name} vanished from the cache")
        if fetched.givers:
            log.info(
                "state fetched",
                part=wanted.name,
                source=", ".join(fetched.givers),
                size_bytes=wanted.file.total_bytes,
            )
        return path


def _part_of(head: wire.RunHead, part: Part) -> _Part:
    if part == "weights":
        weights = Wanted(head.weights_sha256, head.weights_bytes, "the run's weights")
        return _Part(part, weights, head.weights_root)
    momentum = Wanted(head.momentum_sha256, head.momentum_bytes, "the run's momentum")
    return _Part(part, momentum, head.momentum_root)


def _files_of(head: wire.RunHead) -> list[bytes]:
    return [head.weights_sha256, head.momentum_sha256]


def _blobs_of(state: CachedState) -> list[bytes]:
    return [blob for blob in (state.weights_sha256, state.momentum_sha256) if blob is not None]
