"""The member's side of the verified all-reduce, and both sides of one group together.

Invariants:

* **All members end with bit-identical means**: everybody, the reducer of a chunk included,
  decodes the same encoded bytes, and no local value ever stands in for a missing one.
* A result counts only with the signature of the chunk's reducer over group, attempt, chunk and
  SHA-256, the exact size, and finite values. So it may come from anyone who holds it.
* Two different signed results for one chunk are kept as proof of equivocation.
* A peer's failure is recorded or waited out, never raised out of the group; only the roster's
  deadlines, on the coordinator's clock, end a phase.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import structlog
from numpy.typing import NDArray

from protocol.codec import decode_chunk
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    Conflict,
    PeerFault,
    ProtocolError,
    TransientError,
)
from protocol.identity import Identity
from protocol.uncancelled import to_the_end
from protocol.update import EncodedUpdate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service
from worker import frames
from worker.equivocation import MOST_PROOFS, Equivocation, of_results
from worker.group import Group
from worker.p2pd import P2pd
from worker.reducer import Reducer

log = structlog.get_logger()

FIRST_PAUSE_S = 0.2
"""Before a peer is tried again; doubles up to :data:`LONGEST_PAUSE_S`."""

LONGEST_PAUSE_S = 3.0


@dataclass(frozen=True)
class GatherFailure:
    """A reducer that did not acknowledge our chunks before the gather deadline."""

    reducer: str
    reason: str


@dataclass(frozen=True)
class ReduceResult:
    """The combined update, the same bits at every member."""

    mean_update: NDArray[np.float32]  # flat, vector_elements
    pieces: dict[int, service.ResultPiece]


@dataclass(frozen=True)
class Peer:
    """Who we are, how we reach the others, and what time it is."""

    p2p: P2pd
    identity: Identity
    gather_handle: str
    broadcast_handle: str
    clock_ms: Callable[[], int]  # the coordinator's clock
    require_round_key: Callable[[str], None]  # BadSignature unless this PeerID is one


class GroupReduce:
    """One attempt at one round's reduce; made by :meth:`worker.swarm.Swarm.open_group`."""

    def __init__(
        self,
        group: Group,
        update: EncodedUpdate | None,
        peer: Peer,
        on_close: Callable[[], None],
    ) -> None:
        self.group, self._update, self._peer, self._on_close = group, update, peer, on_close
        self.group_id = group.group_id
        self.is_member = peer.identity.peer_id in group.members
        self.is_reducer = group.range_of(peer.identity.peer_id) is not None
        self.reducer = Reducer(group, peer.identity) if self.is_reducer else None
        self.pieces: dict[int, service.ResultPiece] = {}
        self.equivocations: list[Equivocation] = []
        self.inclusion: Signed[wire.InclusionSet] | None = None
        self.combining_failed = ""
        self._mean = np.empty(group.layout.elements, np.float32)
        self._adding = asyncio.Lock()  # a chunk's place in the mean has one writer
        self._news = asyncio.Event()  # a piece came, combining failed, or the group closed
        self.closed = False

    # ---- GATHER

    async def gather(self) -> list[GatherFailure]:
        """Stream our chunks to every reducer, our own range included, until each has
        acknowledged them or the roster's gather deadline.

        Returns:
            The reducers that did not; empty when all did, or when we have nothing to send.
        """
        update = self._update
        if update is None or not self.is_member:
            return []
        async with asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(self._deliver(item, update)) for item in self._reducers()]
        return [failure for task in sending if (failure := task.result()) is not None]

    def _reducers(self) -> list[wire.ReducerRange]:
        # Each member begins with another reducer, so that not all of them dial the first.
        items = list(self.group.reducers)
        start = int.from_bytes(self._peer.identity.public.raw[:4], "big") % len(items)
        return items[start:] + items[:start]

    async def _deliver(
        self, item: wire.ReducerRange, update: EncodedUpdate
    ) -> GatherFailure | None:
        problem = "not tried"
        try:
            async with asyncio.timeout(self.until_s(self.group.record.gather_deadline_ms)):
                pause_s = FIRST_PAUSE_S
                while True:
                    try:
                        await self._deliver_once(item, update)
                    except frames.Refused as refusal:
                        problem = f"refused: {refusal}"
                        break
                    except (PeerFault, TransientError) as error:  # garbled streams pass, too
                        problem = str(error)
                        log.debug("gather_retry", reducer=item.reducer, why=problem)
                    else:
                        return None
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except TimeoutError:
            problem = f"deadline passed; last: {problem}"
        log.warning("gather_failed", reducer=item.reducer, why=problem)
        return GatherFailure(item.reducer, problem)

    async def _deliver_once(self, item: wire.ReducerRange, update: EncodedUpdate) -> None:
        if item.reducer == self._peer.identity.peer_id:
            assert self.reducer is not None
            await self.reducer.receive_own(update)
            return
        await self._dial(item)
        handle, gid = self._peer.gather_handle, self.group_id
        async with self._peer.p2p.stream(item.reducer, handle, frames.Frame) as stream:
            for frame in frames.leaves(gid, update.leaf_hashes):
                await stream.send(frame)
            reply = await stream.receive()
            start = frames.parse_ready(reply, gid, item.first_chunk, item.end_chunk)
            reply = await stream.converse(self._chunk_frames(item, update, start))
            frames.parse_done(reply, gid)

    async def _dial(self, item: wire.ReducerRange) -> None:
        with suppress(TransientError):  # it may still be known to the daemon by another address
            await self._peer.p2p.connect(item.reducer, list(item.multiaddrs))

    async def _chunk_frames(
        self, item: wire.ReducerRange, update: EncodedUpdate, start: int
    ) -> AsyncIterator[frames.Frame]:
        # The whole range in one go, beside the sending: it is wanted at the end.
        hashing = asyncio.ensure_future(asyncio.to_thread(_sha256_of, update, item))
        try:
            for chunk in range(start, item.end_chunk):
                size = self.group.layout.chunk_size(chunk)
                yield frames.chunk(self.group_id, chunk, size, update.chunks[chunk])
            digest = await hashing
        finally:
            hashing.cancel()
        statement = wire.GatherStatement(
            group_id=self.group_id,
            attempt=self.group.record.attempt,
            sender=self._peer.identity.peer_id,
            reducer=item.reducer,
            first_chunk=item.first_chunk,
            end_chunk=item.end_chunk,
            frames_sha256=digest,
        )
        yield frames.statement(self.group_id, seal(statement, self._peer.identity))

    async def reports(self) -> AsyncIterator[wire.Envelope]:
        """As a reducer, signed ReducerReports, each with all outcomes so far; the last one comes
        when all members are decided or at the gather deadline. Nothing otherwise."""
        if self.reducer is not None:
            deadline_ms = self.group.record.gather_deadline_ms
            # By the clock: after a restart in the middle of a gather, a second "first" revision
            # with other contents would read as equivocation.
            reports = self.reducer.reports(
                lambda: self.until_s(deadline_ms), after_revision=self._peer.clock_ms() // 1000
            )
            async with aclosing(reports):
                async for report in reports:
                    yield report

    # ---- BROADCAST

    async def finish(self, inclusion: Signed[wire.InclusionSet]) -> ReduceResult:
        """Combine and serve our own range, collect the others'.

        May be called again, with the same inclusion set, while time is left.

        Raises:
            BadSignature, BadRecord: not an inclusion set of this group by a round key.
            Conflict: a second inclusion set for this group; both are signed.
            TransientError: incomplete at the broadcast deadline; :attr:`pieces` holds what came.
        """
        self._accept_inclusion(inclusion)
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(self.until_s(self.group.record.broadcast_deadline_ms)),
                asyncio.TaskGroup() as tasks,
            ):
                for item in self._reducers():
                    own = item.reducer == self._peer.identity.peer_id
                    tasks.create_task(self._combine(inclusion) if own else self._collect(item))
        missing = self.group.layout.count - len(self.pieces)
        if missing:
            why = f"; {self.combining_failed}" if self.combining_failed else ""
            raise TransientError(
                f"{missing} of {self.group.layout.count} chunks of the mean did not come in"
                f" time{why}: wait for the next attempt"
            )
        return ReduceResult(self._mean, dict(self.pieces))

    def _accept_inclusion(self, inclusion: Signed[wire.InclusionSet]) -> None:
        self._peer.require_round_key(inclusion.signer)
        self.group.included(inclusion)
        if self.inclusion is not None and self.inclusion.digest != inclusion.digest:
            self.equivocations.append(Equivocation(self.inclusion.envelope, inclusion.envelope))
            raise Conflict("two different inclusion sets were signed for one group")
        self.inclusion = inclusion

    async def _combine(self, inclusion: Signed[wire.InclusionSet]) -> None:
        assert self.reducer is not None
        try:
            async with aclosing(self.reducer.combine(inclusion, skip=self.pieces)) as results:
                async for piece in results:
                    await self.add_piece(piece)
        except ProtocolError as error:
            self.combining_failed = f"our own range failed: {error}"
            log.warning("combine_failed", group=self.group_id.hex(), why=str(error))
            self._tell()

    async def _collect(self, item: wire.ReducerRange) -> None:
        """Get a range from its reducer or, when it fails, from whoever holds its results."""
        holders = [item, *(r for r in self._reducers() if r.reducer != item.reducer)]
        mine = self._peer.identity.peer_id
        pause_s = FIRST_PAUSE_S
        for source in cycle(holder for holder in holders if holder.reducer != mine):
            missing = self._missing(item)
            if not missing:
                return
            try:
                await self._pull(source, self._at_once(missing))
            except PeerFault as fault:
                log.warning("result_refused", source=source.reducer, why=str(fault))
            except TransientError as error:
                log.debug("collect_retry", source=source.reducer, why=str(error))
            if len(self._missing(item)) == len(missing):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _at_once(self, chunks: list[int]) -> list[int]:
        """The first of them, as many as may be asked for in one stream; at least one."""
        most_bytes = self._peer.p2p.at_once_bytes
        count = frames.MAX_WANTED_CHUNKS
        if most_bytes is not None:
            count = max(1, min(count, most_bytes // self.group.encoded_bytes(chunks[0])))
        return chunks[:count]

    def _missing(self, item: wire.ReducerRange) -> list[int]:
        return [c for c in range(item.first_chunk, item.end_chunk) if c not in self.pieces]

    async def _pull(self, source: wire.ReducerRange, chunks: list[int]) -> None:
        await self._dial(source)
        handle = self._peer.broadcast_handle
        async with self._peer.p2p.stream(source.reducer, handle, frames.Frame) as stream:
            await stream.expect(sum(self.group.encoded_bytes(chunk) for chunk in chunks))
            await stream.send(frames.wanted(self.group_id, chunks))
            await stream.finish()
            for _ in chunks:
                frame = await stream.receive()
                if frame is None:
                    return  # it does not hold the others
                await self.add_piece(frames.parse_result(frame, self.group_id))

    async def add_piece(self, piece: service.ResultPiece) -> None:
        """Verify a result, whoever relayed it, and put it into the mean.

        Raises:
            PeerFault: not what the chunk's reducer signed for this group, or malformed.
            Conflict: the reducer has signed another result for this chunk; see
                :attr:`equivocations`.
        """
        async with self._adding:
            added = await to_the_end(asyncio.to_thread(self._add_piece, piece))
        if added is not None:
            self.pieces[added] = piece
            self._tell()

    def _add_piece(self, piece: service.ResultPiece) -> int | None:
        """The chunk that a result has filled; None if it was filled before. Blocking."""
        # 1. Which chunk, and the signature of its reducer.
        result = open_envelope(piece.result, wire.ResultChunk).record
        if not 0 <= result.chunk < self.group.layout.count:
            raise BadRecord(f"a result for chunk {result.chunk}, which does not exist")
        reducer = self.group.reducer_of(result.chunk)
        if piece.result.signatures[0].keyid != reducer or result.reducer != reducer:
            raise BadSignature(f"a result for chunk {result.chunk} that is not by its reducer")
        if (result.group_id, result.attempt) != (self.group_id, self.group.record.attempt):
            raise BadRecord("a result of another group")
        # 2. At most one result for a chunk.
        if self._known(result.chunk, piece):
            return None
        # 3. Size, digest, finite values.
        encoded = piece.encoded
        if len(encoded) != self.group.encoded_bytes(result.chunk):
            raise BadRecord(f"the result for chunk {result.chunk} has the wrong size")
        if hashlib.sha256(encoded).digest() != result.sha256:
            raise BadDigest(f"the result for chunk {result.chunk} is not what was signed")
        place = self._mean[slice(*self.group.layout.bounds(result.chunk))]
        decode_chunk(self.group.codec, encoded, len(place), out=place)
        return int(result.chunk)

    def _known(self, chunk: int, piece: service.ResultPiece) -> bool:
        held = self.pieces.get(chunk)
        if held is None:
            return False
        if held.result.payload != piece.result.payload:
            if len(self.equivocations) < MOST_PROOFS:
                self.equivocations.append(of_results(held, piece))
            log.error("equivocation", reducer=self.group.reducer_of(chunk), chunk=chunk)
            raise Conflict(f"its reducer signed two different results for chunk {chunk}")
        return True

    async def serve_results(self, request: frames.Frame) -> AsyncIterator[frames.Frame]:
        """Serve one BROADCAST stream."""
        chunks = frames.parse_wanted(request, self.group_id, self.group.layout.count)
        for chunk in chunks:
            piece = await self._piece(chunk)
            if piece is not None:
                yield frames.result(self.group_id, chunk, piece)

    async def _piece(self, chunk: int) -> service.ResultPiece | None:
        """A result that we hold; waits for those that we reduce ourselves."""
        last_ms = self.group.record.broadcast_deadline_ms
        mine = self.group.reducer_of(chunk) == self._peer.identity.peer_id
        with suppress(TimeoutError):
            async with asyncio.timeout(self.until_s(last_ms)):
                while chunk not in self.pieces and mine and not self._over:
                    await self._news.wait()
        return self.pieces.get(chunk)

    async def own_results(self) -> list[service.ResultPiece]:
        """The results of the range that we reduce, as soon as all are there.

        Returns:
            In order of chunks; empty when we reduce nothing, or combining failed.
        """
        mine = self.group.range_of(self._peer.identity.peer_id)
        if mine is None:
            return []
        while self._missing(mine) and not self._over:
            await self._news.wait()
        if self._missing(mine):
            return []
        return [self.pieces[chunk] for chunk in range(mine.first_chunk, mine.end_chunk)]

    # ---- both

    @property
    def _over(self) -> bool:
        return bool(self.combining_failed) or self.closed

    def _tell(self) -> None:
        """Wake everybody who waits for a piece, or for the end."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def until_s(self, deadline_ms: int) -> float:
        """Seconds from now to a time on the coordinator's clock."""
        return (deadline_ms - self._peer.clock_ms()) / 1000

    def close(self) -> None:
        """Stop serving this group and let go of its chunks. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self._tell()
            self._on_close()


def _sha256_of(update: EncodedUpdate, item: wire.ReducerRange) -> bytes:
    """Over the encoded chunks of a range, in order; blocking."""
    digest = hashlib.sha256()
    for chunk in range(item.first_chunk, item.end_chunk):
        digest.update(update.chunks[chunk])
    return digest.digest()
