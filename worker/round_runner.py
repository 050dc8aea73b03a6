"""One unit of work from its lease to the end of its round.

    lease -> weights and data -> train -> encode, sign, journal -> commit -> reduce -> next head

With ``overlap = lag1`` the next head comes before the reduce, which :mod:`worker.reducing` sees
through in the background.

Invariants:

* The Contribution says what was really done: the first h steps of the lease.
* A unit that a kill cut short goes on from its snapshot, and comes to the same update.
* A lease that the journal calls trained is never trained again: its record is signed already, and
  a second one for the same assignment would be equivocation.
* Whatever ends a round here (refusal, deadline, abandonment), the lease ends in the journal.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from protocol.channel import backoff_s
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadRecord, PeerFault, ProtocolError, TransientError, UsageError
from protocol.manifest import TRAINING_SPEC, RunManifest
from protocol.update import EncodedUpdate
from protocol.wire import records_pb2 as wire
from worker.config import Home, WorkerConfig
from worker.data_source import DataSource
from worker.devices import Device, device_class
from worker.journal import Journal, Lease, LeaseState, contribution_key
from worker.outbox import CONTRIBUTION, Outbox
from worker.prefetch import Prefetch
from worker.race import unless
from worker.reducing import Reducing, Unit
from worker.session import Session
from worker.state_cache import StateCache
from worker.status import Board, Phase
from worker.trainer import Job, Progress, Trained, Trainer
from worker.tuning import Tuner
from worker.unit_room import UnitRoom
from worker.unit_training import train_unit
from worker.updates import UpdateName, adopt_update
from worker.watch import Watch

log = structlog.get_logger()

_COMMIT_MARGIN_S = 0.5
_DISK_AGAIN_S = 5.0


class Abandoned(Exception):
    """The unit is of no more use; private to the worker: the work loop asks for another."""


@dataclass
class RoundRunner:
    """Runs leases to the end of their rounds, one at a time."""

    home: Home
    config: WorkerConfig
    manifest: RunManifest
    device: Device
    session: Session
    watch: Watch
    states: StateCache
    data: DataSource
    outbox: Outbox
    journal: Journal
    trainer: Trainer
    board: Board
    tuner: Tuner
    room: UnitRoom
    prefetch: Prefetch
    reducing: Reducing
    leaving: asyncio.Event  # set: this machine may not work, what is under way ends early
    abandoned: bytes = b""  # the assignment that the coordinator does not want any more

    async def run(self, lease: Lease, head: Signed[wire.RunHead]) -> None:
        """See a lease through; one of which nothing is trained when this machine may not work any
        more stays as it is: it may be gone on with as long as its round is open.

        Args:
            lease: as in the journal, perhaps from before a restart.
            head: of the lease's round.

        Raises:
            TransientError: weights or data cannot be fetched now.
        """
        assignment = self.open_assignment(lease.assignment)
        self.show(assignment.record)
        update: EncodedUpdate | None = None
        try:
            if lease.state == LeaseState.LEASED:
                lease = await self._train(lease, assignment, head)
            update = await self._commit(lease)
        except Abandoned as error:
            log.warning("unit given up", round=lease.round, reason=str(error))
            self.board.given_up = lease.assignment_id.hex()
            self.board.waiting(str(error))
            if self.leaving.is_set() and lease.state == LeaseState.LEASED:
                return
        else:
            self.board.waiting("waiting for the round to close")
        unit = Unit(lease, update)
        if self.watch.lag_rounds:
            await self.watch.until(partial(self.watch.head_beyond, lease.round))
            self.board.put_down(lease.assignment_id.hex())
            await self.reducing.add(unit)
        else:
            await self.reducing.see_through(unit)

    async def warm_up(self) -> None:
        """Load what a unit needs; both would else be taken from the first unit's time.

        Raises:
            TransientError, UsageError: nothing can be trained here now; says why.
        """
        spec = await self.tuner.settle()
        self.board.parts["tuning"] = self.tuner.facts()
        if spec is None:
            return
        self.states.learn_spec(spec)

    def open_assignment(self, envelope: wire.Envelope) -> Signed[wire.Assignment]:
        """An assignment, verified.

        Raises:
            PeerFault: it is not the coordinator's, or not for this worker.
        """
        signed = self.session.open_round_record(envelope, wire.Assignment)
        record = signed.record
        if record.worker != self.session.identity.peer_id:
            raise BadRecord("an assignment for another worker")
        batch = self.manifest.inner.sequences_per_batch
        sequences = record.end_sequence - record.start_sequence
        if (
            not 0 < record.steps <= self.manifest.inner.max_steps
            or sequences != record.steps * batch
        ):
            raise BadRecord("an assignment that is not a whole number of inner batches")
        return signed

    # ---- train -------------------------------------------------------------------------

    async def _train(
        self, lease: Lease, assignment: Signed[wire.Assignment], head: Signed[wire.RunHead]
    ) -> Lease:
        record = assignment.record
        if record.state_digest != head.record.state_digest:
            raise Abandoned("the assignment starts from another state than the run's head")
        self.board.at_work(Phase.FETCHING)
        job = await self.job(record, head, self._seconds_left(record))
        begun = await asyncio.to_thread(Path(job.snapshot).exists)
        if job.stop_after_s <= 0 and not begun:
            raise Abandoned("the round's deadline passed before training could begin")
        self.board.at_work(Phase.TRAINING)
        log.info("training", round=record.round, steps=record.steps, assignment=_short(record))
        try:
            with self.prefetch.during(record, head.record):
                trained = await unless(
                    self.train(job),
                    self._round_over(record.round, record.assignment_id),
                )
        except ProtocolError as error:
            raise Abandoned(str(error)) from error
        if trained is None:
            raise Abandoned("the round went on without this unit")
        self.board.at_work(Phase.COMMITTING)
        kept = await unless(
            self._keep(Path(job.output), lease, record, trained),
            self._round_over(record.round, record.assignment_id),
        )
        if kept is None:
            raise Abandoned("the round went on before the update could be written down")
        return kept

    def _forget_snapshots(self, but: bytes) -> None:
        """Of units that are over; blocking."""
        for path in self.home.unit.iterdir():
            if path != self.home.snapshot(but):
                path.unlink(missing_ok=True)

    async def job(
        self, record: wire.Assignment, head: Signed[wire.RunHead], seconds_left: float
    ) -> Job:
        """The unit with everything that it reads, fetched.

        Args:
            record: its assignment.
            head: of the round whose state it starts from.
            seconds_left: until it must be committed.

        Raises:
            TransientError: it cannot be fetched now, or is not wanted any more.
        """
        await asyncio.to_thread(self._forget_snapshots, record.assignment_id)
        fetched = await unless(self._fetch(record, head), self.leaving.wait())
        if fetched is None:
            raise TransientError("this machine may not work now")
        weights, shards, dataset = fetched
        output = self.home.scratch / f"{record.assignment_id.hex()}.encoding"
        snapshot = self.home.snapshot(record.assignment_id)
        keep_snapshots = await asyncio.to_thread(self.room.take, output, snapshot, head.record)
        return Job(
            manifest=str(self.home.manifest),
            dataset=str(dataset),
            shards={digest: str(path) for digest, path in shards.items()},
            weights=str(weights),
            unit={
                "start_sequence": record.start_sequence,
                "end_sequence": record.end_sequence,
                "steps": record.steps,
                "seed": record.seed,
                "tokens_base": record.tokens_base,
            },
            round=record.round,
            worker=record.worker,
            output=str(output),
            snapshot=str(snapshot),
            keep_snapshots=keep_snapshots,
            threads=self.config.limits.cpu_threads,
            device=self.device,
            autocast_bf16=self.config.autocast_bf16,
            compiled=str(self.home.compiled),
            stop_after_s=seconds_left - _COMMIT_MARGIN_S,
            gpu_memory_percent=self.config.limits.gpu_memory_percent,
            gpu_power_w=self.config.limits.gpu_power_w,
            **self.tuner.choice.dump(),
        )

    async def _fetch(
        self, record: wire.Assignment, head: Signed[wire.RunHead]
    ) -> tuple[Path, dict[str, Path], Path]:
        weights = await self.states.file(head, "weights", anew=True)
        shards = await self.data.shards(record.start_sequence, record.end_sequence)
        return weights, shards, await self.data.dataset_file()

    async def train(self, job: Job) -> Trained:
        """Train a unit from files that are still as they were verified when it is done.

        Raises:
            TransientError: they are not, the process died, or was stopped before one step.
            ProtocolError: what the job read is damaged.
        """
        trained = await train_unit(self.trainer, self.tuner, job, self.on_progress)
        if await asyncio.to_thread(self.data.has_changed, job.shards):
            raise TransientError("the data changed on the disk while it was trained from")
        return trained

    async def _round_over(self, round_: int, assignment_id: bytes) -> None:
        """Wait until the unit is of no more use."""
        await self.watch.until(
            lambda: (
                True if self.watch.head_beyond(round_) or assignment_id == self.abandoned else None
            )
        )

    def on_progress(self, progress: Progress) -> None:
        board = self.board
        board.steps_done, board.loss = progress.steps_done, progress.loss
        board.tokens_per_s = progress.tokens_per_s
        if progress.problem:
            self._show_problem(f"{progress.problem}; free some disk, the update is kept meanwhile")
        board.steps_per_s = progress.tokens_per_s / self.manifest.tokens_per_step

    def _show_problem(self, problem: str) -> None:
        if self.board.reason != problem:
            log.warning("waiting", reason=problem)
        self.board.waiting(problem)

    async def _keep(
        self, output: Path, lease: Lease, record: wire.Assignment, trained: Trained
    ) -> Lease:
        """Write down what was trained; a disk that is full now may not be so for ever."""
        failures = 0
        while True:
            try:
                return await asyncio.to_thread(self._keep_now, output, lease, record, trained)
            except TransientError as error:
                self._show_problem(str(error))
            await asyncio.sleep(backoff_s(failures, limit_s=_DISK_AGAIN_S))
            failures += 1

    def _keep_now(
        self, output: Path, lease: Lease, record: wire.Assignment, trained: Trained
    ) -> Lease:
        """Update file first, then one transaction with the signed Contribution (see journal)."""
        final = self.adopt(output, record, trained)
        contribution = self.contribution(record, trained)
        self.journal.trained(lease.assignment_id, contribution, final)
        kept = self.journal.lease(lease.assignment_id)
        assert kept is not None and kept.state == LeaseState.TRAINED
        return kept

    def adopt(self, output: Path, record: wire.Assignment, trained: Trained) -> Path:
        """Give the encoded update its final name; blocking.

        Raises:
            TransientError: the disk failed.
        """
        head = self.watch.head
        # A unit on a state of the past is audited now: its file is of the round under way.
        round_ = record.round if head is None else max(record.round, head.record.round)
        name = UpdateName(round_, record.assignment_id, trained.root)
        self.room.leave()
        return adopt_update(output, self.home.updates, name)

    def contribution(self, record: wire.Assignment, trained: Trained) -> wire.Envelope:
        """What was done, signed."""
        sequences = trained.steps * self.manifest.inner.sequences_per_batch
        contribution = wire.Contribution(
            run_id=record.run_id,
            round=record.round,
            assignment_id=record.assignment_id,
            worker=record.worker,
            state_digest=record.state_digest,
            epoch=record.epoch,
            start_sequence=record.start_sequence,
            end_sequence=record.start_sequence + sequences,
            steps=trained.steps,
            tokens=trained.tokens,
            codec=self.manifest.update.codec,
            commitment_root=trained.root,
            chunk_count=trained.chunks,
            vector_elements=trained.elements,
            update_norm=trained.update_norm,
            mean_loss=trained.mean_loss,
            training_spec=TRAINING_SPEC,
            execution=device_class(self.device) + ("-bf16" if self.config.autocast_bf16 else ""),
        )
        return seal(contribution, self.session.identity)

    # ---- commit ------------------------------------------------------------------------

    async def _commit(self, lease: Lease) -> EncodedUpdate:
        assert lease.contribution is not None
        contribution = open_envelope(lease.contribution, wire.Contribution).record
        update = await self.reducing.read_update(lease)
        if update is None:
            raise Abandoned("the trained update is gone, or was damaged on disk")
        self.board.at_work(Phase.COMMITTING)
        refusal: str | None
        if self.watch.lag_rounds:
            # The commit itself may close the round: only its answer tells whether it was taken.
            refusal = await self._deliver(lease)
        else:
            refusal = await unless(
                self._deliver(lease), self._round_over(lease.round, lease.assignment_id)
            )
        if refusal is None:
            raise Abandoned("the round went on before the update could be delivered")
        if refusal:
            raise Abandoned(refusal)
        log.info(
            "committed", round=lease.round, steps=contribution.steps, tokens=contribution.tokens
        )
        self.board.committed(contribution.tokens)
        return update

    async def _deliver(self, lease: Lease) -> str:
        """Returns why it was refused; empty when it was not."""
        assert lease.contribution is not None
        key = contribution_key(lease.assignment_id)
        try:
            await self.outbox.deliver(key, CONTRIBUTION, lease.round, lease.contribution)
        except (PeerFault, UsageError) as error:
            return f"the coordinator did not take the update: {error}"
        return ""

    def show(self, record: wire.Assignment) -> None:
        board = self.board
        board.round = record.round
        board.take_up(record.assignment_id.hex())
        board.steps, board.steps_done, board.loss = record.steps, 0, None
        board.deadline_in_s = self._seconds_left(record)

    def _seconds_left(self, record: wire.Assignment) -> float:
        return self.session.seconds_until(self.watch.training_deadline_ms(record))


def _short(record: wire.Assignment) -> str:
    return record.assignment_id.hex()[:8]
