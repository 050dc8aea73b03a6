"""The engine: requests in, one transaction for each batch of them, replies and events out.

Invariants:

* The database is the truth. What is kept in memory (model vectors, presence, subscriptions) can
  be rebuilt from it; kill -9 at any instruction and :meth:`Engine.start` goes on from there.
* Turns run one after the other, and nothing is told to anybody before it is committed
  (:mod:`coordinator.turns`).
* Vectors are computed in threads; the event loop and the database thread never wait for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog

from coordinator import bootstrap, round_state
from coordinator.admission import check_multiaddrs
from coordinator.attendance import Attendance, write_presence
from coordinator.audit.appeal import accept_appeal
from coordinator.audit.challenges import accept_answer
from coordinator.audit.desk import AuditDesk
from coordinator.audit.replays import ReplayStore
from coordinator.audit.screening import accept_screening
from coordinator.batches import Batches
from coordinator.checkpoints import CheckpointStore
from coordinator.clockwork import let_time_pass
from coordinator.context import EngineOptions, RunContext
from coordinator.crowd.desk import ActDesk, CheckFresh
from coordinator.crowd.upkeep import CampaignKey
from coordinator.database import Database
from coordinator.heartbeats import HeartbeatDesk, Reply
from coordinator.keys import KeyRing
from coordinator.loops import for_ever, whenever
from coordinator.probation_commits import accept_units
from coordinator.queries import read_receipt
from coordinator.reports import accept_reducer_report, accept_report
from coordinator.results import CheckedPiece, bounded, check_piece, keep_pieces, missing_chunks
from coordinator.schema import ControlRow
from coordinator.state_desk import StateDesk
from coordinator.troubles import DATABASE, Troubles
from coordinator.turn import Turn
from coordinator.turns import Turns
from coordinator.validation import Evaluate, Validation
from coordinator.work import grant_works, welcome_devices
from ledger.acts import Act
from ledger.log import Log
from protocol.dataset import DatasetManifest
from protocol.envelope import Signed
from protocol.errors import ProtocolError
from protocol.manifest import RunManifest
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_PIECES_PER_TURN = 16
_TOGETHER, _LEASED_TOGETHER = 128, 24  # requests of one kind in a turn: other kinds wait for them
_ALIVE_EVERY_S = 2.0  # how often the time is noted, to know for how long we were away
_ABSENT_AFTER_S = 5.0  # without a tick: the server was stopped, or without its database
_QUIET_S = 5.0  # without a failure: a full disk may have room for one write and not for another

_log = structlog.get_logger()


class Engine:
    """One run. Call :meth:`start`, then serve; :meth:`run` drives the rounds."""

    def __init__(
        self,
        database: Database,
        manifest: RunManifest,
        dataset: DatasetManifest,
        keys: KeyRing,
        checkpoints: CheckpointStore,
        log: Log,
        *,
        clock: Callable[[], float] = time.time,
        evaluate: Evaluate | None = None,
        options: EngineOptions | None = None,
        troubles: Troubles | None = None,
        campaign_key: CampaignKey | None = None,
    ) -> None:
        """Wire the parts together; touches nothing yet.

        Args:
            database: with upgraded tables.
            manifest: of the run.
            dataset: its dataset's manifest.
            keys: ``keys.round`` signs what the engine says.
            checkpoints: where states are kept.
            log: the public record; its key signs heads.
            clock: seconds since the epoch.
            evaluate: validation loss of a state; None records none.
            options: what may be tuned.
            troubles: takes note of what fails and is tried again.
            campaign_key: looks for the campaign's key; default: as ``keys`` has it.
        """
        self._troubles = troubles or Troubles()
        database.on_away = partial(self._troubles.begin, DATABASE)
        self.context = RunContext(manifest, dataset, keys, log, options or EngineOptions())
        self._database = database
        self._checkpoints = checkpoints
        self._clock = clock
        self._turns = Turns(self.context, database, clock, self._is_absent)
        self._turn = self._turns.run
        self._ticked_at_s = clock()
        self._attendance = Attendance(self._ticked_at_s)
        self._states = StateDesk(
            self.context, database, checkpoints, self._turn, clock, Validation(evaluate)
        )
        self._audits = AuditDesk(self.context, self._turn, ReplayStore(checkpoints.url))
        self._beats = HeartbeatDesk(
            self._attendance, self.context.options, lambda: self._audits.retain_from_round
        )
        gather_s = partial(self._attendance.gather_s, self.context.options)
        self._heartbeats = Batches(self._heartbeat, _TOGETHER, gather_s)
        self._work_requests = Batches(self._request_work, _LEASED_TOGETHER, gather_s)
        self._doors = Batches(self._require_welcome, _TOGETHER, gather_s)
        self._commits = Batches(self._commit, _TOGETHER, gather_s)
        key = campaign_key or (lambda: keys.crowd.get(wire.KEY_PURPOSE_CAMPAIGN))
        self._acts = ActDesk(self.context, database, self._turn, clock, key)

    # ---- life ----

    async def start(self) -> None:
        """Make the run's first state and round, or go on with those in the database.

        Raises:
            UsageError: the database holds another run, or the dataset is too small.
            BadDigest: the stored state is damaged.
            TransientError: database or checkpoint store are not available.
        """
        state = await bootstrap.load_or_create(
            self.context, self._database, self._checkpoints, self._clock()
        )
        self._states.begin(state)
        await self._database.run(self.context.log.sign_head)
        await self.resume()
        self._states.evaluation_due.set()
        self._troubles.begin_anew()

    async def resume(self) -> None:
        """Go on after an absence: nobody loses time or a lease by it."""
        await self._turn(bootstrap.resume)
        self._ticked_at_s = self._clock()
        self._attendance.begin_anew(self._ticked_at_s)

    async def run(self) -> None:
        """Drive rounds until cancelled; starts first, if :meth:`start` was not called.

        Cancelling is safe at any moment: what was not committed is done again after a start.
        """
        if not self._states.states:
            await self.start()
        options, troubles = self.context.options, self._troubles
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(for_ever(self.keep_time, options.tick_s, troubles))
            tasks.create_task(whenever(self._turns.settle_due, self.settle, troubles))
            tasks.create_task(whenever(self._states.evaluation_due, self.evaluate, troubles))
            tasks.create_task(for_ever(self.audit, options.audit.step_s, troubles))
            tasks.create_task(for_ever(self.keep_campaigns, options.campaign_s, troubles))

    # ---- time ----

    async def keep_time(self) -> None:
        """A tick. One that comes long after the last makes good for the absence first."""
        if self._clock() - self._ticked_at_s > _ABSENT_AFTER_S:
            await self.resume()
        await self.tick()
        self._troubles.end(DATABASE, quiet_s=_QUIET_S)

    async def tick(self) -> None:
        """Let time pass: deadlines, silent workers, the organiser's pause, presence.

        Leaves of which no head was signed (a program was killed, the disk was full) get theirs.
        """
        unwritten = self._attendance.take()

        def pass_time(turn: Turn) -> None:
            control = turn.session.get_one(ControlRow, 1)
            if abs(turn.now_s - control.alive_at_s) >= _ALIVE_EVERY_S:
                control.alive_at_s = turn.now_s
            turn.then.leaves_added |= self.context.log.behind(turn.session)
            write_presence(turn.session, unwritten)
            let_time_pass(turn, self._attendance, paused=control.paused)

        try:
            await self._turn(pass_time)
        except ProtocolError:
            self._attendance.put_back(unwritten)
            raise
        self._ticked_at_s = self._clock()

    # ---- requests ----

    async def hello_head(self) -> wire.Envelope:
        """The signed head of the running round; from memory, however many ask."""
        if self._turns.head is None:
            return await self._turn(lambda turn: wire.Envelope.FromString(turn.row.head))
        return self._turns.head

    async def request_work(self, signed: Signed[wire.WorkRequest]) -> service_pb2.WorkReply:
        """A signed assignment, or one reason to wait.

        Raises:
            NotEnrolled, UsageError: not admitted, or blocked.
        """
        return await self._work_requests.ask(signed.record)

    async def _request_work(
        self, batch: Sequence[wire.WorkRequest]
    ) -> list[service_pb2.WorkReply | ProtocolError]:
        crowd_s = self._attendance.crowd_s(self.context.options)
        return await self._turn(lambda turn: grant_works(turn, batch, crowd_s))

    async def commit(self, signed: Signed[wire.Contribution]) -> service_pb2.CommitReply:
        """Accept a contribution, once.

        Raises:
            BadRecord, Conflict, TooLate: see :mod:`coordinator.commits`.
        """
        return await self._commits.ask(signed)

    async def _commit(
        self, batch: Sequence[Signed[wire.Contribution]]
    ) -> list[service_pb2.CommitReply | ProtocolError]:
        return await self._turn(lambda turn: accept_units(turn, batch))

    async def reducer_report(
        self, signed: Signed[wire.ReducerReport]
    ) -> service_pb2.ReducerReportReply:
        """Take note of who is complete at a reducer.

        Raises:
            BadRecord, BadSignature, Conflict: see :mod:`coordinator.reports`.
        """
        return await self._turn(lambda turn: accept_reducer_report(turn, signed))

    async def report(self, signed: Signed[wire.Report]) -> service_pb2.ReportReply:
        """Compare a member's new state with ours.

        Raises:
            BadRecord, Conflict: see :mod:`coordinator.reports`.
        """
        return await self._turn(lambda turn: accept_report(turn, signed))

    async def add_results(
        self, pieces: AsyncIterator[service_pb2.ResultPiece]
    ) -> service_pb2.SubmitResultsReply:
        """Collect signed result chunks from whoever holds them.

        Raises:
            BadRecord, BadDigest, BadSignature: see :mod:`coordinator.results`; pieces before the
                bad one are kept.
        """
        accepted, batch = 0, list[CheckedPiece]()
        try:
            async for piece in bounded(pieces, self.context.layout.count):
                batch.append(await asyncio.to_thread(check_piece, self.context, piece))
                if len(batch) == _PIECES_PER_TURN:
                    full, batch = batch, []
                    accepted += await self._keep(full)
        finally:
            accepted += await self._keep(batch)
        missing = await self._turn(missing_chunks)
        return service_pb2.SubmitResultsReply(accepted=accepted, missing=missing)

    async def _keep(self, batch: list[CheckedPiece]) -> int:
        return await self._turn(lambda turn: keep_pieces(turn, batch)) if batch else 0

    async def heartbeat(self, signed: Signed[wire.Heartbeat]) -> service_pb2.HeartbeatReply:
        """Note that a worker is there, and tell it what to do.

        Raises:
            NotEnrolled: not admitted.
            BadRecord: an address in it is malformed or not its own.
        """
        record = signed.record
        check_multiaddrs(record.multiaddrs, record.worker)
        reply = await self._heartbeats.ask(record)
        self._attendance.note(record, self._clock(), reply.next_heartbeat_ms / 1000)
        return reply

    async def _heartbeat(self, batch: Sequence[wire.Heartbeat]) -> list[Reply]:
        return await self._turn(lambda turn: self._beats.answer(turn, batch))

    async def answer_challenge(
        self, signed: Signed[wire.ChallengeAnswer], chunks: Sequence[wire.OpenedChunk]
    ) -> service_pb2.ChallengeReply:
        """Keep what a member shows of what it was asked for.

        Raises:
            NotFound, TooLate, BadRecord, BadDigest, Conflict: see :mod:`coordinator.audit`.
        """
        return await self._turn(lambda turn: accept_answer(turn, signed, chunks))

    async def submit_screening(self, signed: Signed[wire.Screening]) -> service_pb2.ScreeningReply:
        """Keep what a reducer measured of its inputs.

        Raises:
            TooLate, BadRecord, Conflict: see :mod:`coordinator.audit.screening`.
        """
        return await self._turn(lambda turn: accept_screening(turn, signed))

    async def appeal(self, signed: Signed[wire.Appeal]) -> service_pb2.AppealReply:
        """Have a convicted device's work replayed on another kind of device.

        Raises:
            NotFound, UsageError, TooLate, BadRecord: see :mod:`coordinator.audit.appeal`.
        """
        return await self._turn(lambda turn: accept_appeal(turn, signed))

    async def act(self, act: Act, check_fresh: CheckFresh) -> service_pb2.ActReply:
        """Take what a donor does besides training.

        Raises:
            ProtocolError: see :mod:`coordinator.crowd.desk`.
        """
        return await self._acts.accept(act, check_fresh)

    async def keep_campaigns(self) -> None:
        """End campaigns whose goal is reached or whose time is over, if their terms say so.

        Raises:
            TransientError: the database is away; it is tried again.
        """
        await self._acts.keep_campaigns()

    async def receipt(self, assignment_id: bytes) -> service_pb2.GetReceiptReply:
        """The credit leaf of a merged contribution, with its proof.

        Raises:
            NotFound: no such contribution, or it was not merged.
            TransientError: its round is not settled yet, or the head not signed.
        """
        return await self._database.run(
            lambda session: read_receipt(session, self.context.log.origin, assignment_id)
        )

    async def set_paused(self, paused: bool) -> None:
        """No new leases, or leases again: as by ``control.paused``, which a tick takes note of."""

        def write(turn: Turn) -> None:
            turn.session.get_one(ControlRow, 1).paused = paused
            if turn.machine.paused is not paused:
                turn.apply(round_state.Paused() if paused else round_state.Resumed())

        await self._turn(write)

    async def require_welcome(self, worker: str) -> None:
        """Insist that a device may take part.

        Raises:
            NotEnrolled, UsageError: it may not; says why.
        """
        await self._doors.ask(worker)

    async def _require_welcome(self, batch: Sequence[str]) -> list[bool | ProtocolError]:
        return await self._turn(lambda turn: welcome_devices(turn, batch))

    @asynccontextmanager
    async def subscribe(self, worker: str) -> AsyncIterator[AsyncIterator[service_pb2.RunEvent]]:
        """What is current, then every event as it happens; see :mod:`coordinator.turns`.

        Args:
            worker: PeerID of the reader, already admitted.
        """
        async with self._turns.subscribe(worker) as events:
            self._attendance.came(worker)
            try:
                yield events
            finally:
                self._attendance.left(worker, self._clock())

    def _is_absent(self, worker: str) -> bool:
        return self._attendance.is_absent(worker, self._clock(), self.context.options)

    # ---- slow work ----

    async def settle(self) -> bool:
        """Settle the running round if all its results are held; returns whether it did.

        Raises:
            TransientError: the checkpoint store refused; nothing was changed.
        """
        return await self._states.settle()

    async def evaluate(self) -> bool:
        """Compute the oldest validation loss that is missing; returns whether there was one.

        Raises:
            TransientError: the evaluation was killed; it is tried again, a few times.
        """
        return await self._states.evaluate()

    async def audit(self) -> bool:
        """Take open audits a step further; returns whether there may be more to do at once.

        Raises:
            TransientError: database or replays are not available; it is tried again.
        """
        return await self._audits.step()
