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
from typing import Any

Action = Callable[[float], None]


class Server:
    """Something that works at a rate, as a link does in bytes/s."""

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


class Processors(Server):
    """Some processors: each works on one thing at a time, and takes the next that waits."""

    __slots__ = ("_free_at_s",)

    def __init__(self, count: int) -> None:
        super().__init__(1.0)
        self._free_at_s = [0.0] * count

    def serve(self, at_s: float, amount: float) -> float:
        """Queue some seconds of work that come now; when they will be done."""
        begin_s = max(at_s, self._free_at_s[0])
        heapq.heapreplace(self._free_at_s, begin_s + amount)
        self.free_at_s = max(self.free_at_s, begin_s + amount)
        self.busy_s += amount
        self.done += amount
        return begin_s + amount


@dataclass
class Node:
    """A member, or the coordinator."""

    up: Server
    down: Server
    cpu: Server
    latency_s: float = 0.0  # one way, to the middle of the network


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
        self._events: list[tuple[float, int, Callable[[float, Any], object], Any]] = []
        self._planned = 0
        self._outboxes: list[deque[Iterator[Transfer]]] = [deque() for _ in nodes]
        self._sending = [False] * len(nodes)

    def at(self, time_s: float, action: Action) -> None:
        """Plan an action, given the time at which it happens."""
        self._plan(time_s, _act, action)

    def send(self, at_s: float, sender: int, transfers: Iterable[Transfer]) -> None:
        """From this time on, send these after what the sender has to send already."""
        self._plan(at_s, self._begin, (sender, iter(transfers)))

    def send_first(self, at_s: float, sender: int, transfer: Transfer) -> None:
        """At this time, send this before what the sender has to send already."""
        self._plan(at_s, self._send_one, (sender, transfer))

    def run(self) -> float:
        """Until nothing is planned any more; the time of the last event."""
        events, pop = self._events, heapq.heappop
        while events:
            self.now_s, _, action, argument = pop(events)
            action(self.now_s, argument)
        return self.now_s

    # Events are methods and what they are about, not closures: there are millions.

    def _plan(self, time_s: float, action: Callable[[float, Any], object], argument: Any) -> None:
        self._planned += 1
        heapq.heappush(self._events, (time_s, self._planned, action, argument))

    def _begin(self, now_s: float, sending: tuple[int, Iterator[Transfer]]) -> None:
        sender, transfers = sending
        self._outboxes[sender].append(transfers)
        if not self._sending[sender]:
            self._sending[sender] = True
            self._next(now_s, sender)

    def _next(self, now_s: float, sender: int) -> None:
        outbox = self._outboxes[sender]
        while outbox:
            transfer = next(outbox[0], None)
            if transfer is None:
                outbox.popleft()
                continue
            free_s = self._send_one(now_s, (sender, transfer))
            self._plan(free_s, self._next, sender)
            return
        self._sending[sender] = False

    def _send_one(self, now_s: float, sending: tuple[int, Transfer]) -> float:
        """When the sender may send the next one."""
        sender, transfer = sending
        node = self.nodes[sender]
        ready_s = node.cpu.serve(now_s, transfer.sending_s) if transfer.sending_s else now_s
        if transfer.receiver == sender:
            self._plan(ready_s, self._work, transfer)
            return ready_s
        sent_s = node.up.serve(ready_s, transfer.size_bytes)
        arrival_s = sent_s + node.latency_s + self.nodes[transfer.receiver].latency_s
        self._plan(arrival_s, self._come, transfer)
        return sent_s

    def _come(self, now_s: float, transfer: Transfer) -> None:
        here_s = self.nodes[transfer.receiver].down.serve(now_s, transfer.size_bytes)
        self._plan(here_s, self._work, transfer)

    def _work(self, now_s: float, transfer: Transfer) -> None:
        cpu, work_s = self.nodes[transfer.receiver].cpu, transfer.receiving_s
        done_s = cpu.serve(now_s, work_s) if work_s else now_s
        if transfer.arrived is not None:
            self.at(done_s, transfer.arrived)


def _act(now_s: float, action: Action) -> None:
    action(now_s)
