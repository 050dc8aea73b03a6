"""Signs of life, answers to audits, and seeding of weights: what a node does besides its work.

Invariant: heartbeats never wait for an answer to an audit, nor for a disk.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from protocol.errors import (
    NotEnrolled,
    PeerFault,
    ProtocolError,
    RateLimited,
    Stale,
    TransientError,
    UsageError,
)
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.status import Board, Phase
from worker.trouble import Trouble

if TYPE_CHECKING:  # they load torch and hivemind, which a worker that is asleep must not
    from worker.contact import Contact
    from worker.node import Node
    from worker.round_runner import RoundRunner

log = structlog.get_logger()

HEARTBEAT_S = 4.0
"""Unless the coordinator asks for another interval, within :data:`HEARTBEAT_BOUNDS_S`."""

HEARTBEAT_BOUNDS_S = (0.1, 60.0)

_WHY = (
    "paused by the organiser",
    "the run needs a newer barnraise: upgrade it, then start this worker again",
)
"""Where the coordinator gives no reason: for a pause, and for an upgrade."""

_MOST_CHALLENGES = 64
_ANSWER_S = 300.0  # reading, projecting, sending: else the coordinator asks again
_ANNOUNCE_S = 60.0
_KINDS = frozenset(api.ChallengeKind.values())


@dataclass
class Heartbeats:
    """Tells the coordinator what is being done and obeys its answer."""

    node: Contact
    board: Board
    runner: RoundRunner | None = None
    paused: bool = False
    reason: str = ""
    _interval_s: float = HEARTBEAT_S
    _problem: str = ""  # why the last heartbeat was not taken: a stable word
    _unenrolled: Trouble = field(default_factory=lambda: Trouble("cannot enrol again"))
    _untidy: Trouble = field(default_factory=lambda: Trouble("old evidence stays"))
    _retain_from: int = 0
    _asked: dict[bytes, api.Challenge] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat_for_ever())
            tasks.create_task(self._answer_for_ever())

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                reply = await self.node.session.heartbeat(await self._beat())
                self._problem = ""
                self.board.heard_of_coordinator(True)
                self._obey(reply)
                await self._renew_admission()
            except NotEnrolled:
                await self._enrol()
            except (TransientError, PeerFault, UsageError) as error:
                self._unheard(error)
            await asyncio.sleep(self._interval_s)

    def _unheard(self, error: ProtocolError) -> None:
        away = isinstance(error, TransientError) and not isinstance(error, (RateLimited, Stale))
        # Without the event stream too it is away, and that has been said.
        if error.reason != self._problem and (self.node.watch.connected or not away):
            log.warning("heartbeat not taken", problem=str(error))
        self._problem = error.reason
        self.board.heard_of_coordinator(not away)

    async def _renew_admission(self) -> None:
        """Peers believe it no more once the organiser revoked the key that signed it."""
        if self.node.admission is None:
            return
        try:
            self.node.session.open_round_record(self.node.admission, wire.Admission)
        except PeerFault:
            await self._enrol()

    async def _enrol(self) -> None:
        try:
            await self.node.enrol()
            self._unenrolled.over()
        except ProtocolError as error:
            self._unenrolled.tell(error)

    async def _beat(self) -> wire.Heartbeat:
        board = self.board
        phase, reason = board.told()
        if phase == Phase.PAUSED and not (board.asleep or board.assignment_id or self.paused):
            phase = Phase.WAITING  # or it would give up a lease that it is just about to get
        board.bad_sources = self.node.bad_sources
        return wire.Heartbeat(
            run_id=self.node.config.join_link.run_id,
            worker=self.node.identity.peer_id,
            round=board.round,
            assignment_id=bytes.fromhex(board.assignment_id),
            steps_done=board.steps_done,
            tokens_per_s=board.tokens_per_s,
            phase=phase.wire,
            reason=reason[:200],
            client_mode=not self.node.direct,
            multiaddrs=await self.node.addresses(),
            bad_sources=board.bad_sources,
            given_up=bytes.fromhex(board.given_up),
        )

    def _obey(self, reply: api.HeartbeatReply) -> None:
        paused = reply.action in (api.ACTION_PAUSE, api.ACTION_UPGRADE)
        if paused != self.paused:
            log.info("paused by the organiser" if paused else "resumed", reason=reply.reason)
            self.paused = paused
            self.reason = reply.reason or _WHY[reply.action == api.ACTION_UPGRADE]
            self.node.watch.notify()
        if reply.action == api.ACTION_ABANDON and self.runner is not None:
            self._abandon(self.runner, bytes.fromhex(self.board.assignment_id), reply.reason)
        self._interval_s = interval_s(reply.next_heartbeat_ms)
        self._retain_from = reply.retain_from_round
        for challenge in reply.challenges[:_MOST_CHALLENGES]:
            if len(self._asked) < _MOST_CHALLENGES:
                self._asked.setdefault(challenge.challenge_id, challenge)
        self._news.set()

    def _abandon(self, runner: RoundRunner, unit: bytes, reason: str) -> None:
        if runner.abandoned != unit:  # it is said again until it is heeded
            runner.abandoned = unit
            log.info("the coordinator gave up this unit", reason=reason)
            self.node.watch.notify()

    # ---- audits ------------------------------------------------------------------------

    async def _answer_for_ever(self) -> None:
        """Show what is asked for, one after the other; what fails is asked for again."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self._forget()
            for challenge_id in list(self._asked):
                await self._answer(self._asked[challenge_id])
                del self._asked[challenge_id]

    async def _answer(self, challenge: api.Challenge) -> None:
        kind = api.ChallengeKind.Name(challenge.kind) if challenge.kind in _KINDS else "unknown"
        try:
            async with asyncio.timeout(_ANSWER_S):
                request = await asyncio.to_thread(self.node.evidence.answer, challenge)
                if request is None:
                    return
                valid = await self.node.session.answer_challenge(request)
        except (ProtocolError, TimeoutError) as error:
            log.info("challenge not answered", kind=kind, problem=str(error))
        else:
            log.info("challenge answered", kind=kind, chunks=len(request.chunks), valid=valid)

    async def _forget(self) -> None:
        """Let go of what no audit needs any more."""
        head, tidy = self.node.watch.head, self.node.retained.tidy
        if head is None:
            return
        try:
            oldest = head.record.round - self.node.watch.lag_rounds  # that may be reduced now
            await asyncio.to_thread(tidy, self._retain_from, oldest)
            self._untidy.over()
        except TransientError as error:
            self._untidy.tell(error)


def interval_s(next_heartbeat_ms: int) -> float:
    """Seconds to the next heartbeat; 0 ms leaves them to us."""
    if not next_heartbeat_ms:
        return HEARTBEAT_S
    least_s, most_s = HEARTBEAT_BOUNDS_S
    return min(max(next_heartbeat_ms / 1000, least_s), most_s)


async def seed_weights(node: Node, *, fetch: bool) -> None:
    """Announce this node as a holder of the run's weights while others reach it, for ever.

    Args:
        fetch: get them, and the momentum, if they are not here (anchors do; workers announce what
            they have).
    """
    trouble = Trouble("cannot seed the weights now")
    while True:
        head = node.watch.head
        try:
            if head is not None:
                if fetch:
                    await node.states.file(head, "weights")
                    await node.states.file(head, "momentum")
                direct = node.reachability.reach.direct
                if direct and node.blobs.known(head.record.weights_sha256) is not None:
                    await node.swarm.announce_weights(head.record.state_digest, node.admission)
                trouble.over()
        except (TransientError, PeerFault, UsageError) as error:
            trouble.tell(error)
        round_ = -1 if head is None else head.record.round
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANNOUNCE_S):
                await node.watch.until(partial(node.watch.head_beyond, round_))
