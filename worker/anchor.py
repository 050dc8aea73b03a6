"""The anchor: a public peer of the organiser. It bootstraps the DHT, seeds blobs, reduces.

Invariants:

* It never trains and reports nothing about its own state; it opens every roster without an update.
* It keeps fresh by the same outer step that members make, and fetches the state when it could not.
* It puts heads and rosters into the DHT, for those who have lost the coordinator.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from protocol.envelope import Signed
from protocol.errors import PeerFault, TransientError, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.config import Home, WorkerConfig
from worker.control import home_lock
from worker.heartbeat import Heartbeats, seed_weights
from worker.node import Node, open_node
from worker.race import unless
from worker.reentry import stay_in_touch
from worker.running import clear_folder
from worker.seeding import seed_shards
from worker.status import Board, Phase
from worker.taking_part import Reduction

log = structlog.get_logger()

_PROBLEM_WAIT_S = 5.0


@dataclass
class Anchor:
    """One anchor in one home folder. :meth:`run` is its whole life."""

    home: Home
    config: WorkerConfig
    identity_path: Path
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises:
            UsageError: cannot begin: what a person has to do.
        """
        self.home.prepare()
        identity = await asyncio.to_thread(load_or_make, self.identity_path)
        board = Board(identity.peer_id, self.config.join_link.run_id.hex()[:16])
        loop = asyncio.get_running_loop()
        with home_lock(self.home):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop.set)
            clear_folder(self.home)
            try:
                await unless(self._live(identity, board), self.stop.wait())
            finally:
                clear_folder(self.home)
        log.info("anchor ended")

    async def _live(self, identity: Identity, board: Board) -> None:
        async with (
            open_node(
                self.home, self.config, identity, self.identity_path, board, anchor=True
            ) as node,
            asyncio.TaskGroup() as tasks,
        ):
            log.info("anchor serves", addresses=await node.swarm.multiaddrs())
            tasks.create_task(node.swarm.run())
            tasks.create_task(stay_in_touch(node))
            tasks.create_task(node.watch.run())
            tasks.create_task(node.outbox.run())
            tasks.create_task(Heartbeats(node, board).run())
            tasks.create_task(node.retained.run())
            tasks.create_task(node.reachability.run())
            tasks.create_task(seed_weights(node, fetch=True))
            tasks.create_task(seed_shards(node))
            tasks.create_task(publish(node))
            tasks.create_task(reduce_for_ever(node, board))


async def reduce_for_ever(node: Node, board: Board) -> None:
    """Take part in every round's reduce. Run it as a task."""
    while True:
        head = await node.watch.until(lambda: node.watch.head)
        board.round, board.settled_rounds = head.record.round, head.record.settled_rounds
        board.waiting("waiting for a roster", Phase.WAITING)
        reduction = Reduction.of(node, reports=False)
        try:
            round_ = head.record.round - node.watch.lag_rounds
            await reduction.follow(round_, None, listen=True)
        except TransientError as error:
            log.warning("missed a round", round=head.record.round, problem=str(error))
            await node.watch.change(_PROBLEM_WAIT_S)


async def publish(node: Node) -> None:
    """Put every new head and roster into the DHT. Run it as a task."""
    round_, attempt = -1, 0
    while True:
        await node.watch.until(partial(_news, node, round_, attempt))
        head = node.watch.head_beyond(round_)
        if head is not None:
            round_, attempt = head.record.round, 0
            await _publish(node, head, None)
        roster = node.watch.roster_after(round_ - node.watch.lag_rounds, attempt)
        if roster is not None:
            attempt = roster.record.attempt
            await _publish(node, None, roster)


def _news(node: Node, round_: int, attempt: int) -> bool | None:
    reduced = round_ - node.watch.lag_rounds
    found = node.watch.head_beyond(round_) or node.watch.roster_after(reduced, attempt)
    return True if found else None


async def _publish(
    node: Node, head: Signed[wire.RunHead] | None, roster: Signed[wire.Roster] | None
) -> None:
    try:
        if head is not None:
            await node.swarm.publish_head(head.envelope)
        if roster is not None:
            await node.swarm.publish_roster(roster.envelope, node.admission)
    except (TransientError, PeerFault, UsageError) as error:
        log.warning("cannot publish in the swarm", problem=str(error))


def load_or_make(path: Path) -> Identity:
    """The key at ``path``, made if there is none; blocking.

    Raises:
        UsageError: the file is damaged.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Identity.generate().save(path)
    return Identity.load(path)
