"""Signs of life, and seeding of weights: what a node does besides its work."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from protocol.errors import NotEnrolled, PeerFault, ProtocolError, TransientError, UsageError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.node import Node, own_addresses
from worker.round_runner import RoundRunner
from worker.status import Board

log = structlog.get_logger()

HEARTBEAT_S = 4.0
_ANNOUNCE_S = 60.0


@dataclass
class Heartbeats:
    """Tells the coordinator what is being done and obeys its answer."""

    node: Node
    board: Board
    runner: RoundRunner | None = None
    paused: bool = False
    reason: str = ""

    async def run(self) -> None:
        while True:
            try:
                reply = await self.node.session.heartbeat(await self._beat())
                self.board.connected = True
                self._obey(reply)
            except NotEnrolled:
                await self._enrol()
            except (TransientError, PeerFault, UsageError) as error:
                if self.board.connected:
                    log.warning("heartbeat not answered", problem=str(error))
                self.board.connected = False
            await asyncio.sleep(HEARTBEAT_S)

    async def _enrol(self) -> None:
        try:
            await self.node.enrol()
        except ProtocolError as error:
            log.warning("cannot enrol again", problem=str(error))

    async def _beat(self) -> wire.Heartbeat:
        board, config = self.board, self.node.config
        return wire.Heartbeat(
            run_id=config.join_link.run_id,
            worker=self.node.identity.peer_id,
            round=board.round,
            assignment_id=bytes.fromhex(board.assignment_id),
            steps_done=board.steps_done,
            tokens_per_s=board.tokens_per_s,
            phase=board.phase.wire,
            reason=board.reason[:200],
            client_mode=config.client_mode,
            multiaddrs=[] if config.client_mode else await own_addresses(self.node.swarm),
        )

    def _obey(self, reply: api.HeartbeatReply) -> None:
        paused = reply.action in (api.ACTION_PAUSE, api.ACTION_UPGRADE)
        if paused != self.paused:
            log.info("paused by the organiser" if paused else "resumed", reason=reply.reason)
            self.paused, self.reason = paused, reply.reason or "paused by the organiser"
            self.node.watch.notify()
        if reply.action == api.ACTION_ABANDON and self.runner is not None:
            self.runner.abandoned = bytes.fromhex(self.board.assignment_id)
            log.info("the coordinator gave up this unit", reason=reply.reason)
            self.node.watch.notify()


async def seed_weights(node: Node, *, fetch: bool) -> None:
    """Announce this node as a holder of the run's weights, for ever.

    Args:
        fetch: get them if they are not here (anchors do; workers announce what they have).
    """
    while True:
        head = node.watch.head
        try:
            if head is not None:
                if fetch:
                    await node.states.file(head, "weights")
                if node.blobs.known(head.record.weights_sha256) is not None:
                    await node.swarm.announce_weights(head.record.state_digest, node.admission)
        except (TransientError, PeerFault, UsageError) as error:
            log.warning("cannot seed the weights now", problem=str(error))
        round_ = -1 if head is None else head.record.round
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANNOUNCE_S):
                await node.watch.until(partial(node.watch.head_beyond, round_))
