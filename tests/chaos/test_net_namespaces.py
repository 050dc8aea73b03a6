"""The small internet that the other tests stand on: what passes, what does not, what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos_net import Host, open_internet

SERVER = """\
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection, (host, port) = server.accept()
    print(host, port, flush=True)
    connection.close()
"""
CLIENT = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as connection:
    print(connection.getsockname()[1])
"""


@contextmanager
def serving(host: Host, port: int) -> Iterator[subprocess.Popen[str]]:
    command = host.command(sys.executable, "-c", SERVER, str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "listening\n"
            yield server
        finally:
            server.kill()


def dial(host: Host, address: str, port: int) -> int:
    """Our port of the connection; an AssertionError when there is none."""
    return int(host.space.run(sys.executable, "-c", CLIENT, address, str(port)))


def seen(server: subprocess.Popen[str]) -> tuple[str, int]:
    assert server.stdout is not None
    address, port = server.stdout.readline().split()
    return address, int(port)


def namespaces() -> list[Path]:
    return list(Path("/run/netns").glob(f"barnraise-{os.getpid()}-*"))


def test_what_passes_and_what_does_not() -> None:
    with open_internet() as internet:
        public = internet.host("public")
        home, other = internet.home("home"), internet.home("other", random_ports=True)
        laptop, desktop = home.computer("laptop"), other.computer("desktop")
        with serving(public, 5000) as server:
            port = dial(laptop, public.address, 5000)
            assert seen(server) == (home.address, port)
            ports = [(dial(desktop, public.address, 5000), seen(server)) for _ in range(3)]
            assert {address for _, (address, _) in ports} == {other.address}
            assert any(here != there for here, (_, there) in ports)

            internet.partition([laptop], [public])
            with pytest.raises(AssertionError, match="timed out"):
                dial(laptop, public.address, 5000)
            dial(desktop, public.address, 5000)
            internet.heal()
            dial(laptop, public.address, 5000)
        with serving(laptop, 31337):
            with pytest.raises(AssertionError, match="timed out"):
                dial(public, home.address, 31337)
            home.forward(31337, laptop)
            dial(public, home.address, 31337)
        assert len(namespaces()) == 6
    assert namespaces() == []


def test_a_failed_test_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), open_internet() as internet:
        internet.home("home").computer("laptop")
        raise ZeroDivisionError
    assert namespaces() == []


def test_what_a_killed_test_left_is_removed_by_the_next() -> None:
    code = (
        "import chaos_net, sys, time\n"
        "with chaos_net.open_internet() as internet:\n"
        "    host = internet.host('public')\n"
        "    print('open', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "open\n"
        left = [f"barnraise-{killed.pid}-{name}" for name in ("internet", "public")]
        assert all(Path("/run/netns", name).exists() for name in left)
        killed.send_signal(signal.SIGKILL)
    with open_internet():
        assert not any(Path("/run/netns", name).exists() for name in left)
