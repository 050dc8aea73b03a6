"""Fan-out of the round's events to everybody who watches.

Invariants: a subscriber sees every event after its first snapshot, in order, numbered from 1
on its own stream; or its stream ends with an error, and it comes back for a new snapshot. A slow
reader never makes anybody else wait, nor lets memory grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from protocol.errors import TransientError
from protocol.wire import service_pb2


class Subscription:
    """One reader's bounded queue."""

    def __init__(self, capacity: int) -> None:
        self._queue: asyncio.Queue[service_pb2.RunEvent] = asyncio.Queue(capacity)
        self._overrun = False
        self._sequence = 0

    def offer(self, event: service_pb2.RunEvent) -> None:
        """Queue an event; marks the reader as too slow instead of waiting for it."""
        if self._overrun:
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._overrun = True

    async def events(self) -> AsyncIterator[service_pb2.RunEvent]:
        """Events as they come.

        Raises:
            TransientError: the reader was too slow and has missed some.
        """
        while True:
            if self._overrun and self._queue.empty():
                raise TransientError("events came faster than they were read: connect again")
            event = await self._queue.get()
            self._sequence += 1
            numbered = service_pb2.RunEvent()
            numbered.CopyFrom(event)
            numbered.sequence = self._sequence
            yield numbered


class Hub:
    """All subscriptions."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._subscriptions: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def open(self, snapshot: Iterable[service_pb2.RunEvent]) -> Subscription:
        """Begin a subscription with what is current."""
        subscription = Subscription(self._capacity)
        for event in snapshot:
            subscription.offer(event)
        self._subscriptions.add(subscription)
        return subscription

    def close(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def publish(self, events: Iterable[service_pb2.RunEvent]) -> None:
        """Offer events to everybody; never blocks."""
        for event in events:
            for subscription in self._subscriptions:
                subscription.offer(event)
