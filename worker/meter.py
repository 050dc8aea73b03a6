"""The owner's network limits: what passes is counted, paced, and kept within the day's quota.

Invariants:

* Bytes are counted as they stand on the wire: what a stream carries and what encryption, framing,
  TCP, IP and acknowledgements add (:func:`on_the_wire`).
* Nothing waits and nothing is cut into pieces where no limit is set: it is only counted.
* Limits change at once, for those who wait already too; waiting can be cancelled.
* At the day's quota bulk waits for the next day, or for another quota; small messages still pass,
  so that others hear why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from worker import traffic_day
from worker.limits import Limits
from worker.pacing import SMALL_BYTES, Pacer, Rank, Ticket
from worker.patience import not_counted
from worker.traffic_day import Clock, TrafficDay

log = structlog.get_logger()

AHEAD_BYTES = 768 << 10
"""What the other side of a stream may have sent before we read it: the window of the stream and the
buffers between the peer-to-peer daemon and us. Measured: docs/adr/0036."""

SAVED_EVERY_S = 5.0
_LOOK_S = 1.0
_RATE_S = 5  # looks over which the present rate is taken
_QUOTA_MARGIN = 0.99  # the rest is for small messages
_ACK_SHARE = 0.023  # an acknowledgement of 66 bytes for two full segments
_ACKED_TIMES = 20
"""Acknowledgements of one direction take of the other: it gets at most so many times the other's
rate, and so takes less than half of that."""


def on_the_wire(payload_bytes: int) -> int:
    """What ``payload_bytes`` written at once become, with all that is around them.

    Ethernet, IP and TCP take 66 bytes of a segment with 1448; noise and yamux, or TLS, take less
    than a hundred more.
    """
    return payload_bytes + payload_bytes // 20 + 100


class Lane:
    """One direction, and the tasks that wait for it. Use it from the event loop."""

    def __init__(self, clock: Clock) -> None:
        self.pacer = Pacer(now_s=clock().steady_s)
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    async def pass_(self, size_bytes: int, rank: Rank) -> None:
        """Wait until ``size_bytes`` may pass."""
        ticket = self.pacer.ask(size_bytes, rank, self._clock().steady_s)
        turn = self.waiting[ticket.number] = asyncio.get_running_loop().create_future()
        self.serve()
        if turn.done():
            return
        try:
            with not_counted():
                await turn
        except asyncio.CancelledError:
            self._leave(ticket, turn)
            raise

    def serve(self) -> None:
        """Wake those whose turn has come, and see that the next ones are woken."""
        for ticket in self.pacer.serve(self._clock().steady_s):
            turn = self.waiting.pop(ticket.number)
            if turn.cancelled():  # a moment ago, and has not said so yet
                self.pacer.charge(-ticket.size_bytes, self._clock().steady_s)
            else:
                turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self.pacer.wait_s()
        if wait_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(wait_s, 0.001), self.serve)

    def _leave(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        ticket.gone = True
        if self.waiting.pop(ticket.number, None) is None and not turn.cancelled():
            self.pacer.charge(-ticket.size_bytes, self._clock().steady_s)  # served, and not used
        self.serve()


class NetworkBudget:
    """What may go over the network; :meth:`run` it as a task, :meth:`close` it at the end."""

    def __init__(
        self, limits: Limits | None = None, path: Path | None = None, clock: Clock = traffic_day.now
    ) -> None:
        """Go on with the day that is kept at ``path``; without one nothing is kept."""
        self._path, self._clock = path, clock
        at = clock()
        self.day = TrafficDay.load(path, at) if path else TrafficDay.beginning(at)
        self.up, self.down = Lane(clock), Lane(clock)
        self._saved = self.day.total_bytes
        self._seen = deque([(at.steady_s, *self._counted)], maxlen=_RATE_S)
        self._unit_began: int | None = None
        self._expected_bytes = 0
        self._cannot_save = False
        self._set(limits or Limits())

    # ---- limits ------------------------------------------------------------------------

    def change(self, limits: Limits) -> None:
        """Other limits, from now on. Call it on the event loop."""
        self._set(limits)
        for lane in (self.up, self.down):
            if lane.waiting:
                lane.serve()

    def _set(self, limits: Limits) -> None:
        self._quota_bytes = limits.daily_mib << 20
        rates = limits.upload_kbit_s * 125.0, limits.download_kbit_s * 125.0
        now_s = self._clock().steady_s
        for lane, own, other in zip((self.up, self.down), rates, reversed(rates), strict=True):
            acked = other * _ACKED_TIMES
            rate = min(own, acked) if own and acked else own or acked
            lane.pacer.change(rate, now_s)
        self._close_or_open()

    def _close_or_open(self) -> None:
        closed = bool(self._quota_bytes) and (
            self.day.total_bytes >= self._quota_bytes * _QUOTA_MARGIN
        )
        self.up.pacer.closed_to_bulk = self.down.pacer.closed_to_bulk = closed

    @property
    def is_capped(self) -> bool:
        """Some rate is limited: what is sent should be cut into small pieces."""
        return bool(self.up.pacer.rate_bytes_s or self.down.pacer.rate_bytes_s)

    @property
    def at_once_bytes(self) -> int | None:
        """How much to ask another peer for at once: it comes as fast as the peer can."""
        rate = self.down.pacer.rate_bytes_s
        return int(rate) if rate else None

    # ---- what passes -------------------------------------------------------------------

    def toll(self, rank: Rank) -> Toll:
        """For one stream or connection."""
        return Toll(self, rank)

    def count(self, up_bytes: int, down_bytes: int) -> None:
        """Bytes that pass on the wire; what acknowledges them is added here."""
        self.day.up_bytes += up_bytes
        self.day.down_bytes += down_bytes
        if self._quota_bytes and not self.up.pacer.closed_to_bulk:
            self._close_or_open()

    async def send(self, payload_bytes: int, rank: Rank) -> None:
        """Wait until so much may go out; it counts as sent."""
        await self._pass(self.up, payload_bytes, rank)

    async def receive(self, payload_bytes: int, rank: Rank) -> None:
        """Wait until so much may come in; it counts as received."""
        await self._pass(self.down, payload_bytes, rank)

    async def _pass(self, lane: Lane, payload_bytes: int, rank: Rank) -> None:
        size = on_the_wire(payload_bytes)
        if not lane.pacer.is_free:
            await lane.pass_(size, Rank.SMALL if payload_bytes <= SMALL_BYTES else rank)
        self._passed(lane, size)

    def passed(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """So much has passed already, or must at once."""
        for lane, payload_bytes in ((self.up, sent_bytes), (self.down, received_bytes)):
            if payload_bytes:
                size = on_the_wire(payload_bytes)
                lane.pacer.charge(size, self._clock().steady_s)
                self._passed(lane, size)

    def give_back(self, received_bytes: int) -> None:
        """So much was paid for, and does not come."""
        size = on_the_wire(received_bytes)
        self.down.pacer.charge(-size, self._clock().steady_s)
        self.day.down_bytes = max(0, self.day.down_bytes - size)

    def _passed(self, lane: Lane, size_bytes: int) -> None:
        acknowledged = int(size_bytes * _ACK_SHARE)
        if lane is self.up:
            other = self.down
            self.count(size_bytes, acknowledged)
        else:
            other = self.up
            self.count(acknowledged, size_bytes)
        other.pacer.charge(acknowledged, self._clock().steady_s)

    # ---- the quota of the day ----------------------------------------------------------

    @property
    def reserve_bytes(self) -> int:
        """What one more unit will take: as much as the largest of the last ones."""
        return max(self.day.units_bytes, default=self._expected_bytes)

    @property
    def claimed_bytes(self) -> int:
        """Today's traffic, with what the next unit will take while none is under way."""
        reserve = self.reserve_bytes if self._unit_began is None else 0
        claimed = self.day.total_bytes + reserve
        return max(claimed, self._quota_bytes) if self.exhausted(reserve) else claimed

    def exhausted(self, reserve_bytes: int = 0) -> bool:
        """Whether the quota does not suffice for ``reserve_bytes`` more."""
        used = self.day.total_bytes + reserve_bytes
        return bool(self._quota_bytes) and used >= self._quota_bytes * _QUOTA_MARGIN

    def expect_unit(self, update_bytes: int) -> None:
        """Before any unit was done: weights may come, an update goes out, the mean comes in, and a
        reducer sees as much again."""
        self._expected_bytes = on_the_wire(4 * update_bytes)

    @contextmanager
    def unit(self) -> Iterator[None]:
        """One unit of work, from its weights to its reduce."""
        began = self._unit_began = self.day.total_bytes
        try:
            yield
        finally:
            self._unit_began = None
            if self.day.total_bytes > began:  # else midnight came
                self.day.note_unit(self.day.total_bytes - began)

    # ---- keeping and showing -----------------------------------------------------------

    async def run(self) -> None:
        """Keep the counters, and begin the next day when it is time. Run it as a task."""
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()
            looks += 1
            if looks % int(SAVED_EVERY_S / _LOOK_S) == 0 and self._saved != self.day.total_bytes:
                await asyncio.to_thread(self.save)

    def look(self) -> None:
        """What :meth:`run` does once a second."""
        at = self._clock()
        if self.day.roll(at):
            self._seen.clear()
            self._close_or_open()
            for lane in (self.up, self.down):
                if lane.waiting:
                    lane.serve()
        self._seen.append((at.steady_s, *self._counted))

    def save(self) -> None:
        """Keep the counters; blocking."""
        if self._path is None:
            return
        total = self.day.total_bytes
        try:
            self.day.save(self._path)
        except OSError as error:
            if not self._cannot_save:
                log.warning("today's traffic will be forgotten at a restart", problem=str(error))
            self._cannot_save = True
        else:
            self._saved, self._cannot_save = total, False

    def close(self) -> None:
        """Keep the counters for the next process."""
        self.save()

    def snapshot(self) -> dict[str, Any]:
        """For ``worker status``: today's bytes, the present rates, what is left of the quota."""
        at_s, (up, down) = self._clock().steady_s, self._counted
        before_s, up_before, down_before = self._seen[0] if self._seen else (at_s, up, down)
        passed_s = max(at_s - before_s, _LOOK_S)
        left = max(0, self._quota_bytes - up - down) if self._quota_bytes else None
        return {
            "up_bytes_today": up,
            "down_bytes_today": down,
            "up_kbit_s": round((up - up_before) / passed_s / 125, 1),
            "down_kbit_s": round((down - down_before) / passed_s / 125, 1),
            "quota_left_bytes": left,
        }

    @property
    def _counted(self) -> tuple[int, int]:
        return self.day.up_bytes, self.day.down_bytes


class Toll:
    """What one stream or connection pays, each way.

    What comes in is paid for when it is on the wire, which is before it is read: the other side may
    be ahead by :data:`AHEAD_BYTES` from the moment it is let to (:meth:`expect`).
    """

    def __init__(self, budget: NetworkBudget, rank: Rank) -> None:
        self._budget, self._rank = budget, rank
        self._received = self._paid = 0
        self._expected: int | None = None

    @property
    def up_quantum(self) -> int:
        """What to send at once; 0: as much as there is."""
        pacer = self._budget.up.pacer
        return 0 if pacer.is_free else pacer.quantum_bytes

    @property
    def down_quantum(self) -> int:
        """What to read at once; 0: as much as there is."""
        pacer = self._budget.down.pacer
        return 0 if pacer.is_free else pacer.quantum_bytes

    async def send(self, size_bytes: int) -> None:
        """Before so much is sent."""
        await self._budget.send(size_bytes, self._rank)

    async def receive(self, size_bytes: int) -> None:
        """Before so much is read."""
        self._received += size_bytes
        if self._expected is None:
            await self._budget.receive(size_bytes, self._rank)
            return
        await self._pay(min(self._received + AHEAD_BYTES, max(self._expected, self._received)))

    async def expect(self, size_bytes: int) -> None:
        """Before the other side is let to send ``size_bytes`` more of bulk."""
        if self._budget.down.pacer.is_free:
            return
        self._paid = self._received
        self._expected = self._received + size_bytes
        await self._pay(min(self._received + AHEAD_BYTES, self._expected))

    def left(self, size_bytes: int) -> None:
        """So much of what was expected is still to come."""
        if self._expected is None:
            return
        self._expected = self._received + size_bytes
        if self._paid > self._expected:
            self._budget.give_back(self._paid - self._expected)
            self._paid = self._expected

    async def _pay(self, until_bytes: int) -> None:
        if until_bytes > self._paid:
            owed, self._paid = until_bytes - self._paid, until_bytes
            await self._budget.receive(owed, self._rank)


FREE = NetworkBudget().toll(Rank.SMALL)
"""For streams that nobody limits."""
