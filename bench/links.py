"""Home lines in network namespaces, and whether they are what they claim (needs root).

Each member has a namespace of its own on a bridge: what it sends and what it receives goes at most
at the line's rate (``tc tbf``, a queue of 100 ms), arrives half a round trip later
(:mod:`bench.link_delay`) and is lost by chance, packet by packet. TCP's congestion control is the
machine's: a namespace may have no other. On a line without a rate all members share one namespace's
loopback.

The benchmark sends raw TCP from one member to another: the first second, in which TCP speeds up, is
left out. What it reaches is the most that anything built on TCP can.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.report import Row, write_report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "chaos"))

from chaos_net import Host, open_internet

from protocol.leash import leashed

NOTE = (
    "raw TCP from one member to another after its first second: payload, so at most 1448 of 1514"
    " bytes of the rate; round trip as connecting takes it"
)
QUEUE_MS = 100
_BURST_BYTES = 64 << 10
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(frozen=True)
class Link:
    """A member's line to the middle; both directions alike. The round trip is between members."""

    rate_mbit: float | None  # None: loopback
    rtt_ms: float = 0.0
    loss_percent: float = 0.0

    def bound_s(self, bytes_a_way: float) -> float | None:
        """What so many bytes, the same each way, need at least; None on loopback."""
        return None if self.rate_mbit is None else bytes_a_way * 8e-6 / self.rate_mbit


LOOPBACK = Link(None)
LINKS = {
    "loopback": LOOPBACK,
    "10Mbit-40ms": Link(10, 40),
    "50Mbit-40ms": Link(50, 40),
    "100Mbit-40ms": Link(100, 40),
    "1000Mbit-20ms": Link(1000, 20),
    "100Mbit-150ms": Link(100, 150),
    "50Mbit-40ms-lossy": Link(50, 40, 0.1),
}


@dataclass(frozen=True)
class Member:
    """Where one member runs."""

    host: Host
    device: str

    @property
    def address(self) -> str:
        return self.host.address

    def command(self, *command: str) -> list[str]:
        return self.host.command(*command)

    def counted_bytes(self, pid: int) -> tuple[int, int]:
        """What its interface has sent and received, headers and all; ``pid``: a process there.

        On loopback, where all members share it, those of all of them.
        """
        return interface_bytes(pid, self.device)


def interface_bytes(pid: int | str, device: str) -> tuple[int, int]:
    """What an interface has sent and received; ``pid``: a process in its namespace, or ``self``."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() == device:
            numbers = [int(value) for value in values.split()]
            return numbers[8], numbers[0]
    raise RuntimeError(f"process {pid} has no interface {device}")


@contextmanager
def open_members(
    link: Link, count: int, slow: dict[int, float] | None = None
) -> Iterator[list[Member]]:
    """So many members, each with such a line.

    Args:
        link: the line.
        count: of members.
        slow: members by number whose line has another rate, in Mbit/s.
    """
    with open_internet() as internet, ExitStack() as stack:
        if link.rate_mbit is None:
            host = Host(internet.namespace("alone"), "127.0.0.1", gateway="")
            yield [Member(host, "lo")] * count
            return
        hosts = [internet.host(f"m{number}") for number in range(count)]
        for number, host in enumerate(hosts):
            rate_mbit = (slow or {}).get(number, link.rate_mbit)
            for space, device in ((host.space, "eth0"), (internet.middle, f"m{number}")):
                space.run("tc", *_limit(device, rate_mbit))
            _lose(host, link.loss_percent)
        if link.rtt_ms:
            stack.enter_context(_delayed(hosts, link.rtt_ms / 2))
        yield [Member(host, "eth0") for host in hosts]


def _limit(device: str, rate_mbit: float) -> list[str]:
    rate = ["rate", f"{rate_mbit}mbit", "burst", str(_BURST_BYTES), "latency", f"{QUEUE_MS}ms"]
    return ["qdisc", "add", "dev", device, "root", "tbf", *rate]


def _lose(host: Host, percent: float) -> None:
    if percent:
        # Else a burst of TCP would be lost as a whole: to netfilter it is one packet.
        host.space.ip("link", "set", "eth0", "gso_max_segs", "1")
        chance = ("-m", "statistic", "--mode", "random", "--probability", str(percent / 100))
        host.space.iptables("-A", "INPUT", "-i", "eth0", *chance, "-j", "DROP")


@contextmanager
def _delayed(hosts: list[Host], delay_ms: float) -> Iterator[None]:
    for host in hosts:
        host.space.iptables("-A", "INPUT", "-i", "eth0", "-j", "NFQUEUE", "--queue-num", "0")
    script = str(Path(__file__).with_name("link_delay.py"))
    names = [host.space.name for host in hosts]
    command = leashed([sys.executable, script, str(delay_ms), *names])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the delay did not start")
            yield
        finally:
            process.send_signal(signal.SIGKILL)


def raw_tcp(link: Link, for_s: float = 4.0) -> tuple[float, float]:
    """Measured payload rate in Mbit/s, and round trip in ms, of TCP between two members."""
    with open_members(link, 2) as (sender, receiver):
        script = str(Path(__file__).with_name("raw_tcp.py"))
        listening = subprocess.Popen(
            receiver.command(sys.executable, script, "receive", receiver.address),
            stdout=subprocess.PIPE,
            text=True,
        )
        with listening:
            assert listening.stdout is not None
            port = listening.stdout.readline().strip()
            told = subprocess.run(
                sender.command(
                    *(sys.executable, script, "send", receiver.address, port, str(for_s))
                ),
                capture_output=True,
                text=True,
                check=True,
            )
            rate_mbit = float(listening.stdout.readline())
    return rate_mbit, float(told.stdout)


def run(quick: bool) -> list[Row]:
    """Measure every link of the benchmarks; ``quick``: one."""
    names = ["100Mbit-40ms"] if quick else list(LINKS)
    rows = [_row(name, turns=1 if quick else 3) for name in names]
    write_report("links-quick" if quick else "links", rows, note=NOTE)
    return rows


def _row(name: str, turns: int) -> Row:
    link = LINKS[name]
    measured = [raw_tcp(link) for _ in range(turns)]
    rate_mbit = statistics.median(rate for rate, _ in measured)
    return {
        "link": name,
        "congestion_control": _CONGESTION_CONTROL.read_text().strip(),
        "rate_Mbit_s": link.rate_mbit or "",
        "raw_TCP_Mbit_s": rate_mbit,
        "ratio": rate_mbit / link.rate_mbit if link.rate_mbit else "",
        "lost_percent": link.loss_percent,
        "rtt_ms": link.rtt_ms,
        "raw_TCP_rtt_ms": statistics.median(rtt for _, rtt in measured),
        "bound_s_per_100_MB": 800 / rate_mbit,
    }
