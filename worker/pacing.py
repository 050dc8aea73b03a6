"""When bytes may pass in one direction: a token bucket that goes into debt, and who waits for it.

Invariants, for any rate above nothing and over any time T, whoever asks for whatever:

* at most ``rate * T + slack_bytes`` pass: bulk begins only without debt, a small message only out
  of an allowance that fills at a quarter of the rate;
* whoever waits is served: small messages first while they keep to that quarter, bulk by the time
  of its asking plus its rank's handicap, so that no rank waits for another for ever.

Pure: every call is told the time, on a clock that nobody sets.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

BURST_S = 0.25
"""What an idle line saves up, in seconds of its rate."""

SMALL_BYTES = 4096
"""Up to this size it is a message, and goes before bulk."""

QUANTUM_BYTES = 16 << 10
"""Bulk passes in pieces of this size, larger ones on a fast line."""

_LARGEST_QUANTUM_BYTES = 256 << 10
_QUANTUM_S = 0.02
_LEAST_ALLOWANCE_BYTES = 8 << 10
_SMALL_SHARE = 0.25


class Rank(IntEnum):
    """What goes first; the number is the handicap in seconds."""

    SMALL = 0
    REDUCE = 1
    BLOBS = 5


@dataclass(order=True)
class Ticket:
    """A place in the queue."""

    due_s: float
    number: int
    size_bytes: int = field(compare=False)
    gone: bool = field(default=False, compare=False)  # who waited does not any more


class Pacer:
    """One direction of the line."""

    def __init__(self, rate_bytes_s: float = 0.0, now_s: float = 0.0) -> None:
        self.rate_bytes_s = rate_bytes_s  # 0: no limit
        self.closed_to_bulk = False  # the day's quota is used up
        self._at_s = now_s
        self._balance = 0.0
        self._allowance = self._allowance_bytes
        self._small: deque[Ticket] = deque()
        self._bulk: list[Ticket] = []
        self._number = 0

    @property
    def is_free(self) -> bool:
        """Nothing has to be asked for: it is only counted."""
        return self.rate_bytes_s == 0 and not self.closed_to_bulk

    @property
    def quantum_bytes(self) -> int:
        """How much bulk may be asked for at once."""
        at_this_rate = int(self.rate_bytes_s * _QUANTUM_S)
        return max(QUANTUM_BYTES, min(at_this_rate, _LARGEST_QUANTUM_BYTES))

    @property
    def slack_bytes(self) -> float:
        """How much more than the rate may pass in any time, if what is asked for is no larger than
        a quantum with its overhead."""
        largest = 1.1 * (self.quantum_bytes + SMALL_BYTES)
        return self.rate_bytes_s * BURST_S + self._allowance_bytes + largest

    @property
    def _allowance_bytes(self) -> float:
        return max(_LEAST_ALLOWANCE_BYTES, self.rate_bytes_s * BURST_S)

    def change(self, rate_bytes_s: float, now_s: float) -> None:
        """Another rate, from now on; what was used before is still owed."""
        self._refill(now_s)
        if self.rate_bytes_s == 0:
            self._balance = 0.0
        self.rate_bytes_s = rate_bytes_s
        self._refill(now_s)

    def charge(self, size_bytes: float, now_s: float) -> None:
        """What passes, or has passed, without asking; negative: it did not after all."""
        if self.rate_bytes_s:
            self._refill(now_s)
            self._balance -= size_bytes

    def ask(self, size_bytes: int, rank: Rank, now_s: float) -> Ticket:
        """Queue up for ``size_bytes``; :meth:`serve` says when they may pass."""
        self._number += 1
        ticket = Ticket(now_s + rank, self._number, size_bytes)
        if rank == Rank.SMALL:
            self._small.append(ticket)
        else:
            heapq.heappush(self._bulk, ticket)
        return ticket

    def serve(self, now_s: float) -> list[Ticket]:
        """Those whose turn has come."""
        self._refill(now_s)
        served = []
        while (ticket := self._next()) is not None:
            self._balance -= ticket.size_bytes
            served.append(ticket)
        return served

    def wait_s(self) -> float | None:
        """After how long the next one can be served; None: not by waiting."""
        self._forget_gone()
        waits = []
        if self.rate_bytes_s == 0:
            return None
        if self._small:
            waits.append(max(0.0, -self._allowance) / (self.rate_bytes_s * _SMALL_SHARE))
        if self._small or (self._bulk and not self.closed_to_bulk):
            waits.append(max(0.0, -self._balance) / self.rate_bytes_s)
        return min(waits, default=None)

    def _next(self) -> Ticket | None:
        self._forget_gone()
        unlimited = self.rate_bytes_s == 0
        if self._small and (unlimited or self._allowance >= 0):
            self._allowance -= self._small[0].size_bytes
            return self._small.popleft()
        if unlimited or self._balance >= 0:
            if self._bulk and not self.closed_to_bulk:
                return heapq.heappop(self._bulk)
            if self._small:
                return self._small.popleft()
        return None

    def _forget_gone(self) -> None:
        while self._small and self._small[0].gone:
            self._small.popleft()
        while self._bulk and self._bulk[0].gone:
            heapq.heappop(self._bulk)

    def _refill(self, now_s: float) -> None:
        passed_s, self._at_s = max(0.0, now_s - self._at_s), max(now_s, self._at_s)
        filled = self.rate_bytes_s * passed_s
        self._balance = min(self._balance + filled, self.rate_bytes_s * BURST_S)
        self._allowance = min(self._allowance + filled * _SMALL_SHARE, self._allowance_bytes)
