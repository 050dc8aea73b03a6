"""The reducer's side of the verified all-reduce (protocol section 8).

Invariants:

* A chunk is kept only if it hashes to the leaf that the sender's commitment root covers, has
  the size that the roster gives it, and decodes to finite values: checked on arrival.
* A sender is complete only with a signed GatherStatement over exactly the kept bytes.
* Bytes that a broken stream has garbled look like a sender's fault and prove nothing: it may send
  again, but not for ever.
* Each result is combined once, over exactly the inclusion set, in roster order, encoded once
  and signed once; everyone is sent the same bytes.
* Encoded inputs stay in :attr:`Reducer.inboxes` as long as the group is open; what the round's
  audits may need, :mod:`worker.retained` keeps on disk.
* Hashing, decoding and combining run in threads; the loop only moves messages.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from protocol import merkle
from protocol.codec import MEAN_SOURCE, check_chunk, decode_chunk, encode_chunk, noise_key
from protocol.combine import combine_chunk
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadDigest, BadRecord, PeerFault, TransientError
from protocol.identity import Identity
from protocol.update import EncodedUpdate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service
from worker import frames
from worker.group import Group
from worker.patience import patience
from worker.screening import Screener

log = structlog.get_logger()

STALL_S = 30.0
"""A sender that is silent for so long in the middle of its stream has left."""

REPORT_BATCH_S = 0.2
"""Members that complete within this time share one report."""

MOST_FAULTS = 3
"""Streams of one sender that broke the protocol; then it is refused for this group."""

MAX_STATEMENTS_IN_REPORT = 1024
"""Above it the statements (360 bytes each) stay here: a report must fit into one record."""


@dataclass
class Inbox:
    """What one sender has delivered for our range."""

    leaf_hashes: list[bytes] = field(default_factory=list)
    chunks: dict[int, bytes] = field(default_factory=dict)
    frames_sha256: Any = field(default_factory=hashlib.sha256)  # of the chunks, in order
    statement: wire.Envelope | None = None
    refused: str = ""  # why, when the sender broke the protocol again and again: final
    faults: int = 0
    stream: int = 0  # number of the newest stream; an older one is told to stop

    @property
    def decided(self) -> bool:
        return self.statement is not None or bool(self.refused)

    @property
    def reason(self) -> str:
        """Stable word for an outcome that is not complete."""
        if self.refused:
            return self.refused
        return "incomplete" if self.leaf_hashes else "absent"


class Reducer:
    """Gathers, checks and combines the chunks of one range."""

    def __init__(self, group: Group, identity: Identity) -> None:
        own = group.range_of(identity.peer_id)
        assert own is not None, "only a reducer of the roster has a Reducer"
        self.group, self.identity = group, identity
        self.first, self.end = own.first_chunk, own.end_chunk
        self.inboxes = {name: Inbox() for name in group.members}
        self.screener = Screener(group, self.first, self.end)
        self._changed = asyncio.Event()

    # ---- GATHER

    async def receive(
        self, sender: str, first: frames.Frame, stream: AsyncIterator[frames.Frame]
    ) -> AsyncIterator[frames.Frame]:
        """Serve one GATHER stream; yields the replies.

        Args:
            sender: PeerID that the transport authenticated.
            first: the first frame, already taken from ``stream``.
        """
        gid = self.group.group_id
        inbox = self.inboxes.get(sender)
        if inbox is None:
            yield frames.refused(gid, frames.BAD_GROUP_ID, "not a member of this roster")
            return
        if inbox.refused:
            yield frames.refused(gid, frames.PROTOCOL_VIOLATION, inbox.refused)
            return
        inbox.stream += 1
        try:
            async for reply in self._receive(sender, inbox, inbox.stream, first, stream):
                yield reply
        except PeerFault as fault:
            final = self._refuse(sender, inbox, fault)
            code = frames.PROTOCOL_VIOLATION if final else frames.CANCELLED
            yield frames.refused(gid, code, str(fault))
        except (TransientError, TimeoutError) as error:
            yield frames.refused(gid, frames.CANCELLED, str(error) or "silent for too long")

    async def _receive(
        self,
        sender: str,
        inbox: Inbox,
        number: int,
        frame: frames.Frame | None,
        stream: AsyncIterator[frames.Frame],
    ) -> AsyncIterator[frames.Frame]:
        gid = self.group.group_id
        # 1. The leaf hashes: they must hash to the commitment in the roster.
        leaf_hashes: list[bytes] = []
        while (due := self.group.layout.count - len(leaf_hashes)) > 0:
            if leaf_hashes:
                frame = await _next(stream)
            leaf_hashes += frames.parse_leaves(frame, gid, due)
        await self._accept_leaves(sender, inbox, leaf_hashes)
        # 2. The chunks, from where an earlier stream broke off.
        start = self.first + len(inbox.chunks)
        yield frames.ready(gid, start)
        for chunk in range(start, self.end):
            size = self.group.layout.chunk_size(chunk)
            frame = await _next(stream)
            data = frames.parse_chunk(frame, gid, chunk, size, self.group.encoded_bytes(chunk))
            digest = await asyncio.to_thread(self._check_chunk, inbox, chunk, data)
            if inbox.stream != number:
                raise TransientError("a newer stream of this sender took over")
            self._keep(inbox, chunk, data)
            inbox.frames_sha256 = digest
        # 3. The signed statement over what was kept.
        envelope = frames.parse_statement(await _next(stream), gid)
        if inbox.stream != number:
            raise TransientError("a newer stream of this sender took over")
        self._accept_statement(sender, inbox, envelope)
        yield frames.done(gid)

    def bytes_from(self, chunk: int) -> int:
        """How much a sender still has to send, from this chunk of the range on."""
        return sum(self.group.encoded_bytes(index) for index in range(chunk, self.end))

    async def receive_own(self, update: EncodedUpdate) -> None:
        """Our own chunks, without a stream, through the same checks.

        Raises:
            PeerFault: our own update does not fit its commitment.
        """
        sender = self.identity.peer_id
        inbox = self.inboxes[sender]
        await self._accept_leaves(sender, inbox, list(update.leaf_hashes))
        for chunk in range(self.first + len(inbox.chunks), self.end):
            data = update.chunks[chunk]
            digest = await asyncio.to_thread(self._check_chunk, inbox, chunk, data)
            self._keep(inbox, chunk, data)
            inbox.frames_sha256 = digest
        statement = wire.GatherStatement(
            group_id=self.group.group_id,
            attempt=self.group.record.attempt,
            sender=sender,
            reducer=sender,
            first_chunk=self.first,
            end_chunk=self.end,
            frames_sha256=inbox.frames_sha256.digest(),
        )
        self._accept_statement(sender, inbox, seal(statement, self.identity))

    async def _accept_leaves(self, sender: str, inbox: Inbox, leaf_hashes: list[bytes]) -> None:
        root = await asyncio.to_thread(merkle.root, leaf_hashes)
        if root != self.group.members[sender].commitment_root:
            raise BadDigest("the leaf hashes do not lead to the commitment in the roster")
        inbox.leaf_hashes = leaf_hashes

    def _check_chunk(self, inbox: Inbox, chunk: int, data: bytes) -> Any:
        """Check what came next; returns the digest of the frames with it."""
        if merkle.leaf_hash(data) != inbox.leaf_hashes[chunk]:
            raise BadDigest(f"chunk {chunk} is not what was committed to")
        check_chunk(self.group.codec, data, self.group.layout.chunk_size(chunk))
        digest = inbox.frames_sha256.copy()
        digest.update(data)
        return digest

    def _keep(self, inbox: Inbox, chunk: int, data: bytes) -> None:
        if chunk != self.first + len(inbox.chunks):
            raise TransientError("a newer stream of this sender took over")
        inbox.chunks[chunk] = data

    def _accept_statement(self, sender: str, inbox: Inbox, envelope: wire.Envelope) -> None:
        record = open_envelope(envelope, wire.GatherStatement, signer=sender).record
        expected = wire.GatherStatement(
            group_id=self.group.group_id,
            attempt=self.group.record.attempt,
            sender=sender,
            reducer=self.identity.peer_id,
            first_chunk=self.first,
            end_chunk=self.end,
            frames_sha256=inbox.frames_sha256.digest(),
        )
        if record != expected:
            raise BadRecord("the statement is not about the bytes that were sent")
        if inbox.statement is None:
            inbox.statement = envelope
            log.debug("gather_complete", group=self.group.group_id.hex(), sender=sender)
            self._changed.set()

    def _refuse(self, sender: str, inbox: Inbox, fault: PeerFault) -> bool:
        """Note that a stream broke the protocol; whether its sender is refused for good."""
        inbox.faults += 1
        why, faults = str(fault), inbox.faults
        log.warning("gather_fault", sender=sender, reason=fault.reason, why=why, faults=faults)
        final = faults >= MOST_FAULTS
        if final and inbox.statement is None:  # what was complete before stays so
            inbox.refused = fault.reason.lower()
            self._changed.set()
        return final

    # ---- reports

    async def reports(
        self, remaining_s: Callable[[], float], *, after_revision: int = 0
    ) -> AsyncGenerator[wire.Envelope, None]:
        """Signed ReducerReports: one whenever somebody completes, the last when all are decided
        or the time is over.

        Args:
            remaining_s: seconds until the gather deadline, on the coordinator's clock.
            after_revision: revisions go on from here.
        """
        revision = after_revision
        while True:
            late = await self._wait_for_change(remaining_s)
            revision += 1
            final = late or self.decided
            yield seal(self._report(revision), self.identity)
            if final:
                return

    @property
    def decided(self) -> bool:
        """Every member is complete or refused."""
        return all(inbox.decided for inbox in self.inboxes.values())

    async def _wait_for_change(self, remaining_s: Callable[[], float]) -> bool:
        """Wait until there is something to report; True when the deadline has come first."""
        try:
            async with asyncio.timeout(max(0.0, remaining_s())):
                await self._changed.wait()
        except TimeoutError:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_BATCH_S):
                while not self.decided:  # let others that complete now share the report
                    self._changed.clear()
                    await self._changed.wait()
        self._changed.clear()
        return False

    def _report(self, revision: int) -> wire.ReducerReport:
        record = self.group.record
        with_statements = len(self.inboxes) <= MAX_STATEMENTS_IN_REPORT
        return wire.ReducerReport(
            run_id=record.run_id,
            round=record.round,
            attempt=record.attempt,
            group_id=self.group.group_id,
            reducer=self.identity.peer_id,
            revision=revision,
            outcomes=[
                wire.GatherOutcome(
                    worker=name,
                    complete=inbox.statement is not None,
                    reason="" if inbox.statement else inbox.reason,
                    statement=inbox.statement if with_statements else None,
                )
                for name, inbox in self.inboxes.items()
            ],
        )

    # ---- BROADCAST

    async def combine(
        self, inclusion: Signed[wire.InclusionSet], *, skip: Container[int] = ()
    ) -> AsyncGenerator[service.ResultPiece, None]:
        """Combine the range over the inclusion set; yields each signed result as it is made.

        Args:
            inclusion: verified; of this group.
            skip: chunks that are combined already.

        Raises:
            TransientError: an included member is not complete here: our range needs another
                attempt.
        """
        members = self.group.included(inclusion)
        absent = [m.worker for m in members if self.inboxes[m.worker].statement is None]
        if absent:
            raise TransientError(f"included, but not complete at this reducer: {absent[0]}")
        for chunk in range(self.first, self.end):
            if chunk not in skip:
                yield await asyncio.to_thread(self._combine_one, chunk, members)

    def _combine_one(self, chunk: int, members: Sequence[wire.RosterMember]) -> service.ResultPiece:
        group, record = self.group, self.group.record
        size = group.layout.chunk_size(chunk)
        inputs = [
            decode_chunk(group.codec, self.inboxes[m.worker].chunks[chunk], size) for m in members
        ]
        mean = combine_chunk(group.combine, inputs, [m.weight for m in members])
        self.screener.note(chunk, inputs, mean)
        key = noise_key(record.run_id, record.round, chunk, MEAN_SOURCE)
        encoded = encode_chunk(group.codec, mean, key)
        result = wire.ResultChunk(
            group_id=group.group_id,
            attempt=record.attempt,
            chunk=chunk,
            sha256=hashlib.sha256(encoded).digest(),
            reducer=self.identity.peer_id,
        )
        return service.ResultPiece(result=seal(result, self.identity), encoded=encoded)


async def _next(stream: AsyncIterator[frames.Frame]) -> frames.Frame | None:
    async with patience(STALL_S):
        return await anext(stream, None)
