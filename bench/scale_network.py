"""The core of the simulation: members with links and processors, an event heap, no more.

Invariants (``tests/property/test_scale_network.py``):

* A :class:`Server` works at its rate, on one thing at a time, first come first served, and never
  stands idle while something waits: so a link never carries more than its rate.
* Every transfer takes its bytes from the sender's uplink once and the receiver's downlink once.
* Events of one time happen in the order in which they were planned: the same input gives the same
  run, to the bit.

What is simplified: a link serves whole transfers one after the other where TCP would share it
among streams, so a transfer can come earlier or later by some transfers' time, but the time at
which a link has carried all that waits for it is the same. Networks between the links are never
the bottleneck; loss and slow start are in the efficiency of a link (:mod:`bench.scale_homes`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

Action = Callable[[float], None]


class Server:
    """Something that works at a rate: bytes/s of a link, processor seconds/s of a machine."""

    __slots__ = ("_rate", "busy_s", "done", "free_at_s")

    def __init__(self, rate: float) -> None:
        if rate <= 0:
            raise ValueError("a server works at some rate")
        self._rate = rate
        self.free_at_s = self.busy_s = self.done = 0.0

    def serve(self, at_s: float, amount: float) -> float:
        """Queue some work that comes now; when it will be done."""
        begin_s = at_s if at_s > self.free_at_s else self.free_at_s
        took_s = amount / self._rate
        self.free_at_s = begin_s + took_s
        self.busy_s += took_s
        self.done += amount
        return self.free_at_s


class Place(Protocol):
    """What the network needs to know of a member."""

    up: Server
    down: Server
    cpu: Server
    latency_s: float  # to the middle of the Internet: half of a round trip to a twin


@dataclass
class Node:
    """A member, or the coordinator."""

    up: Server
    down: Server
    cpu: Server
    latency_s: float = 0.0
    gone_at_s: float = inf  # vanishes: sends and takes nothing from then on


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes from one node to another, and the processor time they take at both ends.

    ``sender == receiver`` crosses no link. ``arrived`` is called when the receiver has worked
    through it.
    """

    receiver: int
    size_bytes: float
    sending_s: float = 0.0
    receiving_s: float = 0.0
    arrived: Action | None = None


class Network:
    """Nodes that send to each other, each its transfers in order."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.now_s = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._planned = 0
        self._outboxes: list[deque[Iterator[Transfer]]] = [deque() for _ in nodes]
        self._sending = [False] * len(nodes)

    def at(self, time_s: float, action: Action) -> None:
        """Plan an action, given the time at which it happens."""
        self._planned += 1
        heapq.heappush(self._events, (time_s, self._planned, action))

    def send(self, at_s: float, sender: int, transfers: Iterable[Transfer]) -> None:
        """From this time on, send these after what the sender has to send already."""

        def begin(now_s: float) -> None:
            self._outboxes[sender].append(iter(transfers))
            if not self._sending[sender]:
                self._sending[sender] = True
                self._next(sender, now_s)

        self.at(at_s, begin)

    def run(self) -> float:
        """Until nothing is planned any more; the time of the last event."""
        events = self._events
        while events:
            self.now_s, _, action = heapq.heappop(events)
            action(self.now_s)
        return self.now_s

    def _next(self, sender: int, now_s: float) -> None:
        node, outbox = self.nodes[sender], self._outboxes[sender]
        if now_s >= node.gone_at_s:
            outbox.clear()
        while outbox:
            transfer = next(outbox[0], None)
            if transfer is None:
                outbox.popleft()
                continue
            ready_s = node.cpu.serve(now_s, transfer.sending_s) if transfer.sending_s else now_s
            if transfer.receiver == sender:
                self.at(ready_s, lambda at_s, t=transfer: self._work(t, at_s))  # type: ignore[misc]
                self.at(ready_s, lambda at_s: self._next(sender, at_s))
                return
            sent_s = node.up.serve(ready_s, transfer.size_bytes)
            self._cross(node, transfer, sent_s)
            self.at(sent_s, lambda at_s: self._next(sender, at_s))
            return
        self._sending[sender] = False

    def _cross(self, node: Node, transfer: Transfer, sent_s: float) -> None:
        if sent_s > node.gone_at_s:
            return  # it left in the middle
        receiver = self.nodes[transfer.receiver]

        def come(now_s: float) -> None:
            if now_s < receiver.gone_at_s:
                here_s = receiver.down.serve(now_s, transfer.size_bytes)
                self.at(here_s, lambda at_s: self._work(transfer, at_s))

        self.at(sent_s + node.latency_s + receiver.latency_s, come)

    def _work(self, transfer: Transfer, now_s: float) -> None:
        receiver = self.nodes[transfer.receiver]
        if now_s >= receiver.gone_at_s:
            return
        done_s = receiver.cpu.serve(now_s, transfer.receiving_s) if transfer.receiving_s else now_s
        if transfer.arrived is not None:
            self.at(done_s, transfer.arrived)
