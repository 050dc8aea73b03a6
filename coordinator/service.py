"""The gRPC servicer: verify, parse, hand to the engine, answer. Nothing else.

Every method either returns what the engine says or lets a protocol error rise to the
interceptor. Requests are opened by :class:`~coordinator.requests.RequestGuard`; calls that carry
no signature (Hello and the downloads of public files) pass its address limit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.admission import Admission, anchor_addresses, supported
from coordinator.audit.files import audit_file, opened_chunk
from coordinator.blobs import BlobIndex
from coordinator.checkpoints import MOMENTUM, WEIGHTS
from coordinator.database import Database
from coordinator.dial_back import DialBack
from coordinator.engine import Engine
from coordinator.requests import RequestGuard, address_of
from coordinator.schema import StateRow
from coordinator.work import enrolled
from protocol.envelope import Signed
from protocol.errors import BadRecord, NotFound, RateLimited, TransientError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2
from protocol.wire.service_pb2_grpc import CoordinatorServicer

ANCHOR_SEEN_WITHIN_S = 120.0
MAX_WATCHES_PER_WORKER = 4
MAX_STREAMS_PER_ADDRESS = 64
"""Downloads, and uploads, open at once; each holds a piece of at most 1 MiB."""

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
        self._dial_back = DialBack(clock)
        self._open_streams: Counter[str] = Counter()
        self._watchers: set[asyncio.Task[Any]] = set()
        self._closing = False

    def end_streams(self) -> None:
        """Send every watcher away, to reconnect when the server is back."""
        self._closing = True
        for task in self._watchers:
            task.cancel()

    # ---- first contact ----

    async def Hello(  # noqa: N802
        self, request: service_pb2.HelloRequest, context: Context
    ) -> service_pb2.HelloReply:
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        minimum = self._greeting.min_client_version
        is_supported = supported(request.client_version, minimum)
        since_s = self._clock() - ANCHOR_SEEN_WITHIN_S
        return service_pb2.HelloReply(
            server_version=metadata.version("barnraise"),
            min_client_version=minimum,
            client_supported=is_supported,
            advice="" if is_supported else "run 'pip install --upgrade barnraise'",
            server_time_ms=int(self._clock() * 1000),
            manifest=self._greeting.manifest,
            delegations=self._greeting.delegations,
            revocations=self._greeting.revocations,
            run_head=await self._engine.hello_head(),
            anchors=await self._database.run(
                lambda session: anchor_addresses(session, seen_since_s=since_s)
            ),
            public_url=self._greeting.public_url,
        )

    async def Enrol(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.EnrolReply:
        return await self._admission.admit(
            self._open(request, wire.Enrolment, context), context.peer()
        )

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
        return await self._engine.request_work(self._open(request, wire.WorkRequest, context))

    async def Commit(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.CommitReply:
        return await self._engine.commit(self._open(request, wire.Contribution, context))

    async def Report(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ReportReply:
        return await self._engine.report(self._open(request, wire.Report, context))

    async def Heartbeat(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.HeartbeatReply:
        return await self._engine.heartbeat(self._open(request, wire.Heartbeat, context))

    async def GetReceipt(  # noqa: N802
        self, request: service_pb2.GetReceiptRequest, context: Context
    ) -> service_pb2.GetReceiptReply:
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        return await self._engine.receipt(request.assignment_id)

    # ---- reducing ----

    async def ReducerReport(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ReducerReportReply:
        return await self._engine.reducer_report(self._open(request, wire.ReducerReport, context))

    async def SubmitResults(  # noqa: N802
        self, request: AsyncIterator[service_pb2.ResultPiece], context: Context
    ) -> service_pb2.SubmitResultsReply:
        self._guard.allow(context.peer())
        with self._one_more("upload", context.peer()):
            return await self._engine.add_results(request)

    # ---- audits ----

    async def AnswerChallenge(  # noqa: N802
        self, request: service_pb2.AnswerChallengeRequest, context: Context
    ) -> service_pb2.ChallengeReply:
        signed = self._open(request.answer, wire.ChallengeAnswer, context)
        return await self._engine.answer_challenge(signed, request.chunks)

    async def SubmitScreening(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.ScreeningReply:
        return await self._engine.submit_screening(self._open(request, wire.Screening, context))

    async def Appeal(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> service_pb2.AppealReply:
        return await self._engine.appeal(self._open(request, wire.Appeal, context))

    async def GetAudit(  # noqa: N802
        self, request: service_pb2.GetAuditRequest, context: Context
    ) -> AsyncIterator[service_pb2.AuditPiece]:
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        run = self._engine.context
        found = await self._database.run(
            lambda session: audit_file(session, run, request.round, request.worker)
        )
        with self._one_more("download", context.peer()):
            for piece in found.pieces():
                yield piece
            for key in found.openings:
                chunk = await self._database.run(partial(opened_chunk, key=key))
                yield service_pb2.AuditPiece(chunk=chunk)

    # ---- streams ----

    async def Watch(  # noqa: N802
        self, request: wire.Envelope, context: Context
    ) -> AsyncIterator[service_pb2.RunEvent]:
        worker = self._open(request, wire.WatchRequest, context).signer
        task = asyncio.current_task()
        assert task is not None
        await self._database.run(lambda session: enrolled(session, worker))
        with self._one_more("watch", worker):
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
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        kind, sha256 = await self._database.run(
            lambda session: state_file(session, request.state_digest, request.part)
        )
        blob = await self._blobs.state(kind, sha256)
        with self._one_more("download", context.peer()):
            async for piece in blob.pieces(request.offset):
                yield piece

    async def GetShard(  # noqa: N802
        self, request: service_pb2.GetShardRequest, context: Context
    ) -> AsyncIterator[service_pb2.Piece]:
        self._guard.allow(context.peer())
        self._guard.check_run(request.run_id)
        blob = await self._blobs.find(request.sha256)
        with self._one_more("download", context.peer()):
            async for piece in blob.pieces(request.offset):
                yield piece

    def _open(
        self, envelope: wire.Envelope, record_class: type[Message], context: Context
    ) -> Signed[Any]:
        return self._guard.open(envelope, record_class, peer=context.peer())

    @contextmanager
    def _one_more(self, kind: str, who: str) -> Iterator[None]:
        """Count an open stream; addresses and workers have limits of their own."""
        most = MAX_WATCHES_PER_WORKER if kind == "watch" else MAX_STREAMS_PER_ADDRESS
        name = f"{kind} {address_of(who)}"
        if self._open_streams[name] >= most:
            raise RateLimited(f"{most} streams of this kind are open already: close one first")
        self._open_streams[name] += 1
        try:
            yield
        finally:
            self._open_streams[name] -= 1
            if not self._open_streams[name]:
                del self._open_streams[name]


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
