"""Delays what arrives in network namespaces: ``python bench/link_delay.py DELAY_MS NAMESPACE...``.

For kernels without ``sch_netem``. Each packet that arrives on ``eth0`` waits in a netfilter queue
until its verdict is sent, so only the packets' numbers come here, not their bytes. Packets leave in
the order they came: one verdict lets through all that have waited long enough. It runs as a
real-time process: on a busy machine a delay must not grow.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path

# linux/netlink.h, linux/netfilter/nfnetlink_queue.h
_NETLINK_NETFILTER, _SUBSYSTEM, _REQUEST = 12, 3 << 8, 1
_PACKET, _CONFIG, _VERDICTS = 0, 2, 3
_COMMAND, _PARAMETERS, _MOST_WAITING, _MASK, _FLAGS = 1, 2, 3, 4, 5
_BIND, _COPY_META, _FAIL_OPEN, _GSO = 1, 1, 1, 4
_SO_RCVBUFFORCE, _SOL_NETLINK, _NO_ENOBUFS = 33, 270, 5
_CLONE_NEWNET = 0x40000000
_ACCEPT = 1

_QUEUE = "-A INPUT -i eth0 -j NFQUEUE --queue-num 0"
_NAMESPACES = Path("/run/netns")


class Queue:
    """The packets of one namespace that wait."""

    def __init__(self, namespace: Path, delay_s: float) -> None:
        _enter(namespace)
        self._delay_s, self._waiting = delay_s, deque[tuple[float, int]]()
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self.socket.bind((0, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self.socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
        self._tell(_CONFIG, _attribute(_COMMAND, struct.pack(">BBH", _BIND, 0, 0)))
        self._tell(_CONFIG, _attribute(_PARAMETERS, struct.pack(">IB", 0, _COPY_META)))
        self._tell(_CONFIG, _attribute(_MOST_WAITING, struct.pack(">I", 1 << 16)))
        flags = struct.pack(">I", _FAIL_OPEN | _GSO)  # GSO: a burst of TCP is one packet here
        self._tell(_CONFIG, _attribute(_MASK, flags) + _attribute(_FLAGS, flags))
        self.socket.setblocking(False)

    def _tell(self, kind: int, attributes: bytes) -> None:
        head = struct.pack("=IHHII", 20 + len(attributes), _SUBSYSTEM | kind, _REQUEST, 0, 0)
        self.socket.send(head + struct.pack(">BBH", 0, 0, 0) + attributes)

    def take(self) -> None:
        """Note everything that has arrived."""
        due_s = time.monotonic() + self._delay_s
        while True:
            try:
                message = self.socket.recv(4096)
            except BlockingIOError:
                return
            if struct.unpack_from("=H", message, 4)[0] == _SUBSYSTEM | _PACKET:
                # The kernel writes the packet's number first.
                self._waiting.append((due_s, struct.unpack_from(">I", message, 24)[0]))

    def release(self, now_s: float) -> None:
        """Let through what has waited long enough."""
        last = None
        while self._waiting and self._waiting[0][0] <= now_s:
            last = self._waiting.popleft()[1]
        if last is not None:
            self._tell(_VERDICTS, _attribute(2, struct.pack(">II", _ACCEPT, last)))

    @property
    def next_s(self) -> float:
        return self._waiting[0][0] if self._waiting else float("inf")


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)


def main(delay_s: float, names: list[str]) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    queues = {
        queue.socket: queue for queue in (Queue(_NAMESPACES / name, delay_s) for name in names)
    }
    print("ready", flush=True)
    while True:
        next_s = min(queue.next_s for queue in queues.values())
        wait_s = None if next_s == float("inf") else max(0.0, next_s - time.monotonic())
        for ready in select.select(queues, (), (), wait_s)[0]:
            queues[ready].take()
        now_s = time.monotonic()
        for queue in queues.values():
            queue.release(now_s)


if __name__ == "__main__":
    main(float(sys.argv[1]) / 1000, sys.argv[2:])
