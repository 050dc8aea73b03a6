"""The worker's side of the coordinator's API.

Invariants:

* Requests that change state are signed; what the coordinator signs is checked against the
  keys that the link's root key delegated before anybody sees it.
* Deadlines of the run are on the coordinator's clock, which :meth:`Session.now_ms` follows
  (:mod:`worker.run_clock`).
* A request whose date the coordinator does not believe is dated and signed anew, once, after a
  Hello that tells its clock.
* Blobs come as they are sent: who fetches them checks them (:mod:`worker.blob_fetch`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from protocol.certificate import delegation_in
from protocol.channel import (
    CALL_TIMEOUT_S,
    call,
    open_channel,
    received,
    trusted_certificate,
)
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadSignature, Stale, TransientError, UsageError
from protocol.hello import check_hello, client_version
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from protocol.wire.service_pb2_grpc import CoordinatorStub
from worker.bulk_line import BulkLine
from worker.clock import steady_s
from worker.plain import plain
from worker.run_clock import RunClock

log = structlog.get_logger()

Record = TypeVar("Record", bound=Message)
Reply = TypeVar("Reply")

_STREAM_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 60.0  # 3 MiB, over a slow line
_NONCE_BYTES = 16
_MOST_REASON_CHARS = 300  # it is shown, logged and told again
_AWAITS_APPROVAL = "approval"


@dataclass(frozen=True)
class Greeting:
    """What Hello told, checked."""

    manifest: RunManifest
    anchors: tuple[str, ...]
    run_head: Signed[wire.RunHead] | None
    public_url: str
    server_version: str
    reply: api.HelloReply  # as it came; its records are verified


class Session:
    """One connection to the coordinator of one run. Open it with :meth:`connect`."""

    def __init__(self, link: JoinLink, identity: Identity, pem: bytes, through: str = "") -> None:
        self.link = link
        self.identity = identity
        self._through = through
        self.trust = TrustStore(link.run_id, link.root)
        self._use(pem)
        self.clock = RunClock()
        self.greeting: Greeting
        self._beat: wire.Heartbeat | None = None  # the last that was taken

    @classmethod
    async def connect(cls, link: JoinLink, identity: Identity, through: str = "") -> Self:
        """Open the pinned channel, ``through`` a metered line, and say Hello.

        Raises:
            UsageError: wrong root fingerprint, unknown run, unsupported version.
            TransientError: the coordinator does not answer.
        """
        session = cls(link, identity, await trusted_certificate(link), through)
        try:
            await session.hello()
        except BaseException:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        await self._leave(self._channels, None)

    async def follow_certificate(self) -> None:
        """Trust the certificate that the server shows now, when the organiser renewed its keys.

        Raises:
            UsageError: it is not vouched for by the link's root key, or not any more.
            TransientError: the server does not answer.
        """
        pem = await trusted_certificate(self.link)
        if self.trust.is_revoked(delegation_in(pem).serial):
            raise UsageError(
                f"the server at {self.link.address} shows a certificate that the organiser has "
                "revoked: somebody else may answer there"
            )
        if pem == self._pem:
            return
        old = self._channels
        self._use(pem)
        # Calls under way fail by themselves; cancelling them would look like our own shutdown.
        await self._leave(old, CALL_TIMEOUT_S)

    async def reconnect(self) -> None:
        """Leave a connection that may be dead without a sign: this machine's address changed.

        Calls under way are made again on the new one.
        """
        old = self._channels
        self._use(self._pem)
        await self._leave(old, None)

    def _use(self, pem: bytes) -> None:
        self._pem = pem
        # On one connection a heartbeat would wait behind a blob: 10 s of it on a slow line.
        self._channels = [open_channel(self.link, pem, self._through) for _ in ("small", "bulk")]
        self._stub, bulk = map(CoordinatorStub, self._channels)
        # At once: what has to wait for a handshake under a flood is what a round waits for.
        self._channels[1].get_state(try_to_connect=True)
        self._bulk = BulkLine(bulk, self._sign_beat)

    @staticmethod
    async def _leave(channels: Iterable[grpc.aio.Channel], grace_s: float | None) -> None:
        async with asyncio.TaskGroup() as tasks:
            for channel in channels:
                tasks.create_task(channel.close(grace_s))

    # ---- clock -------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Now, on the coordinator's clock, milliseconds."""
        return int(self.clock.now_s() * 1000)

    def now_s(self) -> float:
        return self.now_ms() / 1000

    def seconds_until(self, deadline_ms: int) -> float:
        return max(0.0, (deadline_ms - self.now_ms()) / 1000)

    # ---- calls -------------------------------------------------------------------------

    async def hello(self) -> Greeting:
        """Version gate, manifest, keys, clock, head and anchors of the run."""
        sent_s = steady_s()
        request = api.HelloRequest(client_version=client_version(), run_id=self.link.run_id)
        reply = await call(lambda timeout: self._stub.Hello(request, timeout=timeout))
        manifest = check_hello(reply, self.link, self.trust)
        self.clock.learn(reply.server_time_ms, sent_s)  # first: keys are valid for a time only
        head = None
        if reply.HasField("run_head") and reply.run_head.payload:
            head = self.open_round_record(reply.run_head, wire.RunHead)
        self.greeting = Greeting(
            manifest, tuple(reply.anchors), head, reply.public_url, reply.server_version, reply
        )
        return self.greeting

    def open_round_record(self, envelope: wire.Envelope, kind: type[Record]) -> Signed[Record]:
        """Verify a record that only the run's round key may sign.

        Raises:
            BadSignature, BadRecord: it is not one, or of another run.
        """
        signed = open_envelope(envelope, kind)
        self.trust.require_signer(wire.KEY_PURPOSE_ROUND, signed.signer, self.now_s())
        if signed.record.run_id != self.link.run_id:  # type: ignore[attr-defined]
            raise BadSignature(f"a {kind.DESCRIPTOR.name} of another run")
        return signed

    def freshness(self) -> wire.Freshness:
        return wire.Freshness(sent_at_ms=self.now_ms(), nonce=secrets.token_bytes(_NONCE_BYTES))

    async def _call_dated(
        self, attempt: Callable[[float], Awaitable[Reply]], **options: Any
    ) -> Reply:
        """Make a call whose request carries a date and is signed at every attempt.

        Raises:
            ProtocolError: see :func:`protocol.channel.call`.
        """
        try:
            return await call(attempt, **options)
        except Stale as error:
            await self._learn_clock_again(error)
        return await call(attempt, **options)

    async def _learn_clock_again(self, problem: Stale) -> None:
        log.info("learning the coordinator's clock again", problem=str(problem))
        await self.hello()

    async def enrol(self, enrolment: wire.Enrolment) -> wire.Envelope:
        """Ask to be admitted.

        Returns:
            The signed Admission, which lets this device write to the run's DHT records.

        Raises:
            UsageError: refused, with the coordinator's reason.
            TransientError: the organiser has yet to approve this device; ask again.
        """

        def attempt(timeout: float) -> grpc.aio.UnaryUnaryCall:
            # Signed anew each time: a nonce is accepted once.
            enrolment.freshness.CopyFrom(self.freshness())
            return self._stub.Enrol(seal(enrolment, self.identity), timeout=timeout)

        reply = await self._call_dated(attempt)
        if reply.code == _AWAITS_APPROVAL and not reply.admitted:
            raise TransientError(plain(reply.message, _MOST_REASON_CHARS))
        if not reply.admitted:
            reason = plain(reply.message, _MOST_REASON_CHARS)
            raise UsageError(f"the coordinator did not admit this worker: {reason}")
        self.open_round_record(reply.admission, wire.Admission)
        admission: wire.Envelope = reply.admission
        return admission

    async def request_work(self, tokens_per_s: float) -> api.WorkReply:
        def attempt(timeout: float) -> grpc.aio.UnaryUnaryCall:
            request = wire.WorkRequest(
                run_id=self.link.run_id,
                worker=self.identity.peer_id,
                tokens_per_s=tokens_per_s,
                freshness=self.freshness(),
            )
            return self._stub.RequestWork(seal(request, self.identity), timeout=timeout)

        reply: api.WorkReply = await self._call_dated(attempt)
        if reply.HasField("wait"):
            reply.wait.reason = plain(reply.wait.reason, _MOST_REASON_CHARS)
        return reply

    async def commit(self, envelope: wire.Envelope) -> api.CommitReply:
        reply: api.CommitReply = await call(lambda t: self._stub.Commit(envelope, timeout=t))
        return reply

    async def reducer_report(self, envelope: wire.Envelope) -> api.ReducerReportReply:
        reply: api.ReducerReportReply = await call(
            lambda t: self._stub.ReducerReport(envelope, timeout=t)
        )
        return reply

    async def report(self, envelope: wire.Envelope) -> api.ReportReply:
        reply: api.ReportReply = await call(lambda t: self._stub.Report(envelope, timeout=t))
        return reply

    async def submit_results(self, pieces: Iterable[api.ResultPiece]) -> api.SubmitResultsReply:
        held = list(pieces)

        async def attempt(timeout: float) -> api.SubmitResultsReply:
            stub = await self._bulk.proven(self._beat)
            reply: api.SubmitResultsReply = await stub.SubmitResults(iter(held), timeout=timeout)
            return reply

        return await call(attempt, timeout_s=120.0)

    async def answer_challenge(self, request: api.AnswerChallengeRequest) -> bool:
        """Show what an audit asked for.

        Returns:
            Whether it proves what it should.
        """

        async def attempt(timeout: float) -> bool:
            stub = await self._bulk.proven(self._beat)
            reply: api.ChallengeReply = await stub.AnswerChallenge(request, timeout=timeout)
            return reply.valid

        return await call(attempt, timeout_s=_ANSWER_TIMEOUT_S)

    async def submit_screening(self, envelope: wire.Envelope) -> None:
        """Tell what was measured of the members' inputs; tried once: nobody waits for it."""
        await call(lambda t: self._stub.SubmitScreening(envelope, timeout=t), attempts=1)

    async def appeal(self, assignment_id: bytes) -> api.AppealReply:
        """Appeal against the verdict on one unit of work.

        Raises:
            UsageError: there is nothing to appeal against, or not any more.
        """

        def attempt(timeout: float) -> grpc.aio.UnaryUnaryCall:
            record = wire.Appeal(
                run_id=self.link.run_id,
                worker=self.identity.peer_id,
                assignment_id=assignment_id,
                freshness=self.freshness(),
            )
            return self._stub.Appeal(seal(record, self.identity), timeout=timeout)

        reply: api.AppealReply = await self._call_dated(attempt)
        return reply

    async def act(self, envelope: wire.Envelope) -> api.ActReply:
        """Hand in an act that goes into the record: the same bytes as often as it takes.

        Raises:
            UsageError, PeerFault: refused, with the coordinator's reason.
        """
        reply: api.ActReply = await call(lambda t: self._stub.Act(envelope, timeout=t))
        return reply

    async def act_dated(self, record: wire.ProfileUpdate) -> api.ActReply:
        """Hand in an act that does not: it is dated and signed anew at every attempt.

        Raises:
            UsageError, PeerFault: refused, with the coordinator's reason.
        """

        def attempt(timeout: float) -> grpc.aio.UnaryUnaryCall:
            record.freshness.CopyFrom(self.freshness())
            return self._stub.Act(seal(record, self.identity), timeout=timeout)

        reply: api.ActReply = await self._call_dated(attempt)
        return reply

    async def heartbeat(self, beat: wire.Heartbeat) -> api.HeartbeatReply:
        sent_s = steady_s()

        def attempt(timeout: float) -> grpc.aio.UnaryUnaryCall:
            nonlocal sent_s
            sent_s = steady_s()
            return self._stub.Heartbeat(self._sign_beat(beat), timeout=timeout)

        reply: api.HeartbeatReply = await self._call_dated(attempt, attempts=2, timeout_s=10.0)
        if reply.server_time_ms:
            self.clock.learn(reply.server_time_ms, sent_s)
        reply.reason = plain(reply.reason, _MOST_REASON_CHARS)
        self._beat = beat
        return reply

    def _sign_beat(self, beat: wire.Heartbeat) -> wire.Envelope:
        beat.freshness.CopyFrom(self.freshness())
        return seal(beat, self.identity)

    async def dial_back(self, ports: Iterable[int]) -> api.DialBackReply:
        """Have the coordinator dial TCP ports of this machine; tried once: it may be refused.

        Raises:
            UsageError: a coordinator that does not know this call.
        """
        request = api.DialBackRequest(run_id=self.link.run_id, ports=ports)
        reply: api.DialBackReply = await call(
            lambda t: self._stub.DialBack(request, timeout=t), attempts=1
        )
        return reply

    async def receipt(self, assignment_id: bytes) -> api.GetReceiptReply:
        request = api.GetReceiptRequest(run_id=self.link.run_id, assignment_id=assignment_id)
        reply: api.GetReceiptReply = await call(lambda t: self._stub.GetReceipt(request, timeout=t))
        return reply

    async def watch(self) -> AsyncIterator[api.RunEvent]:
        """The run's events until the stream breaks.

        Raises:
            TransientError: it broke; connect again.
        """
        for number in range(2):
            try:
                async with aclosing(self._watch_once()) as events:
                    async for event in events:
                        yield event
                break
            except Stale as error:
                if number:
                    raise
                await self._learn_clock_again(error)
        raise TransientError("the coordinator ended the event stream")

    def _watch_once(self) -> AsyncGenerator[api.RunEvent]:
        request = wire.WatchRequest(
            run_id=self.link.run_id, worker=self.identity.peer_id, freshness=self.freshness()
        )
        # No deadline: the stream is meant to stay. Keepalive pings notice a dead way.
        return received(lambda: self._stub.Watch(seal(request, self.identity)))

    # ---- blobs -------------------------------------------------------------------------

    async def blob_pieces(self, sha256: bytes, offset: int) -> AsyncGenerator[api.Piece]:
        """A public blob of the run (state, shard, dataset manifest) from ``offset`` on, unchecked.

        Raises:
            TransientError: the stream broke, or the coordinator is away.
            NotFound: it does not have it (any more).
        """
        request = api.GetShardRequest(run_id=self.link.run_id, sha256=sha256, offset=offset)
        stub = await self._bulk.proven(self._beat)
        pieces = received(lambda: stub.GetShard(request, timeout=_STREAM_TIMEOUT_S))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
