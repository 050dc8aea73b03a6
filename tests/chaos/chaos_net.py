"""A small internet in network namespaces: public hosts, and homes behind address translation.

    internet (a bridge) --- public host, public host ...
             |------------- router of a home --- computers of the home
             |------------- router of another home --- ...

Invariants:

* Everything lies in namespaces named after this process: nothing on the machine itself is touched.
  :func:`open_internet` removes them also when its block fails; what a killed process left, the
  next one removes.
* A router lets nothing in that was not asked for from inside, and drops the rest without a word, as
  a home's does. Every home uses the same private addresses.
* The public addresses are of 1.2.3.0/24, which libp2p takes for public ones; nothing leaves the
  namespaces.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from protocol.leash import leashed

_PREFIX = "barnraise"
_FOLDER = Path("/run/netns")
_NAME = re.compile(_PREFIX + r"-(\d+)-\w+")


def _run(*command: str) -> str:
    """Run a command to its end.

    Raises:
        AssertionError: it failed, or is not there.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise AssertionError(
            f"{command[0]} is missing: these tests need the packages iproute2, util-linux and"
            " iptables"
        ) from error
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """One network stack."""

    name: str

    def command(self, *command: str) -> list[str]:
        """``command``, to be run in it; the process keeps its id."""
        return ["nsenter", f"--net={_FOLDER / self.name}", "--", *command]

    def run(self, *command: str) -> str:
        return _run(*self.command(*command))

    def ip(self, *arguments: str) -> None:
        _run("ip", "-n", self.name, *arguments)

    def iptables(self, *arguments: str) -> None:
        self.run("iptables", "--wait", *arguments)


@dataclass
class Host:
    """A machine with one interface; ``public`` is how the internet sees it."""

    space: Namespace
    address: str
    gateway: str
    home: Home | None = None

    @property
    def public(self) -> str:
        return self.address if self.home is None else self.home.address

    @property
    def border(self) -> Namespace:
        """Where its traffic meets the internet."""
        return self.space if self.home is None else self.home.router

    def command(self, *command: str) -> list[str]:
        return self.space.command(*command)

    def move_to(self, address: str) -> None:
        """Another address, at once; connections of the old one are dead."""
        _readdress(self.space, "eth0", self.address, address)
        self.address = address
        if self.home is not None:
            self.space.ip("route", "replace", "default", "via", self.gateway)


@dataclass
class Home:
    """A router with one public address, and computers behind it."""

    router: Namespace
    address: str
    internet: Internet
    random_ports: bool
    hosts: list[Host] = field(default_factory=list)

    def computer(self, name: str) -> Host:
        space = self.internet.namespace(name)
        number = len(self.hosts) + 2
        self.internet.wire(space, self.router, f"lan{number}", bridge="lan")
        host = Host(space, f"192.168.1.{number}", "192.168.1.1", self)
        space.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
        space.ip("route", "add", "default", "via", host.gateway)
        self.hosts.append(host)
        return host

    def forward(self, port: int, host: Host) -> None:
        """What the owner of a router sets up by hand: let a TCP port in."""
        to = ("-p", "tcp", "--dport", str(port))
        self.router.iptables(
            *("-t", "nat", "-A", "PREROUTING", "-i", "eth0", *to),
            *("-j", "DNAT", "--to-destination", f"{host.address}:{port}"),
        )
        self.router.iptables("-A", "FORWARD", "-i", "eth0", *to, "-j", "ACCEPT")

    @contextmanager
    def giving_ports(self) -> Iterator[None]:
        """The router lets programs behind it ask for a port."""
        script = str(Path(__file__).with_name("chaos_net_router.py"))
        command = leashed(self.router.command(sys.executable, script, self.address))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "serving\n"
                yield
            finally:
                server.kill()

    def move_to(self, address: str) -> None:
        """The provider gives the router another address; what was translated before is dead."""
        _readdress(self.router, "eth0", self.address, address)
        self.address = address


@dataclass
class Internet:
    """The bridge in the middle; see :func:`open_internet`."""

    _spaces: list[Namespace] = field(default_factory=list)
    _next: int = 1

    def namespace(self, name: str) -> Namespace:
        space = Namespace(f"{_PREFIX}-{os.getpid()}-{name}")
        _run("ip", "netns", "add", space.name)
        self._spaces.append(space)
        space.ip("link", "set", "lo", "up")
        return space

    def wire(self, space: Namespace, other: Namespace, port: str, *, bridge: str) -> None:
        """A cable from ``eth0`` of one namespace into a bridge of another."""
        space.ip("link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", other.name)
        space.ip("link", "set", "eth0", "up")
        other.ip("link", "set", port, "master", bridge, "up")

    @property
    def middle(self) -> Namespace:
        return self._spaces[0]

    def open(self) -> None:
        middle = self.namespace("internet")
        middle.ip("link", "add", "wan", "type", "bridge")
        middle.ip("link", "set", "wan", "up")

    def free_address(self) -> str:
        """A public address that nobody has."""
        self._next += 1
        return f"1.2.3.{self._next}"

    def host(self, name: str) -> Host:
        """A machine with a public address."""
        space, address = self._attached(name)
        return Host(space, address, gateway="")

    def home(self, name: str, *, random_ports: bool = False) -> Home:
        """A home; with ``random_ports`` its router gives each connection another public port."""
        router, address = self._attached(name)
        router.ip("link", "add", "lan", "type", "bridge")
        router.ip("addr", "add", "192.168.1.1/24", "dev", "lan")
        router.ip("link", "set", "lan", "up")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        answers = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
        for chain in ("INPUT", "FORWARD"):
            router.iptables("-P", chain, "DROP")
            router.iptables("-A", chain, *answers)
            router.iptables("-A", chain, "-i", "lan", "-j", "ACCEPT")
        ports = ("--random-fully",) if random_ports else ()
        router.iptables("-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE", *ports)
        return Home(router, address, self, random_ports)

    def _attached(self, name: str) -> tuple[Namespace, str]:
        space, address = self.namespace(name), self.free_address()
        self.wire(space, self.middle, name, bridge="wan")
        space.ip("addr", "add", f"{address}/24", "dev", "eth0")
        return space, address

    def partition(self, some: list[Host], others: list[Host]) -> None:
        """Nothing passes between ``some`` and ``others`` any more; it is dropped without a word."""
        for here, there in [(a, b) for a in some for b in others]:
            _drop(here.border, there.public)
            _drop(there.border, here.public)

    def heal(self) -> None:
        """End every partition."""
        for space in self._spaces:
            space.iptables("-t", "raw", "-F", "PREROUTING")

    def close(self) -> None:
        for space in reversed(self._spaces):
            _remove(space.name)


def _drop(space: Namespace, source: str) -> None:
    space.iptables("-t", "raw", "-A", "PREROUTING", "-s", source, "-j", "DROP")


def _readdress(space: Namespace, device: str, old: str, new: str) -> None:
    space.ip("addr", "del", f"{old}/24", "dev", device)
    space.ip("addr", "add", f"{new}/24", "dev", device)


def _remove(name: str) -> None:
    """Kill what runs in a namespace, and the namespace."""
    for process in _run("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    _run("ip", "netns", "del", name)


def remove_leftovers() -> None:
    """Remove the namespaces of processes that are gone."""
    for path in _FOLDER.glob(f"{_PREFIX}-*"):
        match = _NAME.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(path.name)


@contextmanager
def open_internet() -> Iterator[Internet]:
    """A bridge with nothing on it yet.

    Raises:
        AssertionError: this machine cannot make one; says what is missing.
    """
    if os.geteuid() != 0:
        raise AssertionError(
            "network namespaces need root: run the tests as root, or leave these out with"
            " --ignore-glob='*/test_net_*'"
        )
    remove_leftovers()
    internet = Internet()
    try:
        internet.open()
        yield internet
    finally:
        internet.close()
