"""A new key's first unit: train it, deliver it, and wait until an auditor has checked it.

Invariants:

* What was signed is in the journal before it is sent, and sent until it is answered: a restart
  sends the same record again and never signs a second one. A kill before that costs the unit.
* The update's file is complete under its final name before the journal names the record, so what
  an auditor asks for is there.
* No round is waited for: the unit is merged into nothing.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import structlog

from protocol.envelope import Signed, open_envelope
from protocol.errors import BadRecord, PeerFault, ProtocolError, TransientError, UsageError
from protocol.wire import records_pb2 as wire
from worker.journal import Journal
from worker.race import unless
from worker.reducing import RECEIPT_PATIENCE_S
from worker.round_runner import RoundRunner
from worker.status import Phase
from worker.trainer import Trained

log = structlog.get_logger()

_KEY = "probation"
_PASSED = "passed"


@dataclass(frozen=True)
class _Unit:
    """What was signed, and whether the coordinator has answered it."""

    contribution: wire.Envelope
    delivered: bool = False

    @property
    def record(self) -> wire.Contribution:
        return open_envelope(self.contribution, wire.Contribution).record

    def dump(self) -> str:
        data = self.contribution.SerializeToString().hex()
        return json.dumps({"contribution": data, "delivered": self.delivered})

    @classmethod
    def load(cls, journal: Journal) -> _Unit | None:
        text = journal.get(_KEY)
        if not text or text == _PASSED:
            return None
        raw = json.loads(text)
        envelope = wire.Envelope.FromString(bytes.fromhex(raw["contribution"]))
        return cls(envelope, raw["delivered"])


class Probation:
    """The unit of one worker, across restarts."""

    def __init__(self, runner: RoundRunner) -> None:
        """Train and send by way of ``runner``."""
        self._runner = runner
        self._journal = runner.journal

    def expected(self) -> bool:
        """Whether this key may yet have to do its first unit; blocking.

        Then it starts from another state than the run's newest, which need not be fetched.
        """
        steps = self._runner.manifest.verification.probation_steps
        return steps > 0 and self._journal.get(_KEY) != _PASSED

    async def passed(self) -> None:
        """The coordinator gave this key a lease."""
        if await asyncio.to_thread(self.expected):
            await asyncio.to_thread(self._journal.put, _KEY, _PASSED)
            log.info("the first unit passed its audit: working from now on")

    async def deliver_rest(self) -> None:
        """Send what an earlier process, or an earlier attempt, signed and had no answer to.

        Raises:
            TransientError: the coordinator does not answer now.
        """
        unit = await asyncio.to_thread(_Unit.load, self._journal)
        if unit is not None and not unit.delivered:
            await self._deliver(unit)

    async def run(self, assignment: wire.Envelope, head: wire.Envelope) -> None:
        """Do a unit, unless it was done before.

        Args:
            assignment: of the unit.
            head: of the round whose state it starts from.

        Raises:
            PeerFault: they are not the coordinator's, or contradict each other.
            TransientError: it could not be done now; ask for work again.
        """
        record = self._runner.open_assignment(assignment).record
        signed_head = self._runner.session.open_round_record(head, wire.RunHead)
        if (signed_head.record.round, signed_head.record.state_digest) != (
            record.round,
            record.state_digest,
        ):
            raise BadRecord("the head is not of the state that the unit starts from")
        known = await asyncio.to_thread(_Unit.load, self._journal)
        if known is None or known.record.assignment_id != record.assignment_id:
            self._runner.show(record)
            try:
                known = await self._train(record, signed_head)
            finally:
                board = self._runner.board
                board.assignment_id, board.steps, board.steps_done = "", 0, 0
        await self._deliver(known)

    async def _train(self, record: wire.Assignment, head: Signed[wire.RunHead]) -> _Unit:
        runner = self._runner
        runner.board.at_work(Phase.FETCHING)
        seconds_left = runner.session.seconds_until(record.deadline_ms)
        job = await runner.job(record, head, seconds_left)
        if job.stop_after_s <= 0:
            raise TransientError("the time for the first unit is over: asking for another")
        runner.board.at_work(Phase.TRAINING)
        log.info("training on probation", round=record.round, steps=record.steps)
        try:
            trained = await unless(runner.train(job), self._given_up(record))
        except ProtocolError as error:
            raise TransientError(f"the first unit could not be trained: {error}") from error
        if trained is None:
            raise TransientError("the coordinator gave up the first unit: asking for another")
        runner.board.at_work(Phase.COMMITTING)
        return await asyncio.to_thread(self._keep, Path(job.output), record, trained)

    async def _given_up(self, record: wire.Assignment) -> None:
        runner = self._runner
        await runner.watch.until(lambda: record.assignment_id == runner.abandoned or None)

    def _keep(self, output: Path, record: wire.Assignment, trained: Trained) -> _Unit:
        """The file first, then the record that names its root; blocking."""
        self._runner.adopt(output, record, trained)
        unit = _Unit(self._runner.contribution(record, trained))
        self._journal.put(_KEY, unit.dump())
        return unit

    async def _deliver(self, unit: _Unit) -> None:
        """Send it until it is answered; refused for good, it is forgotten."""
        try:
            await self._runner.session.commit(unit.contribution)
        except (PeerFault, UsageError) as error:
            log.warning("the first unit was refused", problem=str(error))
            await asyncio.to_thread(self._journal.put, _KEY, "")
            return
        record = unit.record
        await asyncio.to_thread(self._delivered, unit)
        self._runner.board.committed(record.tokens)
        log.info("committed on probation", round=record.round, steps=record.steps)

    def _delivered(self, unit: _Unit) -> None:
        record = unit.record
        self._journal.expect_receipt(
            record.assignment_id, record.round, record.tokens, patience_s=RECEIPT_PATIENCE_S
        )
        self._journal.put(_KEY, _Unit(unit.contribution, delivered=True).dump())
