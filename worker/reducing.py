"""What comes after a unit's commit: its reduce, and the end of its lease.

With ``overlap = lag1`` reduces go on while the next unit is trained, one after the other
(:meth:`Reducing.run`).

Invariants:

* A unit is here from the close of its round until that round is over; its lease stays open in the
  journal as long, so a restart takes it up again.
* A reduce is followed until the next round closes, for whoever holds results may still be asked for
  them; before this worker ends, only until its own round has ended.
* What fails passes: it is begun again, and no training waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from protocol.envelope import open_envelope
from protocol.errors import PeerFault, TransientError, UsageError
from protocol.manifest import RunManifest
from protocol.update import EncodedUpdate
from protocol.wire import records_pb2 as wire
from worker.config import Home
from worker.journal import Journal, Lease
from worker.status import Board
from worker.taking_part import Outcome, Reduction
from worker.updates import read_update
from worker.watch import Watch

log = structlog.get_logger()

RECEIPT_PATIENCE_S = 7 * 24 * 3600
_AGAIN_S = 5.0


@dataclass(frozen=True)
class Unit:
    """A unit that is trained no more; without its update there is nothing of ours to reduce."""

    lease: Lease
    update: EncodedUpdate | None


@dataclass
class Reducing:
    """Sees units through to the end of their rounds."""

    home: Home
    manifest: RunManifest
    watch: Watch
    journal: Journal
    board: Board
    reduction: Callable[[asyncio.Event], Reduction]  # a new one; told when this worker will end
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    _units: dict[bytes, Unit] = field(default_factory=dict)
    _change: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def see_through(self, unit: Unit) -> None:
        """Take part in a unit's reduce, and end its lease with the round.

        Raises:
            TransientError: the disk failed; it can be begun again.
        """
        round_ = unit.lease.round
        outcome = await self.reduction(self.ending).follow(round_, unit.update, listen=False)
        await self._settle(unit.lease, outcome)

    async def read_update(self, lease: Lease) -> EncodedUpdate | None:
        """What was trained, if it was, and is on the disk as it was committed to."""
        if lease.contribution is None or lease.update_path is None:
            return None
        committed = open_envelope(lease.contribution, wire.Contribution).record
        update = await asyncio.to_thread(
            read_update, lease.update_path, committed.vector_elements, self.manifest
        )
        if update is None or update.root != committed.commitment_root:
            return None
        return update

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        # Whoever came back in the middle of a reduce may not have seen how it was decided.
        if lease.contribution is not None and (outcome.included or not outcome.decided):
            contribution = open_envelope(lease.contribution, wire.Contribution).record
            await asyncio.to_thread(
                self.journal.expect_receipt,
                lease.assignment_id,
                lease.round,
                contribution.tokens,
                patience_s=RECEIPT_PATIENCE_S,
            )
        await asyncio.to_thread(self.journal.end, lease.assignment_id)
        snapshot = self.home.snapshot(lease.assignment_id)
        await asyncio.to_thread(snapshot.unlink, missing_ok=True)
        self.board.peers = outcome.peers
        self.board.put_down(lease.assignment_id.hex())

    # ---- beside the next unit's training -----------------------------------------------

    def holds(self, assignment_id: bytes) -> bool:
        """Whether the reduce of this unit goes on in the background."""
        return assignment_id in self._units

    async def add(self, unit: Unit) -> None:
        """See a unit through in the background, after those that came before it."""
        async with self._change:
            self._units.setdefault(unit.lease.assignment_id, unit)
            self._change.notify_all()

    async def take_up(self, round_: int) -> None:
        """Go on with reduces that a restart cut short, of rounds that have closed.

        Args:
            round_: in training now.
        """
        for lease in await asyncio.to_thread(self.journal.open_leases):
            overlaps = round_ - self.watch.lag_rounds <= lease.round < round_
            if overlaps and not self.holds(lease.assignment_id):
                await self.add(Unit(lease, await self.read_update(lease)))

    async def run(self) -> None:
        """See through what is added, for ever."""
        while True:
            async with self._change:
                await self._change.wait_for(lambda: self._units)
            await self._see_first_through()

    async def drain(self) -> None:
        """Wait until all that was added has ended: this worker is about to."""
        self.ending.set()
        self.watch.notify()
        async with self._change:
            await self._change.wait_for(lambda: not self._units)

    async def _see_first_through(self) -> None:
        unit = next(iter(self._units.values()))
        try:
            await self.see_through(unit)
        except (TransientError, PeerFault, UsageError) as error:
            log.warning("reduce will be taken up again", round=unit.lease.round, error=str(error))
            await asyncio.sleep(_AGAIN_S)
            return
        async with self._change:
            del self._units[unit.lease.assignment_id]
            self._change.notify_all()
