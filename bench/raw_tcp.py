"""One end of a raw TCP transfer: ``raw_tcp.py receive ADDRESS`` or ``send ADDRESS PORT SECONDS``.

The receiver prints its port and, in the end, Mbit/s from the first second on; the sender the
milliseconds that connecting took, the least of several.
"""

from __future__ import annotations

import socket
import sys
import time

_WARM_UP_S = 1.0
_CONNECTIONS = 5
_PIECE = 1 << 18


def receive(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        for _ in range(_CONNECTIONS - 1):
            server.accept()[0].close()
        connection, _ = server.accept()
        buffer = bytearray(_PIECE)
        started_s = time.perf_counter()
        counted, counted_s = 0, 0.0
        while got := connection.recv_into(buffer):
            now_s = time.perf_counter() - started_s
            if counted_s:
                counted += got
                last_s = now_s
            elif now_s >= _WARM_UP_S:
                counted_s = now_s
    print(counted * 8e-6 / (last_s - counted_s), flush=True)


def send(address: str, port: int, for_s: float) -> None:
    taken_s = []
    for _ in range(_CONNECTIONS - 1):
        started_s = time.perf_counter()
        socket.create_connection((address, port)).close()
        taken_s.append(time.perf_counter() - started_s)
    with socket.create_connection((address, port)) as connection:
        ends_s = time.perf_counter() + for_s
        piece = bytes(_PIECE)
        while time.perf_counter() < ends_s:
            connection.sendall(piece)
    print(1000 * min(taken_s), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
