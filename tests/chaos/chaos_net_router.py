"""What a home's router does for programs that ask it for a port: NAT-PMP (RFC 6886), TCP only.

``chaos_net_router.py PUBLIC_ADDRESS``, run in the router's namespace.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

PORT = 5351
_ADDRESS, _MAP_TCP = 0, 2
_ANSWER = 128


def forward(port: int, host: str, inside: int) -> None:
    to = ("-i", "eth0", "-p", "tcp", "--dport", str(port))
    target = ("-j", "DNAT", "--to-destination", f"{host}:{inside}")
    nat = ("iptables", "--wait", "-t", "nat")
    subprocess.run([*nat, "-A", "PREROUTING", *to, *target], check=True)
    through = ("-i", "eth0", "-p", "tcp", "-d", host, "--dport", str(inside), "-j", "ACCEPT")
    subprocess.run(["iptables", "--wait", "-A", "FORWARD", *through], check=True)


def main(public: str) -> None:
    mapped: set[tuple[int, str, int]] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("192.168.1.1", PORT))
        print("serving", flush=True)
        while True:
            request, client = server.recvfrom(64)
            if request[:2] == bytes((0, _ADDRESS)):
                head = struct.pack("!BBHI", 0, _ANSWER + _ADDRESS, 0, 1)
                server.sendto(head + socket.inet_aton(public), client)
            elif request[:2] == bytes((0, _MAP_TCP)) and len(request) == 12:
                inside, port, lifetime_s = struct.unpack("!HHI", request[4:])
                port = port or inside
                wish = (port, client[0], inside)
                if lifetime_s and wish not in mapped:
                    forward(*wish)
                    mapped.add(wish)
                head = struct.pack("!BBHI", 0, _ANSWER + _MAP_TCP, 0, 1)
                server.sendto(head + struct.pack("!HHI", inside, port, lifetime_s), client)


if __name__ == "__main__":
    main(sys.argv[1])
