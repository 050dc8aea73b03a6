"""The life of a worker: run, pause, resume, finish, stop.

What ends it:

* *finish* (or Ctrl-C once): the unit under way is trained, committed and reduced; then it ends.
* *stop* (or Ctrl-C twice, or SIGTERM): at once. What was trained is in the journal and is
  committed at the next start if its round is still open.

Shutdown, in this order, each step even if one before it failed: tasks are cancelled; swarm
shut down (p2pd reaped); gRPC channel; journal; control socket removed; trainer killed and reaped;
what was half-made in the scratch folder removed; lock freed. It takes seconds at most: no step
waits for the network.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from protocol.errors import NotEnrolled, PeerFault, TransientError, UsageError
from protocol.identity import Identity
from protocol.wire.records_pb2 import Assignment
from worker.cache_status import require_room, show_cache
from worker.config import Home, WorkerConfig
from worker.control import control_server, home_lock
from worker.heartbeat import Heartbeats, seed_weights
from worker.journal import Lease, LeaseState
from worker.node import Node, open_node
from worker.prefetch import Prefetch
from worker.probation import Probation
from worker.race import unless
from worker.receipts import collect_receipts, last_receipts, store_trust
from worker.reentry import stay_in_touch
from worker.round_runner import RECEIPT_PATIENCE_S, RoundRunner
from worker.status import AWAY, Board, Phase
from worker.taking_part import Reduction
from worker.trainer import Trainer
from worker.unit_room import UnitRoom

log = structlog.get_logger()

_WAIT_S = (0.2, 30.0)  # bounds on what the coordinator may ask us to wait
_PROBLEM_WAIT_S = 5.0
_PAUSED = "paused"
_DOWNLOAD_KEPT_S = 24 * 3600  # the state or shard that it was of is hardly wanted later
_GOODBYE_S = 5.0  # for what the coordinator has not answered, before we leave


class _Done(Exception):
    """Ends the task group from inside; private."""


@dataclass
class Daemon:
    """One worker in one home folder. :meth:`run` is its whole life.

    The trainer is its caller's, who starts it early: both load for seconds.
    """

    home: Home
    config: WorkerConfig
    trainer: Trainer
    until_finished: bool = False
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    paused: bool | None = None  # None: as the journal says
    _node: Node | None = None
    _logged_reason: str = ""

    def __post_init__(self) -> None:
        self.identity = Identity.load(self.home.identity)
        self.board = Board(self.identity.peer_id, self.config.join_link.run_id.hex()[:16])

    async def run(self) -> None:
        """Live until finished or stopped.

        Raises:
            UsageError: cannot begin: what a person has to do.
        """
        self.home.prepare()
        with home_lock(self.home), self._signals():
            clear_folder(self.home)
            try:
                async with control_server(self.home, self.handle):
                    await unless(self._live(), self.stop.wait())
            finally:
                await self.trainer.close()  # it may be writing there
                clear_folder(self.home)
        log.info("worker ended")

    # ---- commands ----------------------------------------------------------------------

    def handle(self, command: str) -> dict[str, Any]:
        """One command of the control socket; see :mod:`worker.control`."""
        if command == "finish":
            self.ask_to_finish()
        elif command == "stop":
            log.info("stopping now")
            self.stop.set()
        elif command in ("pause", "resume"):
            self._set_paused(command == "pause")
        return {"status": self.board.snapshot()}

    def ask_to_finish(self) -> None:
        if not self.finish.is_set():
            log.info("finishing: no new unit after this one")
        self.finish.set()
        self.board.finishing = True
        self._wake()

    def _set_paused(self, paused: bool) -> None:
        self.paused = paused
        log.info("paused" if paused else "resumed")
        self._remember_pause()
        self._wake()

    def _remember_pause(self) -> None:
        """A pause stays over a restart: an owner who said so once need not say it again."""
        if self._node is not None:
            journal = self._node.journal
            try:
                if self.paused is None:
                    self.paused = journal.get(_PAUSED) == "yes"
                    if self.paused:
                        log.info("still paused: 'barnraise worker resume' ends it")
                else:
                    journal.put(_PAUSED, "yes" if self.paused else "no")
            except TransientError as error:
                log.warning("will be forgotten at a restart", problem=str(error))
        self.board.paused = bool(self.paused)

    def _on_interrupt(self) -> None:
        if self.finish.is_set():
            log.info("stopping now")
            self.stop.set()
        else:
            log.info("finishing this unit; Ctrl-C again stops now")
            self.ask_to_finish()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            loop.remove_signal_handler(signal.SIGTERM)

    def _wake(self) -> None:
        if self._node is not None:
            self._node.watch.notify()

    # ---- tasks -------------------------------------------------------------------------

    async def _live(self) -> None:
        node_opening = open_node(
            self.home, self.config, self.identity, self.home.identity, self.board, anchor=False
        )
        node = await unless(node_opening.__aenter__(), self.finish.wait())
        if node is None:
            return
        try:
            self._node = node
            self._remember_pause()
            self.board.public_url = node.session.greeting.public_url
            await asyncio.to_thread(store_trust, node.journal, node.session.greeting.reply)
            await self._tasks(node)
        finally:
            self._node = None
            await node_opening.__aexit__(None, None, None)

    async def _tasks(self, node: Node) -> None:
        runner = self._runner(node)
        beats = Heartbeats(node, self.board, runner)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(node.swarm.run())
                tasks.create_task(stay_in_touch(node))
                tasks.create_task(node.watch.run())
                tasks.create_task(node.outbox.run())
                tasks.create_task(beats.run())
                tasks.create_task(node.retained.run())
                tasks.create_task(collect_receipts(node, self.board))
                tasks.create_task(node.reachability.run())
                tasks.create_task(seed_weights(node, fetch=False))
                tasks.create_task(runner.prefetch.run())
                tasks.create_task(show_cache(node, runner.prefetch, self.board))
                await self._work(node, runner, beats, Probation(runner))
                await node.outbox.drain(_GOODBYE_S)
                await last_receipts(node)
                raise _Done
        except* _Done:
            log.info("work ended", units=self.board.units_committed)

    def _runner(self, node: Node) -> RoundRunner:
        manifest = node.session.greeting.manifest
        return RoundRunner(
            home=self.home,
            config=self.config,
            manifest=manifest,
            device=node.device,
            session=node.session,
            watch=node.watch,
            states=node.states,
            data=node.data,
            outbox=node.outbox,
            journal=node.journal,
            trainer=self.trainer,
            board=self.board,
            room=UnitRoom(node.disk, manifest),
            prefetch=Prefetch(node.data, manifest.sequence_length),
        )

    # ---- work --------------------------------------------------------------------------

    async def _work(
        self, node: Node, runner: RoundRunner, beats: Heartbeats, probation: Probation
    ) -> None:
        while not self.finish.is_set():
            try:
                await self._one_unit(node, runner, beats, probation)
            except NotEnrolled:
                log.info("the coordinator does not know this device: enrolling again")
                await self._retry(node, node.enrol())
            except TransientError as error:
                # How it does not answer differs from call to call, and tells a person nothing.
                reason = str(error) if node.watch.connected else AWAY
                await self._wait(node, reason, _PROBLEM_WAIT_S)
            except (PeerFault, UsageError) as error:
                await self._wait(node, str(error), _PROBLEM_WAIT_S)

    async def _warm_up(self, runner: RoundRunner) -> bool:
        self.board.waiting("loading the training code")
        await runner.warm_up()
        return True

    async def _one_unit(
        self, node: Node, runner: RoundRunner, beats: Heartbeats, probation: Probation
    ) -> None:
        if self.paused or beats.paused:
            reason = beats.reason if beats.paused else "paused by you: 'barnraise worker resume'"
            self.board.waiting(reason, Phase.PAUSED)
            await node.watch.change(_WAIT_S[1])
            return
        if self.board.swarm_problem:  # a unit that cannot be reduced would be trained for nothing
            await self._wait(node, self.board.swarm_problem, _PROBLEM_WAIT_S)
            return
        head = node.watch.head
        if head is None:
            await self._wait(node, "the run has no state yet", _PROBLEM_WAIT_S)
            return
        if not await unless(self._warm_up(runner), self.finish.wait()):
            return
        self.board.round = head.record.round
        self.board.settled_rounds = head.record.settled_rounds
        self.board.state_digest = head.record.state_digest.hex()
        await asyncio.to_thread(self._forget_before, node, head.record.round)
        await require_room(node, head.record)
        if not await asyncio.to_thread(probation.expected):
            await node.states.file(head, "weights")  # before the lease: its time is for training
        lease = await self._lease(node, runner, probation, head.record.round)
        if lease is None:
            return
        head = node.watch.head  # it may have moved while we fetched or asked
        if head is None or head.record.round != lease.round:
            return
        reduction = Reduction.of(node)
        await runner.run(lease, head, reduction)

    async def _lease(
        self, node: Node, runner: RoundRunner, probation: Probation, round_: int
    ) -> Lease | None:
        """The lease to work on; None after having waited for one, or done a unit on probation."""
        for lease in await asyncio.to_thread(node.journal.open_leases):
            if lease.round == round_ and lease.state == LeaseState.TRAINED:
                log.info("going on with the unit trained before the restart", round=round_)
                return lease
        await probation.deliver_rest()
        reply = await node.session.request_work(runner.speed_hint())
        if reply.HasField("run_head") and reply.run_head.payload:
            node.watch.offer_head(reply.run_head)
        if reply.HasField("wait"):
            if reply.wait.code == "finished" and self.until_finished:
                log.info("the run is complete")
                self.finish.set()
            await self._wait(node, reply.wait.reason, reply.wait.retry_after_ms / 1000)
            return None
        assignment = node.session.open_round_record(reply.assignment, Assignment).record
        if assignment.probation:
            await probation.run(reply.assignment, reply.run_head)
            return None
        await probation.passed()
        lease_id = assignment.assignment_id
        await asyncio.to_thread(node.journal.begin, lease_id, assignment.round, reply.assignment)
        known = await asyncio.to_thread(node.journal.lease, lease_id)
        if known is None or known.state == LeaseState.ENDED:
            await self._wait(node, "this round goes on without this worker", _PROBLEM_WAIT_S)
            return None
        return known

    async def _wait(self, node: Node, reason: str, seconds: float) -> None:
        if reason != self._logged_reason:
            log.info("waiting", reason=reason)
            self._logged_reason = reason
        self.board.waiting(reason)
        if not self.finish.is_set():
            await node.watch.change(min(max(seconds, _WAIT_S[0]), _WAIT_S[1]))

    async def _retry(self, node: Node, work: Any) -> None:
        try:
            await work
        except (TransientError, PeerFault, UsageError) as error:
            await self._wait(node, str(error), _PROBLEM_WAIT_S)

    def _forget_before(self, node: Node, round_: int) -> None:
        """Rounds that ended while nobody looked; what was committed may still have been merged."""
        over = [lease for lease in node.journal.open_leases() if lease.round < round_]
        for lease in over:
            if lease.state == LeaseState.TRAINED:
                node.journal.expect_receipt(
                    lease.assignment_id, lease.round, 0, patience_s=RECEIPT_PATIENCE_S
                )
            node.journal.end(lease.assignment_id)
        node.journal.forget_rounds_before(round_)


def clear_folder(home: Home) -> None:
    """Remove what was left half-made; downloads are kept to be resumed, for a day."""
    oldest_s = time.time() - _DOWNLOAD_KEPT_S
    for path in home.scratch.iterdir():
        if path.suffix != ".part" or path.stat().st_mtime < oldest_s:
            path.unlink(missing_ok=True)
    for path in home.answers.glob("*.part"):
        path.unlink(missing_ok=True)
