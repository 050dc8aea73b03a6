"""How much of their time members on home lines train: ours, and two ways with hivemind.

Real processes on shaped links (:mod:`bench.links`, needs root): ours with the product's reduce,
screening and signatures included, and a coordinator on a line of 1 Gbit/s; hivemind's averager in
fp16 with its matchmaking, which begins ``matchmaking_time`` ahead as its Optimizer has it. What is
timed is all that happens between the end of a round's training and the begin of the next: encoding,
commit, gather, inclusion, broadcast, decoding, outer step, the state's digest, the coordinator's
word. Of hivemind it is the averaging alone: what an outer step takes is left out in its favour.

Training is a sleep. An RTX 3090 (71 TFLOP/s in bf16 by NVIDIA's whitepaper, at an assumed 40 % of
it) takes ``6 * parameters * tokens`` FLOP; every-step averaging shares a batch of 524,288 tokens.

All members share this machine, so time is scaled, not bytes over bandwidth: a run of scale ``k``
reduces a k-th of the elements over lines of a k-th of the rate. That takes as long on the wire, and
each of eight members with an eighth of the machine has an eighth of the arithmetic to do. Round
trips are not scaled. Where 1 B elements are scaled by 64, their processors look 8 times as fast.

Rounds are shorter than five minutes here; the utilisation in such a round is reckoned from what
communication took, and stands beside the one that the short rounds really had.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.allreduce import BYTES_PER_ELEMENT
from bench.cases import run_cases
from bench.links import Link, Member, open_members
from bench.peer_process import PeerProcess
from bench.report import Row
from protocol.identity import Identity

NOTE = (
    "communication: median over rounds of what members spend between two trainings; utilisation in"
    " rounds of 300 s of training (every step: of a step) reckoned from it; bound: bytes over the"
    " nominal rate; measured: in rounds of so much training; bytes of the interface, both"
    " directions, per element and round; CPU of a member, at full size"
)
M = 1_000_000
ROUND_S = 300.0
_FLOP_S = 0.4 * 71e12
_BATCH_TOKENS = 1 << 19
_MATCHMAKING_S = 15.0  # hivemind.Optimizer's default
_COORDINATOR_MBIT = 1000.0
_MOST_CHUNK_ELEMENTS, _LEAST_CHUNKS = 1 << 17, 64


@dataclass(frozen=True)
class Case:
    """One run."""

    system: str  # ours | every step | DiLoCo fp16
    members: int
    elements: int
    codec: str = "int4-aes"
    rate_mbit: float = 100.0
    rtt_ms: float = 40.0
    scale: int = 8
    compute_s: float = 10.0
    rounds: int = 4
    slow: bool = False  # the first member's line sends at a tenth of the rate
    by_speed: bool = True

    @property
    def name(self) -> str:
        size = f"{self.elements // M}M"
        lines = f"{self.rate_mbit:g}Mbit-{self.rtt_ms:g}ms"
        if self.slow:
            shares = "by-speed" if self.by_speed else "evenly"
            lines += f"-one-{self.rate_mbit / 10:g}Mbit-up-{shares}"
        way = self.system.replace(" ", "-")
        return f"{way}-{self.codec}-{self.members}-{size}-{lines}-x{self.scale}"

    @property
    def step_s(self) -> float:
        """What an RTX 3090 takes for its share of a batch."""
        return 6 * self.elements * _BATCH_TOKENS / self.members / _FLOP_S

    @property
    def training_s(self) -> float:
        """Between two reduces."""
        return self.step_s if self.system == "every step" else ROUND_S

    @property
    def slept_s(self) -> float:
        return self.step_s if self.system == "every step" else self.compute_s

    @property
    def link(self) -> Link:
        return Link(self.rate_mbit / self.scale, self.rtt_ms)

    @property
    def scaled_elements(self) -> int:
        return self.elements // self.scale

    @property
    def chunk_elements(self) -> int:
        """The product's default, less where that would make too few to share."""
        size = _MOST_CHUNK_ELEMENTS
        while self.scaled_elements < _LEAST_CHUNKS * size:
            size //= 2
        return size

    @property
    def bound_s(self) -> float:
        """Of bytes over bandwidth; a slow sender's alone, were it to reduce nothing."""
        encoded = BYTES_PER_ELEMENT[self.codec] * self.scaled_elements
        each = 2 * (self.members - 1) / self.members * encoded
        bound_s = self.link.bound_s(max(each, 10 * encoded) if self.slow else each)
        assert bound_s is not None
        return bound_s


_HIVEMIND: Final = {"codec": "fp16", "rounds": 3}
CASES: Final = [
    Case("ours", 8, 124 * M),
    Case("DiLoCo fp16", 8, 124 * M, **_HIVEMIND),
    Case("every step", 8, 124 * M, **_HIVEMIND),
    Case("ours", 8, 124 * M, scale=32),
    Case("DiLoCo fp16", 8, 124 * M, scale=32, **_HIVEMIND),
    Case("every step", 8, 124 * M, scale=32, **_HIVEMIND),
    Case("ours", 8, 124 * M, "int8-aes"),
    Case("ours", 4, 124 * M, scale=4),
    Case("DiLoCo fp16", 4, 124 * M, scale=4, **_HIVEMIND),
    Case("ours", 16, 124 * M, scale=16),
    Case("ours", 8, 10 * M),
    Case("DiLoCo fp16", 8, 10 * M, **_HIVEMIND),
    Case("every step", 8, 10 * M, **_HIVEMIND),
    Case("ours", 8, 1000 * M, scale=64, rounds=2),
    Case("ours", 8, 30 * M, scale=32, slow=True, by_speed=False, rounds=3, compute_s=1.0),
    Case("ours", 8, 30 * M, scale=32, slow=True, rounds=4, compute_s=1.0),
]
QUICK: Final = [
    Case(system, 3, 4 * M, codec, scale=4, compute_s=2.0, rounds=2)
    for system, codec in (("ours", "int4-aes"), ("DiLoCo fp16", "fp16"))
]


def run(quick: bool) -> list[Row]:
    """Measure all; ``quick``: three members, 4 M elements."""
    name, cases = ("wan-quick", QUICK) if quick else ("wan", CASES)
    return run_cases(name, cases, _measure, note=NOTE)


def _measure(case: Case) -> list[Row]:
    assert case.link.rate_mbit is not None
    rates = {case.members: (_COORDINATOR_MBIT, _COORDINATOR_MBIT)}
    if case.slow:
        rates[0] = (case.link.rate_mbit / 10, case.link.rate_mbit)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_members(case.link, case.members + 1, rates) as places,
    ):
        run = _ours if case.system == "ours" else _hivemind
        told = run(case, places, Path(folder))
    return [_row(case, [rounds[1:] for rounds in told])]  # the first opens connections


def _rounds(member: PeerProcess, count: int) -> list[dict[str, Any]]:
    told = [member.hear("ROUND ") for _ in range(count)]
    member.wait()
    return told


def _ours(case: Case, places: Sequence[Member], folder: Path) -> list[list[dict[str, Any]]]:
    *homes, server = places
    options = {
        "codec": case.codec,
        "rounds": case.rounds,
        "by_speed": case.by_speed,
        "chunk_elements": case.chunk_elements,
    }
    given = {"members": case.members, "elements": case.scaled_elements, "options": options}
    coordinator = PeerProcess(
        server, "bench.wan_coordinator", json.dumps({"address": server.address, **given})
    )
    told = coordinator.hear("RUN ")
    members: list[PeerProcess] = []
    addresses: list[str] = []
    for rank, place in enumerate(homes):
        identity, key = Identity.generate(), folder / f"{rank}.key"
        identity.save(key)
        member = PeerProcess(place, "bench.wan_member", "ours")
        fields = {**_fields(case, rank, place, addresses), **options, **told}
        member.tell({**fields, "key": str(key), "coordinator": server.address})
        addresses = addresses or member.hear()["addresses"]
        members.append(member)
    rounds = [_rounds(member, case.rounds) for member in members]
    coordinator.wait()
    return rounds


def _hivemind(case: Case, places: Sequence[Member], folder: Path) -> list[list[dict[str, Any]]]:
    members: list[PeerProcess] = []
    addresses: list[str] = []
    for rank, place in enumerate(places[: case.members]):
        member = PeerProcess(place, "bench.wan_member", "hivemind")
        fields = _fields(case, rank, place, addresses)
        matchmaking = {"matchmaking_s": _MATCHMAKING_S, "rounds": case.rounds}
        member.tell({**fields, **matchmaking})
        addresses = addresses or member.hear()["addresses"]
        members.append(member)
    for member in members[1:]:
        member.hear()
    for member in members:
        member.tell("go")
    return [_rounds(member, case.rounds) for member in members]


def _fields(case: Case, rank: int, place: Member, addresses: list[str]) -> dict[str, Any]:
    return {
        "rank": rank,
        "size": case.members,
        "address": place.address,
        "peers": addresses,
        "elements": case.scaled_elements,
        "compute_s": case.slept_s,
    }


def _row(case: Case, told: list[list[dict[str, Any]]]) -> Row:
    """From what each member told of each round."""

    def middle(of: Any) -> float:
        return statistics.median(
            statistics.fmean(of(member[number]) for member in told)
            for number in range(len(told[0]))
        )

    communicated_s = middle(lambda r: r["communicated_s"])
    if case.slow and case.by_speed:  # shares are learned: the last round has the learned ones
        communicated_s = statistics.fmean(member[-1]["communicated_s"] for member in told)
    trained_s = middle(lambda r: r["trained_s"])
    phases = [
        f"{phase} {middle(lambda r, phase=phase: r['phases_s'][phase]):.2f}"
        for phase in told[0][0]["phases_s"]
    ]
    return {
        "comm_s": communicated_s,
        "bound_s": case.bound_s,
        "x_bound": communicated_s / case.bound_s,
        "train_s": case.training_s,
        "utilisation": case.training_s / (case.training_s + communicated_s),
        "at_bound": case.training_s / (case.training_s + case.bound_s),
        "measured": trained_s / (trained_s + communicated_s),
        "with_s": trained_s,
        "bytes_per_element": middle(lambda r: r["sent"] + r["received"]) / case.scaled_elements,
        "CPU_s": case.scale * middle(lambda r: r["cpu_s"]),
        "phases_s": ", ".join(phases),
    }
