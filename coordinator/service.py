"""The gRPC servicer: verify, parse, hand to the engine, answer. Nothing else.

Every method either returns what the engine says or lets a protocol error rise to the
interceptor. Requests are opened by :class:`~coordinator.requests.RequestGuard`; calls that carry
no signature (Hello and the downloads of public files) pass its step 1 alone. What then takes the
database or a file also takes a place (:mod:`coordinator.overload`). Hello takes none: all who
say it at once share one short read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator import overload
from coordinator.admission import Admission, anchor_addresses
from coordinator.audit.files import audit_file, opened_chunk
from coordinator.blobs import BlobIndex
from coordinator.checkpoints import MOMENTUM, WEIGHTS
from coordinator.database import Database
from coordinator.dial_back import DialBack
from coordinator.engine import Engine
from coordinator.overload import Places, Visitor
from coordinator.requests import RequestGuard, connection_of
from coordinator.schema import StateRow
from coordinator.shared_read import SharedRead
from coordinator.versions import supported
from protocol.envelope import Signed
from protocol.errors import BadRecord, NotFound, TransientError
from protocol.hello import UPGRADE_COMMAND
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2
from protocol.wire.service_pb2_grpc import CoordinatorServicer

ANCHOR_SEEN_WITHIN_S = 120.0

Context: TypeAlias = grpc.aio.ServicerContext


@dataclass(frozen=True)
class Greeting:
    """What Hello says that does not change while the server runs."""

    manifest: bytes  # canonical
    delegations: tuple[wire.Envelope, ...]
    revocations: tuple[wire.Envelope, ...]
    min_client_version: str
    public_url: str


class CoordinatorService(CoordinatorServicer):
    """``barnraise.v1.Coordinator``."""

    def __init__(
        self,
        *,
        engine: Engine,
        database: Database,
        guard: RequestGuard,
        admission: Admission,
        blobs: BlobIndex,
        greeting: Greeting,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._database = database
        self._guard = guard
        self._admission = admission
        self._blobs = blobs
        self._greeting = greeting
        self._clock = clock
        self._anchors = SharedRead(self._read_anchors)
        self._calls = Places("calls", overload.CALLS)
        self._downloads = Places("downloads", overload.DOWNLOADS)
        self._uploads = Places("uploads", overload.UPLOADS)
        self._watches = Places("event streams", overload.WATCHES)
        self._dial_back = DialBack(clock)
        self._watchers: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._version = metadata.version("barnraise")  # reads a file

    def visitor(self, peer: str) -> Visitor:
        """Who calls, by the transport's name of the other side alone."""
        return self._guard.visitor(peer)

    def end_streams(self) -> None:
        """Send every watcher away, to reconnect when the server is back."""
        self._closing = True
        for task in self._watchers:
            task.cancel()

    async def _read_anchors(self) -> list[str]:
        since_s = self._clock() - ANCHOR_SEEN_WITHIN_S
        return await self._database.run(
            lambda session: anchor_addresses(session, seen_since_s=since_s)
        )

    # ---- first contact ----

    async def Hello(  # noqa: N802
        self, request: service_pb2.HelloRequest, context: Context
    ) -> service_pb2.HelloReply:
        self._guard.allow_greeting(context.peer())
        self._guard.check_run(request.run_id)
        minimum = self._greeting.min_client_version
        is_supported = supported(request.client_version, minimum)
        return service_pb2.HelloReply(
            server_version=self._version,
            min_client_version=minimum,
            client_supported=is_supported,
            advice="" if is_supported else f"run '{UPGRADE_COMMAND}'",
            server_time_ms=int(self._clock() * 1000),
            manifest=self._greeting.manifest,
            delegations=self._greeting.delegations,
            revocations=self._greeting.revocations,
            run_head=await self._engine.hello_head(),
            anchors=await self._anchors.get(),
            public_url=self._greeting.public_url,
        )

    async def Enrol(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.EnrolReply:
        with self._signed(request, wire.Enrolment, context) as signed:
            reply = await self._admission.admit(signed, context.peer())
        if reply.admitted:
            self._guard.known.add(signed.signer)
            self._guard.known.add(signed.record.donor)
            self._guard.known.proven(connection_of(context.peer()), signed.signer)
        return reply

    async def DialBack(  # noqa: N802
        self, request: service_pb2.DialBackRequest, context: Context
    ) -> service_pb2.DialBackReply:
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        return await self._dial_back.answer(request.ports, context.peer())

    # ---- work ----

    async def RequestWork(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.WorkReply:
        with self._signed(request, wire.WorkRequest, context) as signed:
            return await self._engine.request_work(signed)

    async def Commit(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.CommitReply:
        with self._signed(request, wire.Contribution, context) as signed:
            return await self._engine.commit(signed)

    async def Report(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ReportReply:
        with self._signed(request, wire.Report, context) as signed:
            return await self._engine.report(signed)

    async def Heartbeat(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.HeartbeatReply:
        with self._signed(request, wire.Heartbeat, context) as signed:
            return await self._engine.heartbeat(signed)

    async def GetReceipt(  # noqa: N802
        self, request: service_pb2.GetReceiptRequest, context: Context
    ) -> service_pb2.GetReceiptReply:
        with self._unsigned(request.run_id, context):
            return await self._engine.receipt(request.assignment_id)

    # ---- reducing ----

    async def ReducerReport(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ReducerReportReply:
        with self._signed(request, wire.ReducerReport, context) as signed:
            return await self._engine.reducer_report(signed)

    async def SubmitResults(  # noqa: N802
        self, request: AsyncIterator[service_pb2.ResultPiece], context: Context
    ) -> service_pb2.SubmitResultsReply:
        self._guard.allow(context.peer())
        with self._uploads.one(self._guard.visitor(context.peer())):
            return await self._engine.add_results(request)

    # ---- audits ----

    async def AnswerChallenge(  # noqa: N802
        self, request: service_pb2.AnswerChallengeRequest, context: Context
    ) -> service_pb2.ChallengeReply:
        with self._signed(request.answer, wire.ChallengeAnswer, context) as signed:
            return await self._engine.answer_challenge(signed, request.chunks)

    async def SubmitScreening(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ScreeningReply:
        with self._signed(request, wire.Screening, context) as signed:
            return await self._engine.submit_screening(signed)

    async def Appeal(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.AppealReply:
        with self._signed(request, wire.Appeal, context) as signed:
            return await self._engine.appeal(signed)

    async def GetAudit(  # noqa: N802
        self, request: service_pb2.GetAuditRequest, context: Context
    ) -> AsyncIterator[service_pb2.AuditPiece]:
        run = self._engine.context
        with self._unsigned(request.run_id, context):
            found = await self._database.run(
                lambda session: audit_file(session, run, request.round, request.worker)
            )
        with self._download(context):
            for piece in found.pieces():
                yield piece
            for key in found.openings:
                chunk = await self._database.run(partial(opened_chunk, key=key))
                yield service_pb2.AuditPiece(chunk=chunk)

    # ---- what people do besides training ----

    async def Act(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ActReply:
        peer = context.peer()
        act = self._guard.open_act(request, peer=peer)
        with self._calls.one(self._guard.visitor(peer, act.signer)):
            return await self._engine.act(act, self._guard.check_fresh)

    # ---- streams ----

    async def Watch(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> AsyncIterator[service_pb2.RunEvent]:
        task = asyncio.current_task()
        assert task is not None
        with self._signed(request, wire.WatchRequest, context) as signed:
            worker = signed.signer
            await self._engine.require_welcome(worker)
        self._guard.known.add(worker)  # let in, or it would have been refused
        with self._watches.one(self._guard.visitor(context.peer(), worker)):
            self._watchers.add(task)
            try:
                async with self._engine.subscribe(worker) as events:
                    async for event in events:
                        yield event
            except asyncio.CancelledError:
                if not self._closing:
                    raise
                task.uncancel()
                raise TransientError("the coordinator is going down: reconnect") from None
            finally:
                self._watchers.discard(task)

    async def GetState(  # noqa: N802
        self, request: service_pb2.GetStateRequest, context: Context
    ) -> AsyncIterator[service_pb2.Piece]:
        with self._unsigned(request.run_id, context):
            kind, sha256 = await self._database.run(
                lambda session: state_file(session, request.state_digest, request.part)
            )
        with self._download(context):
            blob = await self._blobs.state(kind, sha256)
            async for piece in blob.pieces(request.offset):
                yield piece

    async def GetShard(  # noqa: N802
        self, request: service_pb2.GetShardRequest, context: Context
    ) -> AsyncIterator[service_pb2.Piece]:
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        with self._download(context):
            blob = await self._blobs.find(request.sha256)
            async for piece in blob.pieces(request.offset):
                yield piece

    @contextmanager
    def _signed(
        self, envelope: wire.Envelope, record_class: type[Message], context: Context
    ) -> Iterator[Signed[Any]]:
        """A verified request, with a place among those under way."""
        peer = context.peer()
        signed = self._guard.open(envelope, record_class, peer=peer)
        with self._calls.one(self._guard.visitor(peer, signed.signer)):
            yield signed

    @contextmanager
    def _unsigned(self, run_id: bytes, context: Context) -> Iterator[None]:
        """An allowed request of anybody's, with a place among those under way."""
        self._guard.allow(context.peer())
        self._guard.check_run(run_id)
        with self._calls.one(self._guard.visitor(context.peer())):
            yield

    def _download(self, context: Context) -> AbstractContextManager[None]:
        return self._downloads.one(self._guard.visitor(context.peer()))


def state_file(session: Session, digest: bytes, part: service_pb2.StatePart) -> tuple[str, bytes]:
    """Kind and SHA-256 of the file that holds a part of a state.

    Raises:
        BadRecord: no such part.
        NotFound: no such state.
    """
    row = session.scalar(select(StateRow).where(StateRow.digest == digest))
    if row is None:
        raise NotFound(
            f"the run has no state {digest[:32].hex()[:16] or '(none)'}...: ask for the run head"
        )
    if part == service_pb2.STATE_PART_WEIGHTS:
        return WEIGHTS, row.weights_sha256
    if part == service_pb2.STATE_PART_MOMENTUM:
        return MOMENTUM, row.momentum_sha256
    raise BadRecord("part is WEIGHTS or MOMENTUM")
