"""Fan-out of the round's events to everybody who watches.

Invariants: a subscriber sees every event after its first snapshot, in order, numbered from 1
on its own stream; or its stream ends with an error, and it comes back for a new snapshot. A slow
reader never makes anybody else wait, nor lets memory grow. A crowd of readers is served a few at a
time, so that whoever asks for something else waits for a few and not for ten thousand.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice

from protocol.errors import TransientError
from protocol.wire import service_pb2


class Subscription:
    """One reader's bounded queue."""

    def __init__(self, capacity: int) -> None:
        self._queue: asyncio.Queue[service_pb2.RunEvent] = asyncio.Queue(capacity)
        self.closed = False
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


_AT_ONCE = 64
"""Readers that are woken together."""


class Hub:
    """All subscriptions."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._subscriptions: set[Subscription] = set()
        self._news: deque[tuple[list[service_pb2.RunEvent], Iterator[Subscription]]] = deque()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def make(self) -> Subscription:
        """A subscription that has not begun."""
        return Subscription(self._capacity)

    def open(self, subscription: Subscription, snapshot: Iterable[service_pb2.RunEvent]) -> None:
        """Begin a subscription with what is current."""
        if subscription.closed:  # its reader has gone meanwhile
            return
        for event in snapshot:
            subscription.offer(event)
        self._subscriptions.add(subscription)

    def close(self, subscription: Subscription) -> None:
        subscription.closed = True
        self._subscriptions.discard(subscription)

    def publish(self, events: Iterable[service_pb2.RunEvent]) -> None:
        """Offer events to everybody who watches now; never blocks."""
        told = list(events)
        if told and self._subscriptions:
            self._news.append((told, iter(tuple(self._subscriptions))))
            if len(self._news) == 1:
                self._tell_some()

    def _tell_some(self) -> None:
        events, readers = self._news[0]
        some = list(islice(readers, _AT_ONCE))
        for subscription in some:
            for event in events:
                subscription.offer(event)
        if len(some) < _AT_ONCE:
            self._news.popleft()
        if self._news:
            asyncio.get_running_loop().call_soon(self._tell_some)
