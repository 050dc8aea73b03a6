"""The run's weights and momentum on this machine.

Invariants:

* A file is used only when its SHA-256 is the signed head's and the root recomputed from its values
  is the head's too; the head itself must hash to its own state digest.
* Own outer steps are kept, so that in the normal course nothing is downloaded again. A state
  that the coordinator does not confirm is dropped.
* Sources in turn: this disk, holders among the peers, anchors, the coordinator. One that serves
  wrong bytes is passed over and named in the log.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from protocol.envelope import Signed
from protocol.errors import BadDigest, BadRecord, TransientError
from protocol.manifest import RunManifest
from protocol.outer import outer_step
from protocol.state import StateDescriptor, describe, read_vector, vector_root, write_vector
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.journal import CachedState, Journal
from worker.session import Session
from worker.shards import BlobStore

if TYPE_CHECKING:
    from protocol.model import ParameterSpec
    from worker.swarm import Swarm

log = structlog.get_logger()

FloatVector = NDArray[np.float32]
Part = Literal["weights", "momentum"]
_KEPT_STATES = 2
_MAX_PEER_SOURCES = 4


@dataclass(frozen=True)
class _Wanted:
    part: Part
    sha256: bytes
    size_bytes: int
    root: bytes


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
        self, manifest: RunManifest, session: Session, blobs: BlobStore, journal: Journal
    ) -> None:
        self._manifest = manifest
        self._session = session
        self._blobs = blobs
        self._journal = journal
        self._spec: ParameterSpec | None = None
        self._checked_roots: dict[bytes, bytes] = {}  # sha256 of a file -> root of its values
        self.swarm: Swarm | None = None
        self.anchor_ids: tuple[str, ...] = ()

    async def file(self, head: Signed[wire.RunHead], part: Part) -> Path:
        """The verified safetensors file of the head's weights or momentum, fetched if need be.

        Raises:
            TransientError: no source had it; try again later.
            BadRecord: the head contradicts itself.
        """
        record = head.record
        check_head(record)
        wanted = (
            _Wanted(part, record.weights_sha256, record.weights_bytes, record.weights_root)
            if part == "weights"
            else _Wanted(part, record.momentum_sha256, record.momentum_bytes, record.momentum_root)
        )
        path = await asyncio.to_thread(self._held, wanted)
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
        """
        weights = await self.file(head, "weights")
        momentum = await self.file(head, "momentum")
        return await asyncio.to_thread(
            self._advance, weights, momentum, mean_update, head.record, merged_tokens
        )

    async def confirm(self, head: Signed[wire.RunHead]) -> bool:
        """Compare the own newest state with a new head; drop what it contradicts.

        Returns:
            Whether the head's state is the one held here.
        """
        return await asyncio.to_thread(self._confirm, head.record)

    def _spec_now(self) -> ParameterSpec:
        if self._spec is None:
            from protocol.model import parameter_spec  # loads torch: seconds

            self._spec = parameter_spec(self._manifest.model_config_json)
        return self._spec

    # ---- blocking parts: in a thread ---------------------------------------------------

    def _held(self, wanted: _Wanted) -> Path | None:
        path = self._blobs.find(wanted.sha256)
        if path is None:
            return None
        root = self._checked_roots.get(wanted.sha256)
        if root is None:
            vector = read_vector(path, self._spec_now())
            root = vector_root(vector, self._manifest.update.chunk_elements)
            self._checked_roots[wanted.sha256] = root
        if root != wanted.root:
            raise BadDigest(f"the {wanted.part} do not have the root that the run head names")
        return path

    def _zeros(self, wanted: _Wanted) -> Path | None:
        """Before the first outer step momentum is zero: make it, do not fetch it."""
        temporary = self._blobs.scratch / "momentum.zeros"
        try:
            write_vector(temporary, np.zeros(self.elements(), np.float32), self._spec_now())
        except OSError as error:
            raise TransientError(f"cannot write {temporary}: {error.strerror}") from error
        sha256 = self._blobs.adopt(temporary)
        return self._held(wanted) if sha256 == wanted.sha256 else None

    def _advance(
        self,
        weights_path: Path,
        momentum_path: Path,
        mean_update: FloatVector,
        head: wire.RunHead,
        merged_tokens: int,
    ) -> StateDescriptor:
        spec = self._spec_now()
        weights, momentum = outer_step(
            read_vector(weights_path, spec),
            read_vector(momentum_path, spec),
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
        weights_sha256 = self._write(weights, "weights", descriptor.weights_root)
        momentum_sha256 = self._write(momentum, "momentum", descriptor.momentum_root)
        self._journal.keep_state(
            CachedState(descriptor.digest, descriptor.round, weights_sha256, momentum_sha256)
        )
        self._prune(descriptor.digest)
        return descriptor

    def _write(self, vector: FloatVector, part: Part, root: bytes) -> bytes:
        temporary = self._blobs.scratch / f"{part}.new"
        try:
            write_vector(temporary, vector, self._spec_now())
        except OSError as error:
            raise TransientError(
                f"cannot keep the new {part}: {error.strerror}; free some disk"
            ) from error
        sha256 = self._blobs.adopt(temporary)
        self._checked_roots[sha256] = root
        return sha256

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

    async def _fetch(self, head: wire.RunHead, wanted: _Wanted) -> Path:
        for peer_id in await self._peers(head, wanted):
            try:
                return await self._from_peer(peer_id, wanted)
            except (BadDigest, BadRecord) as error:
                log.warning("peer served wrong bytes, passed over", peer=peer_id, error=str(error))
            except TransientError as error:
                log.info("peer could not serve", part=wanted.part, peer=peer_id, error=str(error))
        return await self._from_coordinator(head, wanted)

    async def _peers(self, head: wire.RunHead, wanted: _Wanted) -> list[str]:
        if self.swarm is None:
            return []
        holders = list(await self.swarm.weight_holders(head.state_digest))
        random.shuffle(holders)
        peers = dict.fromkeys([*holders[:_MAX_PEER_SOURCES], *self.anchor_ids])
        peers.pop(self.swarm.peer_id, None)
        return list(peers)

    async def _from_peer(self, peer_id: str, wanted: _Wanted) -> Path:
        assert self.swarm is not None
        target = self._blobs.partial(wanted.sha256)
        await self.swarm.fetch_blob(peer_id, wanted.sha256, wanted.size_bytes, target)
        path = await asyncio.to_thread(self._take_in, target, wanted)
        log.info("state fetched", part=wanted.part, source=peer_id, size_bytes=wanted.size_bytes)
        return path

    async def _from_coordinator(self, head: wire.RunHead, wanted: _Wanted) -> Path:
        target = self._blobs.partial(wanted.sha256)
        await self._session.download_state(
            head.state_digest,
            api.STATE_PART_WEIGHTS if wanted.part == "weights" else api.STATE_PART_MOMENTUM,
            sha256=wanted.sha256,
            total_bytes=wanted.size_bytes,
            target=target,
        )
        path = await asyncio.to_thread(self._take_in, target, wanted)
        log.info("state fetched", part=wanted.part, source="coordinator")
        return path

    def _take_in(self, target: Path, wanted: _Wanted) -> Path:
        self._blobs.adopt(target, wanted.sha256)
        path = self._held(wanted)
        if path is None:
            raise TransientError("the file vanished from the cache")
        return path


def _blobs_of(state: CachedState) -> list[bytes]:
    return [blob for blob in (state.weights_sha256, state.momentum_sha256) if blob is not None]
