"""Whether others can open connections to this machine: measured by the coordinator, not assumed.

* **direct**: the coordinator reached our peer-to-peer port from outside. We are told to others, may
  reduce, and serve weights.
* **client-mode**: it did not, or the owner said so. We only open connections ourselves; nothing
  else is lost.

Invariants:

* With ``client_mode = "auto"`` an address is told to others only after somebody reached it; as long
  as nobody could say, this machine counts as one that nobody reaches.
* It is measured at the start, when this machine's addresses change, when a router gave it a port,
  when the coordinator was lost and is back, and now and then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from itertools import pairwise

import psutil
import structlog

from protocol.errors import ProtocolError, UsageError
from protocol.limits import MAX_MULTIADDRS
from protocol.wire import service_pb2 as api
from worker.config import ClientMode
from worker.session import Session
from worker.status import Board
from worker.swarm import Swarm

log = structlog.get_logger()

LOOK_S = 1.0
"""How often this machine's own addresses are looked at; costs less than a millisecond."""

ASK_AGAIN_S = 900.0
NOT_ANSWERED_S = 60.0
"""When to ask again: of what was measured, and of what could not be."""

_MAX_PORTS = 4
_LEAST_PORT = 1024


class Mode(StrEnum):
    DIRECT = "direct"
    CLIENT = "client-mode"


@dataclass(frozen=True)
class Reach:
    """How others get to this machine, and why so."""

    mode: Mode
    why: str
    address: str = ""  # ours, as the coordinator sees it
    ports: tuple[int, ...] = ()  # on which it reached us
    final: bool = True  # False: could not be measured

    @property
    def direct(self) -> bool:
        return self.mode == Mode.DIRECT


UNKNOWN = Reach(Mode.CLIENT, "not measured yet", final=False)
BY_CHOICE = Reach(Mode.CLIENT, "the owner chose it (client_mode = true in worker.toml)")
TRUSTED = Reach(Mode.DIRECT, "the owner says so (client_mode = false in worker.toml)")
ANCHOR = Reach(Mode.DIRECT, "an anchor is public")


@dataclass
class Reachability:
    """Keeps :attr:`reach` true; :meth:`run` never returns."""

    choice: ClientMode
    session: Session
    swarm: Swarm
    board: Board
    announce: Sequence[str] = ()
    nat_port_map: bool = False  # a router's answer comes seconds after the start
    anchor: bool = False
    reach: Reach = UNKNOWN

    def __post_init__(self) -> None:
        self._ask = asyncio.Event()
        self._connections = 0
        self._answered = False
        self._here = own_hosts()

    async def addresses(self) -> list[str]:
        """Multiaddrs to tell others, those that were reached first; empty in client mode."""
        if not self.reach.direct:
            return []
        seen = await self.swarm.multiaddrs()
        if not self.announce:
            seen = told_to_others(seen, self.reach, own_hosts(), self.swarm.peer_id)
        return seen[:MAX_MULTIADDRS]

    async def start(self) -> None:
        """The first measurement, before anybody hears of us."""
        reach = await self._measure()
        self._answered = reach.final
        await self._set(reach)

    def connected(self) -> None:
        """The coordinator's event stream is open (again): we may have another address now."""
        self._connections += 1
        if self._connections > 1:
            self._ask.set()

    async def run(self) -> None:
        """Ask again when there is a reason to. Run it as a task."""
        while True:
            await self.ask_again()

    async def ask_again(self) -> None:
        """Wait for a reason to, then ask; what cannot be measured now stays as it was."""
        await self._reason_to_ask()
        reach = await self._measure()
        self._answered = reach.final
        if reach.final or not self.reach.final:
            await self._set(reach)

    async def _reason_to_ask(self) -> None:
        patience_s = ASK_AGAIN_S if self._answered else NOT_ANSWERED_S
        clock = asyncio.get_running_loop().time
        # A swarm that was started at once does not ask at once for ever.
        until_s = clock() + patience_s * random.uniform(0.75, 1.25)
        while clock() < until_s:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._ask.wait()
                self._ask.clear()
                return
            except TimeoutError:
                here = own_hosts()
            if self.nat_port_map and self.board.ports != ports_of(await self.swarm.multiaddrs()):
                return
            if here != self._here:
                self._here = here
                log.info("this machine's addresses changed", addresses=sorted(here))
                await self.swarm.drop_connections()
                await self.session.reconnect()
                return

    async def _measure(self) -> Reach:
        self.board.ports = ports_of(await self.swarm.multiaddrs())
        if self.anchor:
            return ANCHOR
        if self.choice is True:
            return BY_CHOICE
        if self.choice is False:
            return TRUSTED
        return await measure(self.session, self.board.ports)

    async def _set(self, reach: Reach) -> None:
        changed = (reach.mode, reach.why) != (self.reach.mode, self.reach.why)
        self.reach = reach
        self.board.reachability, self.board.reachability_reason = str(reach.mode), reach.why
        if changed and not self.anchor:
            log.info("reachability", mode=str(reach.mode), why=reach.why)
        await self.swarm.serve_dht(reach.direct)


async def measure(session: Session, ports: Sequence[int]) -> Reach:
    """Have the coordinator dial these ports of this machine."""
    if not ports:
        why = f"the peer-to-peer daemon listens on no TCP port from {_LEAST_PORT} on"
        return Reach(Mode.CLIENT, why)
    try:
        reply = await session.dial_back(ports)
    except UsageError:
        return Reach(Mode.DIRECT, "assumed: this coordinator is too old to measure it")
    except ProtocolError as error:
        return Reach(Mode.CLIENT, f"not measured yet: {error}", final=False)
    return judge(ports, reply)


def judge(asked: Sequence[int], reply: api.DialBackReply) -> Reach:
    """What the coordinator's answer means. Ports that were not asked for count for nothing."""
    ports = tuple(port for port in asked if port in reply.reachable)
    numbers = ", ".join(str(port) for port in ports or asked)
    if not ports:
        why = f"nobody can connect to {reply.address or 'this machine'} on TCP port {numbers}"
        return Reach(Mode.CLIENT, why, reply.address)
    why = f"the coordinator reached TCP port {numbers} of {reply.address}"
    return Reach(Mode.DIRECT, why, reply.address, ports)


def ports_of(multiaddrs: Sequence[str]) -> list[int]:
    """The TCP ports of addresses such as ``/ip4/10.0.0.1/tcp/4001``; as many as may be asked."""
    ports = [int(port) for address in multiaddrs for port in _values(address, "tcp")]
    return [p for p in dict.fromkeys(ports) if p >= _LEAST_PORT][:_MAX_PORTS]


def told_to_others(
    seen: Sequence[str], reach: Reach, here: frozenset[str], peer_id: str
) -> list[str]:
    """Addresses worth dialling: those that were reached, then those in our own network.

    Args:
        seen: what the daemon says of itself; it learns late of a change.
        here: the addresses that this machine has now.
    """
    kind = "ip6" if ":" in reach.address else "ip4"
    reached = [f"/{kind}/{reach.address}/tcp/{port}/p2p/{peer_id}" for port in reach.ports]
    loopback = not reached or ip_address(reach.address).is_loopback

    def worth_telling(host: str) -> bool:
        if host in here:
            return loopback or not ip_address(host).is_loopback
        return not reached and ip_address(host).is_global  # a router's, not measured

    own = [address for address in seen if all(map(worth_telling, _hosts(address)))]
    return list(dict.fromkeys([*reached, *own]))


def _hosts(address: str) -> list[str]:
    return [host for kind in ("ip4", "ip6") for host in _values(address, kind)]


def _values(address: str, protocol: str) -> list[str]:
    parts = address.split("/")
    return [value for name, value in pairwise(parts) if name == protocol]


def own_hosts() -> frozenset[str]:
    """This machine's IP addresses."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return frozenset(host.partition("%")[0] for host in found if _is_ip(host.partition("%")[0]))


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
