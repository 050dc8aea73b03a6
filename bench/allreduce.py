"""One all-reduce between real processes: ours, hivemind's averager, gloo (needs root).

Each peer is a process with one thread on a member of a link (:mod:`bench.links`; on loopback all in
one network namespace). Ours is timed from encoding to the decoded mean, the coordinator's exchange
(roster, inclusion set) included, though it passes a pipe here; hivemind's from the trigger, its
matchmaking left out; gloo's from a barrier. One system runs at a time. Its first turn opens the
connections and is not timed: memory is looked at in it.

Bytes are those of the members' interfaces, all headers and both protocols' chatter included. The
bound is what a member has to send, ``2 (n - 1) / n`` encoded vectors, at the line's nominal rate:
the same for a ring and for a butterfly of equal shares. TCP itself reaches 0.956 of that rate.
Part of the configurations: see :mod:`bench.cases`.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.allreduce_systems import SYSTEMS, System
from bench.cases import run_cases
from bench.links import LINKS, Member, open_members
from bench.process_cost import cpu_s, watching_memory
from bench.report import Row

NOTE = (
    "median over turns; x hivemind: time relative to hivemind's averager at the same precision"
    " (fp32 none, int8 and int4 8bit), measured just before; x bound: to the bytes at the line's"
    " nominal rate; of one member and turn: what its interface sent, bytes in both directions per"
    " element, processor seconds"
)
M = 1_000_000
BYTES_PER_ELEMENT: Final = {
    **{"fp32": 4.0, "none": 4.0, "fp16": 2.0, "8bit": 1.0},
    **{"int8": 1 + 2 / 256, "int4": 0.5 + 2 / 256},
}
PRECISIONS: Final = {
    "fp32": [("gloo", "fp32"), ("hivemind", "none"), ("ours", "fp32")],
    "8bit": [("hivemind", "fp16"), ("hivemind", "8bit"), ("ours", "int8"), ("ours", "int4")],
}
_OTHER: Final = {"fp32": "none", "int8": "8bit", "int4": "8bit"}
TURNS = 3


@dataclass(frozen=True)
class Case:
    """What is compared at once."""

    link: str
    peers: int
    elements: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.link}-{self.peers}-{self.elements // M}M-{self.precision}"


CASES: Final = [
    Case(link, peers, millions * M, precision)
    for link, peers, millions in (
        *(("loopback", 2, 1), ("loopback", 4, 1), ("loopback", 8, 1)),
        *(("loopback", 4, 25), ("loopback", 4, 100)),
        *(("100Mbit-40ms", 2, 4), ("100Mbit-40ms", 4, 4), ("100Mbit-40ms", 8, 4)),
        *(("100Mbit-40ms", 4, 25), ("10Mbit-40ms", 4, 1), ("50Mbit-40ms", 4, 4)),
        *(("1000Mbit-20ms", 4, 25), ("100Mbit-150ms", 4, 4), ("50Mbit-40ms-lossy", 4, 4)),
    )
    for precision in PRECISIONS
]
QUICK: Final = [Case("100Mbit-40ms", 2, M, precision) for precision in PRECISIONS]


def run(quick: bool) -> list[Row]:
    """Measure all; ``quick`` takes two peers, 1 M elements and one turn."""
    if quick:
        return run_cases("allreduce-quick", QUICK, partial(_measure, turns=1), note=NOTE)
    return run_cases("allreduce", CASES, partial(_measure, turns=TURNS), note=NOTE)


def _measure(case: Case, turns: int) -> list[Row]:
    rows = []
    with open_members(LINKS[case.link], case.peers) as members:
        for system, codec in PRECISIONS[case.precision]:
            rows.append(_measure_system(case, members, system, codec, turns))
    medians = {(row["system"], row["codec"]): row["median_s"] for row in rows}
    for row in rows:
        other = medians.get(("hivemind", _OTHER.get(str(row["codec"]), "")))
        row["x_hivemind"] = row["median_s"] / other if other else ""
    return rows


def _measure_system(
    case: Case, members: list[Member], kind: str, codec: str, turns: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        system = SYSTEMS[kind](members, case.elements, codec, Path(folder))
        with watching_memory(system.peers[-1].pid) as peak:
            system.turn(0)
        system.check()
        before = _counted(system)
        seconds = [system.turn(number) for number in range(1, turns + 1)]
        after = _counted(system)
        system.stop()
    spent = [(b - a) / turns / case.peers for a, b in zip(before, after, strict=True)]
    return _row(case, kind, codec, seconds, spent, peak.memory_bytes)


def _counted(system: System) -> tuple[float, float, float]:
    """Bytes sent, bytes received and processor seconds of all members so far."""
    peers = system.peers
    # On loopback all share one interface.
    interfaces = {id(peer.member): peer for peer in peers}.values()
    counted = [peer.member.counted_bytes(peer.pid) for peer in interfaces]
    sent, received = (sum(values) for values in zip(*counted, strict=True))
    return sent, received, sum(cpu_s(peer.pid) for peer in peers)


def _row(
    case: Case, kind: str, codec: str, seconds: list[float], spent: list[float], peak_bytes: int
) -> dict[str, Any]:
    link, median_s = LINKS[case.link], statistics.median(seconds)
    sent, received, processor_s = spent
    encoded_bytes = BYTES_PER_ELEMENT[codec] * case.elements
    bound_s = link.bound_s(2 * (case.peers - 1) / case.peers * encoded_bytes)
    return {
        "system": kind,
        "codec": codec,
        "median_s": median_s,
        "vector_MB_s": 4e-6 * case.elements / median_s,
        "sent_MB": sent / 1e6,
        "bytes_per_element": (sent + received) / case.elements,
        "CPU_s": processor_s,
        "peak_MB": peak_bytes / 1e6,
        "bound_s": bound_s if bound_s else "",
        "x_bound": median_s / bound_s if bound_s else "",
    }
