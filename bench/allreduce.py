"""Time of one all-reduce between real processes: ours, hivemind's averager, gloo.

Each peer is a process on loopback with one thread. Ours is timed from encoding to the decoded
mean, the coordinator's exchange (roster, inclusion set) included; hivemind's from the trigger,
its matchmaking left out; gloo's from a barrier. Systems take turns, so that a busy machine slows
all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.report import Row, write_report
from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
from protocol.trust import delegate
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

NOTE = (
    "median over turns; MB/s of float32 vector; x = time relative to gloo (float32) and to"
    " hivemind's averager without compression, in the same run; ours checks every byte"
)
DAY_S = 86_400
GROUPS = [  # those of one group take turns; all at once would need 30 GB of memory
    [("gloo", "fp32"), ("hivemind", "none"), ("ours", "fp32")],
    [("hivemind", "fp16"), ("ours", "int8")],
    [("hivemind", "8bit"), ("ours", "int4")],
]


def run(quick: bool) -> list[Row]:
    """Measure 2 and 4 peers; ``quick`` takes 1 M elements and fewer turns."""
    elements, turns = (1_000_000, 3) if quick else (4_000_000, 7)
    sizes = (2,) if quick else (2, 4)
    rows = [row for size in sizes for row in _measure(size, elements, turns)]
    write_report("allreduce-quick" if quick else "allreduce", rows, note=NOTE)
    return rows


def _measure(size: int, elements: int, turns: int) -> list[Row]:
    seconds: dict[tuple[str, str], list[float]] = {}
    for group in GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            start = {"gloo": Gloo, "hivemind": Hivemind, "ours": Ours}
            systems = {
                name: start[name[0]](size, elements, name[1], Path(folder)) for name in group
            }
            seconds |= {name: [] for name in group}
            for number in range(turns + 1):
                for name, system in systems.items():
                    taken_s = system.turn(number)
                    if number:  # the first turn opens connections
                        seconds[name].append(taken_s)
            for system in systems.values():
                system.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "peers": size,
            "elements": elements,
            "system": name[0],
            "codec": name[1],
            "median_s": median_s,
            "vector_MB_per_s": 4e-6 * elements / median_s,
            "x_gloo": median_s / medians["gloo", "fp32"],
            "x_hivemind_none": median_s / medians["hivemind", "none"],
        }
        for name, median_s in medians.items()
    ]


class Process:
    """One spawned peer; ask and then await its answer, so that peers work at the same time."""

    def __init__(self, kind: str, **start: object) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.allreduce_peer", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self.send(start)

    def send(self, message: dict[str, object]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message) + "\n")
        self._child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
                return answer
        raise RuntimeError("a peer of the benchmark ended: run python -m bench.allreduce_peer")

    def wait(self) -> None:
        self._child.communicate(timeout=60)


def _ask(peers: list[Process], do: str, **arguments: object) -> list[dict[str, Any]]:
    for peer in peers:
        peer.send({"do": do, **arguments})
    return [peer.answer() for peer in peers]


def _stop(peers: list[Process]) -> None:
    _ask(peers, "stop")
    for peer in peers:
        peer.wait()


class Gloo:
    def __init__(self, size: int, elements: int, codec: str, folder: Path) -> None:
        store = str(folder / "gloo")
        self._peers = [
            Process("gloo", rank=rank, elements=elements, codec=codec, store=store, size=size)
            for rank in range(size)
        ]
        for peer in self._peers:
            peer.answer()

    def turn(self, number: int) -> float:
        return _triggered(self._peers)

    def stop(self) -> None:
        _stop(self._peers)


class Hivemind:
    def __init__(self, size: int, elements: int, codec: str, folder: Path) -> None:
        self._peers: list[Process] = []
        addresses: list[str] = []
        for rank in range(size):
            fields = {"rank": rank, "elements": elements, "codec": codec, "size": size}
            peer = Process("hivemind", peers=addresses, **fields)
            addresses = addresses or peer.answer()["addresses"]
            self._peers.append(peer)
        for peer in self._peers[1:]:
            peer.answer()

    def turn(self, number: int) -> float:
        return _triggered(self._peers)

    def stop(self) -> None:
        _stop(self._peers)


def _triggered(peers: list[Process]) -> float:
    _ask(peers, "prepare")
    started_s = time.perf_counter()
    _ask(peers, "go")
    return time.perf_counter() - started_s


class Ours:
    """Spawns our peers and plays the coordinator."""

    def __init__(self, size: int, elements: int, codec: str, folder: Path) -> None:
        self._layout, self._codec = ChunkLayout(elements, 1 << 17), codec
        self._run_id, self._round_key = os.urandom(32), Identity.generate()
        self._identities = [Identity.generate() for _ in range(size)]
        start = self._start_fields(Identity.generate())
        self._peers: list[Process] = []
        self._addresses: list[list[str]] = []
        for rank, identity in enumerate(self._identities):
            key = folder / identity.peer_id
            identity.save(key)
            fields = {"rank": rank, "elements": elements, "codec": codec, "key": str(key)}
            peers = self._addresses[0] if rank else []
            self._peers.append(Process("ours", peers=peers, **fields, **start))
            self._addresses.append(self._peers[-1].answer()["addresses"])

    def _start_fields(self, root: Identity) -> dict[str, object]:
        delegation = delegate(
            root,
            run_id=self._run_id,
            purpose=wire.KEY_PURPOSE_ROUND,
            public_key=self._round_key.public.raw,
            serial=1,
            not_before_s=0,
            not_after_s=int(time.time()) + DAY_S,
        )
        return {
            "run_id": self._run_id.hex(),
            "root": root.peer_id,
            "delegation": delegation.SerializeToString().hex(),
        }

    def turn(self, number: int) -> float:
        started_s = time.perf_counter()
        answers = _ask(self._peers, "encode", round_=number)
        roster = self._roster(number, [bytes.fromhex(answer["root"]) for answer in answers])
        gathered = _ask(self._peers, "gather", roster=roster.SerializeToString().hex())
        assert all(answer["complete"] for answer in gathered)
        _ask(self._peers, "finish", inclusion=self._inclusion(roster).SerializeToString().hex())
        taken_s = time.perf_counter() - started_s
        _ask(self._peers, "close")
        return taken_s

    def _roster(self, round_: int, roots: list[bytes]) -> wire.Envelope:
        size, chunks = len(self._peers), self._layout.count
        shares = pairwise([chunks * rank // size for rank in range(size + 1)])
        names = [identity.peer_id for identity in self._identities]
        now_ms = int(time.time() * 1000)
        roster = wire.Roster(
            run_id=self._run_id,
            round=round_,
            attempt=1,
            members=[
                wire.RosterMember(worker=name, weight=1, commitment_root=root)
                for name, root in zip(names, roots, strict=True)
            ],
            reducers=[
                wire.ReducerRange(reducer=name, first_chunk=first, end_chunk=end, multiaddrs=known)
                for name, known, (first, end) in zip(names, self._addresses, shares, strict=True)
            ],
            codec=self._codec,
            combine="mean",
            vector_elements=self._layout.elements,
            chunk_elements=self._layout.chunk_elements,
            chunk_count=chunks,
            gather_deadline_ms=now_ms + 60_000,
            broadcast_deadline_ms=now_ms + 120_000,
        )
        return seal(roster, self._round_key)

    def _inclusion(self, roster: wire.Envelope) -> wire.Envelope:
        signed = open_envelope(roster, wire.Roster)
        inclusion = wire.InclusionSet(
            run_id=self._run_id,
            round=signed.record.round,
            attempt=1,
            group_id=signed.digest[:20],
            members=[identity.peer_id for identity in self._identities],
        )
        return seal(inclusion, self._round_key)

    def stop(self) -> None:
        _stop(self._peers)
