"""A worker at work: it asks for units and sees them through, one after the other.

How it comes to work and ends, :mod:`worker.running` says; what makes it stop for a while or go to
sleep, :mod:`worker.yielding`.

Shutdown, in this order, each step even if one before it failed: tasks are cancelled; swarm
shut down (p2pd reaped); gRPC channel; journal; trainer killed and reaped. It takes seconds at
most: no step waits for the network.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from protocol.errors import NotEnrolled, PeerFault, TransientError, UsageError
from protocol.identity import Identity
from worker.cache_status import keep_cache, require_room
from worker.config import Home, WorkerConfig
from worker.contact import ELEMENTS
from worker.energy_told import tell_again
from worker.governing import Governing
from worker.heartbeat import Heartbeats, seed_weights
from worker.journal import Lease, LeaseState
from worker.meter import NetworkBudget
from worker.news import News
from worker.node import Node, open_node
from worker.power import Power
from worker.prefetch import Prefetch
from worker.probation import Probation
from worker.race import unless
from worker.receipts import collect_receipts, last_receipts, store_trust
from worker.reducing import RECEIPT_PATIENCE_S, Reducing
from worker.reentry import stay_in_touch
from worker.round_runner import RoundRunner
from worker.status import AWAY, Board, Phase
from worker.taking_part import Reduction
from worker.trainer import Trainer
from worker.tuning import Tuner
from worker.unit_room import UnitRoom
from worker.yielding import Yielding

log = structlog.get_logger()

_WAIT_S = (0.2, 30.0)  # bounds on what the coordinator may ask us to wait
_PROBLEM_WAIT_S = 5.0
_GOODBYE_S = 5.0  # for what the coordinator has not answered, before we leave


class _Done(Exception):
    """Ends the task group from inside; private."""


@dataclass
class Daemon:
    """One worker while it is awake. :meth:`run` is until it ends or goes to sleep.

    The trainer is its caller's, who starts it early: both load for seconds.
    """

    home: Home
    config: WorkerConfig
    identity: Identity
    board: Board
    trainer: Trainer
    governing: Governing
    budget: NetworkBudget
    finish: asyncio.Event
    news: News  # told of each change of the verdict and of ``finish``
    until_finished: bool = False
    rest: bool = False  # a unit was trained before: it is seen through, whatever the verdict
    _node: Node | None = None
    _runner: RoundRunner | None = None
    _logged_reason: str = ""

    def __post_init__(self) -> None:
        self.yielding = Yielding(self.governing, self.trainer, self.board, self.finish, self.news)

    async def run(self) -> bool:
        """Work until finished, or until it had better sleep.

        Returns:
            Whether it is to sleep.

        Raises:
            UsageError: cannot begin: what a person has to do.
        """
        return bool(await unless(self._live(), self.yielding.run()))

    def change(self, config: WorkerConfig) -> None:
        """Other limits, from now on."""
        self.config = config
        limits = config.limits
        self.trainer.change(
            threads=limits.cpu_threads, nice=limits.nice, memory_mib=limits.memory_mib
        )
        for part in (self._node, self._runner, self._runner and self._runner.tuner):
            if part is not None:
                part.config = config
        if self._node is not None:
            self._node.disk.change(config.limits)

    async def _called_off(self) -> None:
        """Wait until no new unit is wanted."""
        while not self.finish.is_set() and not self._leaves():
            await self.news.wait()

    def _spares(self, size_bytes: int) -> bool:
        """Whether today's traffic has room for this beside one more unit."""
        return not self.budget.exhausted(self.budget.reserve_bytes + size_bytes)

    def _works(self) -> bool:
        return self.governing.verdict.works

    def _leaves(self) -> bool:
        return self.yielding.leaving.is_set() and not self.rest

    # ---- tasks -------------------------------------------------------------------------

    async def _live(self) -> bool:
        node_opening = open_node(
            self.home,
            self.config,
            self.identity,
            self.home.identity,
            self.board,
            anchor=False,
            budget=self.budget,
        )
        node = await unless(node_opening.__aenter__(), self._called_off())
        if node is None:
            return not self.finish.is_set()
        try:
            self._node = node
            self.board.public_url = node.session.greeting.public_url
            await asyncio.to_thread(store_trust, node.journal, node.session.greeting.reply)
            return await self._tasks(node)
        finally:
            self._node = self._runner = None
            await node_opening.__aexit__(None, None, None)

    async def _tasks(self, node: Node) -> bool:
        runner = self._runner = self._make_runner(node)
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
                tasks.create_task(self._power(node).run())
                tasks.create_task(tell_again(self.config, node.enrol))
                tasks.create_task(seed_weights(node, fetch=False))
                tasks.create_task(runner.reducing.run())
                tasks.create_task(runner.prefetch.run())
                tasks.create_task(runner.prefetch.heed(self._works, self.news))
                tasks.create_task(keep_cache(node, runner.prefetch, self.board))
                await self._work(node, runner, beats, Probation(runner))
                await runner.reducing.drain()
                await node.outbox.drain(_GOODBYE_S)
                await last_receipts(node)
                raise _Done
        except* _Done:
            log.info("work ended", units=self.board.units_committed)
        return not self.finish.is_set()

    def _make_runner(self, node: Node) -> RoundRunner:
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
            tuner=Tuner(
                self.home, self.config, manifest, node.device, self.trainer, self.board.waiting
            ),
            room=UnitRoom(node.disk, manifest),
            prefetch=Prefetch(node.data, manifest.sequence_length, self._spares),
            reducing=Reducing(
                home=self.home,
                manifest=manifest,
                watch=node.watch,
                journal=node.journal,
                board=self.board,
                reduction=lambda ending: Reduction.of(node, ending=ending),
            ),
            leaving=self.yielding.leaving,
        )

    def _power(self, node: Node) -> Power:
        return Power(
            home=self.home,
            journal=node.journal,
            board=self.board,
            device=node.device,
            limits=lambda: self.config.limits,
            frozen=lambda: self.trainer.frozen,
            members=self.config.members,
        )

    # ---- work --------------------------------------------------------------------------

    async def _work(
        self, node: Node, runner: RoundRunner, beats: Heartbeats, probation: Probation
    ) -> None:
        while not self.finish.is_set() and not self._leaves():
            try:
                if self.rest:
                    await self._see_rest_through(node, runner)
                else:
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
        elements = await asyncio.to_thread(runner.states.elements)
        if await asyncio.to_thread(runner.journal.get, ELEMENTS) != str(elements):
            await asyncio.to_thread(runner.journal.put, ELEMENTS, str(elements))
        self.budget.expect_unit(elements)  # an int8 each
        return True

    async def _one_unit(
        self, node: Node, runner: RoundRunner, beats: Heartbeats, probation: Probation
    ) -> None:
        if beats.paused:
            self.board.waiting(beats.reason, Phase.PAUSED)
            await self._rest(node, _WAIT_S[1])
            return
        if not self.governing.verdict.works:  # for a moment, or it would leave
            await self._rest(node, _WAIT_S[1])
            return
        if self.board.swarm_problem:  # a unit that cannot be reduced would be trained for nothing
            await self._wait(node, self.board.swarm_problem, _PROBLEM_WAIT_S)
            return
        head = node.watch.head
        if head is None:
            await self._wait(node, "the run has no state yet", _PROBLEM_WAIT_S)
            return
        if not await unless(self._warm_up(runner), self._called_off()):
            return
        self.board.round = head.record.round
        self.board.settled_rounds = head.record.settled_rounds
        self.board.state_digest = head.record.state_digest.hex()
        await self._look_back(node, runner, head.record.round)
        await require_room(node, head.record)
        if not await asyncio.to_thread(probation.expected):
            # Before the lease: its time is for training.
            fetching = node.states.file(head, "weights")
            if await unless(fetching, self._called_off()) is None:
                return
        lease = await self._lease(node, runner, probation, head.record.round)
        if lease is None:
            return
        head = node.watch.head  # it may have moved while we fetched or asked
        if head is None or head.record.round != lease.round:
            return
        with self.budget.unit():
            await runner.run(lease, head)

    async def _see_rest_through(self, node: Node, runner: RoundRunner) -> None:
        """Commit and reduce what was trained before the restart, if its round is still open."""
        head = node.watch.head
        if head is not None:
            await self._look_back(node, runner, head.record.round)
            lease = await self._trained_before(node, head.record.round)
            if lease is not None:
                await runner.run(lease, head)
        self.rest = False

    async def _trained_before(self, node: Node, round_: int) -> Lease | None:
        for lease in await asyncio.to_thread(node.journal.open_leases):
            if lease.round == round_ and lease.state == LeaseState.TRAINED:
                log.info("going on with the unit trained before the restart", round=round_)
                return lease
        return None

    async def _lease(
        self, node: Node, runner: RoundRunner, probation: Probation, round_: int
    ) -> Lease | None:
        """The lease to work on; None after having waited for one, or done a unit on probation."""
        trained = await self._trained_before(node, round_)
        if trained is not None:
            return trained
        await probation.deliver_rest()
        reply = await node.session.request_work(runner.tuner.speed_hint())
        if reply.HasField("run_head") and reply.run_head.payload:
            node.watch.offer_head(reply.run_head)
        if reply.HasField("wait"):
            if reply.wait.code == "finished" and self.until_finished:
                log.info("the run is complete")
                self.finish.set()
            await self._wait(node, reply.wait.reason, reply.wait.retry_after_ms / 1000)
            return None
        assignment = runner.open_assignment(reply.assignment).record
        if assignment.probation:
            await probation.run(reply.assignment, reply.run_head)
            # Or who is given the same unit again and again would ask without a pause.
            await self._wait(node, "the first unit is done: asking for what is next", _WAIT_S[0])
            return None
        head = node.watch.head
        if head is None or assignment.round != head.record.round:
            # It moved just now; or a coordinator gives units of rounds that are none: without a
            # wait it would be asked again and again, and the journal would fill.
            await self._wait(node, "the unit is not of the round under way", _WAIT_S[0])
            return None
        await probation.passed()
        lease_id = assignment.assignment_id
        await asyncio.to_thread(node.journal.begin, lease_id, assignment.round, reply.assignment)
        known = await asyncio.to_thread(node.journal.lease, lease_id)
        if known is None or known.state == LeaseState.ENDED:
            self.board.given_up = lease_id.hex()  # of a life before this one, perhaps
            await self._wait(node, "this round goes on without this worker", _PROBLEM_WAIT_S)
            return None
        return known

    async def _wait(self, node: Node, reason: str, seconds: float) -> None:
        if reason != self._logged_reason:
            log.info("waiting", reason=reason)
            self._logged_reason = reason
        self.board.waiting(reason)
        if not self.finish.is_set() and not self._leaves():
            await self._rest(node, min(max(seconds, _WAIT_S[0]), _WAIT_S[1]))

    async def _rest(self, node: Node, seconds: float) -> None:
        """Until there is news of the run or of this machine."""
        await unless(node.watch.change(seconds), self.news.wait())

    async def _retry(self, node: Node, work: Any) -> None:
        try:
            await work
        except (TransientError, PeerFault, UsageError) as error:
            await self._wait(node, str(error), _PROBLEM_WAIT_S)

    async def _look_back(self, node: Node, runner: RoundRunner, round_: int) -> None:
        """At rounds before the one in training: they are over, or reduced now."""
        oldest = round_ - node.watch.lag_rounds
        await asyncio.to_thread(self._forget_before, node, runner, oldest)
        await runner.reducing.take_up(round_)

    def _forget_before(self, node: Node, runner: RoundRunner, round_: int) -> None:
        """Rounds that ended while nobody looked; what was committed may still have been merged."""
        over = [lease for lease in node.journal.open_leases() if lease.round < round_]
        for lease in over:
            if runner.reducing.holds(lease.assignment_id):  # about to conclude
                round_ = min(round_, lease.round)
                continue
            if lease.state == LeaseState.TRAINED:
                node.journal.expect_receipt(
                    lease.assignment_id, lease.round, 0, patience_s=RECEIPT_PATIENCE_S
                )
            node.journal.end(lease.assignment_id)
        node.journal.forget_rounds_before(round_)
