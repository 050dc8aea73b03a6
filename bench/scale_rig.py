"""Real members on this machine, and the coordinator's side of their rounds.

The coordinator here verifies what the real one does (each report, and each sender's statement
once), keeps no database, and counts what passes between it and the members.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.peer_process import ONE_THREAD
from bench.played_coordinator import PlayedCoordinator
from bench.scale_processes import Host, Memory, Usage
from protocol.envelope import open_envelope, parse_envelope
from protocol.identity import Identity
from protocol.manifest import Codec
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

MOST_HOSTS = 8
"""Python processes; more members than this share them."""

CODEC: Codec = "int4"
DEADLINE_S = 180.0
_ENVIRONMENT = {**os.environ, **ONE_THREAD}


@dataclass(frozen=True)
class Case:
    """One size to measure."""

    members: int
    reducers: int
    elements: int
    chunk_elements: int
    first_ones: bool = False  # the first members reduce; else they are spread over all

    @property
    def hosts(self) -> list[range]:
        """Ranks of the members in each Python process."""
        size, count = self.members, min(self.members, MOST_HOSTS)
        return [range(*ends) for ends in pairwise([size * i // count for i in range(count + 1)])]

    @property
    def reducing(self) -> list[int]:
        """Ranks of the reducers."""
        among = self.reducers if self.first_ones else self.members
        return [among * i // self.reducers for i in range(self.reducers)]

    @property
    def layout(self) -> ChunkLayout:
        return ChunkLayout(self.elements, self.chunk_elements)


@dataclass
class Tally:
    """What passed the coordinator in one round."""

    reports: int = 0
    report_bytes: int = 0
    statements: int = 0  # verified, each once
    roster_bytes: int = 0
    inclusion_bytes: int = 0
    cpu_s: float = 0.0


@dataclass
class Round:
    """What one round took, by phase."""

    encode_s: float
    gather_s: float  # from the roster to the signed inclusion set
    broadcast_s: float  # from there until the last member has the mean
    encode: list[Usage]  # of each host
    gather: list[Usage]
    broadcast: list[Usage]
    tally: Tally


class _Spawned(Host):
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process.pid)
        self.process = process

    async def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()


class Rig:
    """The members of one case; use as ``async with Rig(case, folder)``."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self._folder = case, folder
        self._coordinator = PlayedCoordinator()
        self._hosts: list[_Spawned] = []
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading: list[asyncio.Task[None]] = []
        self._addresses: dict[str, list[str]] = {}

    async def __aenter__(self) -> Rig:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # ---- processes

    async def _start(self) -> None:
        common = self._start_fields()
        names: list[str] = []
        for ranks in self.case.hosts:
            identities = [Identity.generate() for _ in ranks]
            names += [identity.peer_id for identity in identities]
            keys = [self._save(identity) for identity in identities]
            host = await self._spawn()
            peers = next(iter(self._addresses.values()), [])
            await host.tell(do="start", keys=keys, first=ranks.start, peers=peers, **common)
            if not self._addresses:  # the first member is the others' way in
                await self._started(1)
        await self._started(len(names) - 1)
        self._addresses = {name: self._addresses[name] for name in names}
        if sum(host.find_daemons() for host in self._hosts) != self.case.members:
            raise RuntimeError("each member should have a daemon of its own")

    async def _started(self, count: int) -> None:
        for event in await self._hear("started", count):
            self._addresses[event["member"]] = event["addresses"]

    def _start_fields(self) -> dict[str, object]:
        return {
            **self._coordinator.told(),
            "elements": self.case.elements,
            "chunk_elements": self.case.chunk_elements,
            "codec": CODEC,
        }

    def _save(self, identity: Identity) -> str:
        path = self._folder / identity.peer_id
        identity.save(path)
        return str(path)

    async def _spawn(self) -> _Spawned:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.scale_host",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_ENVIRONMENT,
            limit=1 << 24,
        )
        host = _Spawned(process)
        self._hosts.append(host)
        self._reading.append(asyncio.create_task(self._read(host)))
        return host

    async def _read(self, host: _Spawned) -> None:
        assert host.process.stdout is not None
        while line := await host.process.stdout.readline():
            if line.startswith(b"EVENT "):
                await self._events.put(json.loads(line.removeprefix(b"EVENT ")))
        await self._events.put({"event": "ended"})

    async def stop(self) -> None:
        for host in self._hosts:
            assert host.process.stdin is not None
            host.process.stdin.close()
        for host in self._hosts:
            await host.process.wait()
        await asyncio.gather(*self._reading)

    async def _tell_all(self, **command: object) -> None:
        for host in self._hosts:
            await host.tell(**command)

    async def _next(self) -> dict[str, Any]:
        event = await self._events.get()
        if event["event"] == "ended":
            raise RuntimeError("a process of the benchmark ended: run python -m bench.scale_host")
        return event

    async def _hear(self, kind: str, count: int) -> list[dict[str, Any]]:
        heard: list[dict[str, Any]] = []
        while len(heard) < count:
            event = await self._next()
            if event["event"] == kind:
                heard.append(event)
        return heard

    def memory(self) -> list[Memory]:
        """Of each host, just now."""
        return [host.memory() for host in self._hosts]

    async def peers(self) -> list[dict[str, Any]]:
        """Connections and streams of each member."""
        await self._tell_all(do="peers")
        return await self._hear("peers", self.case.members)

    # ---- one round

    async def round(self, number: int) -> Round:
        """Encode, gather, broadcast; all members must come to the same mean."""
        tally = Tally()
        marks: list[tuple[float, list[Usage]]] = []

        def mark() -> None:
            marks.append((time.perf_counter(), [host.usage() for host in self._hosts]))

        mark()
        await self._tell_all(do="encode", round_=number)
        encoded = await self._hear("encoded", self.case.members)
        roots = {event["member"]: bytes.fromhex(event["root"]) for event in encoded}
        mark()
        roster = self._roster(number, roots, tally)
        await self._tell_all(do="reduce", roster=_text(roster))
        await self._gathered(roster, tally)
        mark()
        inclusion = self._inclusion(roster, tally)
        await self._tell_all(do="finish", inclusion=_text(inclusion))
        finished = await self._hear("finished", self.case.members)
        mark()
        if len({event["mean_sha256"] for event in finished}) != 1:
            raise RuntimeError("members came to different means")
        await self._tell_all(do="close")
        await self._hear("closed", len(self._hosts))
        encode_s, gather_s, broadcast_s = (b[0] - a[0] for a, b in pairwise(marks))
        encode, gather, broadcast = (
            [after - before for before, after in zip(a[1], b[1], strict=True)]
            for a, b in pairwise(marks)
        )
        return Round(encode_s, gather_s, broadcast_s, encode, gather, broadcast, tally)

    async def _gathered(self, roster: wire.Envelope, tally: Tally) -> None:
        """Take reports until every reducer has told that all members are complete there."""
        complete: Counter[str] = Counter()
        known: set[tuple[str, str]] = set()
        while min((complete[name] for name in self._reducers()), default=0) < self.case.members:
            event = await self._next()
            if event["event"] == "report":
                data = base64.b64decode(event["envelope"])
                started_s = time.process_time()
                self._take_report(data, known, complete, tally)
                tally.cpu_s += time.process_time() - started_s

    def _take_report(
        self, data: bytes, known: set[tuple[str, str]], complete: Counter[str], tally: Tally
    ) -> None:
        report = open_envelope(parse_envelope(data), wire.ReducerReport).record
        tally.reports += 1
        tally.report_bytes += len(data)
        for outcome in report.outcomes:
            if outcome.complete and (report.reducer, outcome.worker) not in known:
                open_envelope(outcome.statement, wire.GatherStatement, signer=outcome.worker)
                known.add((report.reducer, outcome.worker))
                complete[report.reducer] += 1
                tally.statements += 1

    def _reducers(self) -> Sequence[str]:
        names = list(self._addresses)
        return [names[rank] for rank in self.case.reducing]

    def _roster(self, number: int, roots: dict[str, bytes], tally: Tally) -> wire.Envelope:
        layout, count = self.case.layout, self.case.reducers
        shares = pairwise([layout.count * i // count for i in range(count + 1)])
        started_s = time.process_time()
        reducers = [
            wire.ReducerRange(
                reducer=name,
                first_chunk=first,
                end_chunk=end,
                multiaddrs=self._addresses[name],
            )
            for name, (first, end) in zip(self._reducers(), shares, strict=True)
        ]
        envelope = self._coordinator.roster(
            number,
            {name: roots[name] for name in self._addresses},
            reducers,
            layout,
            CODEC,
            patience_s=DEADLINE_S,
            assignment_id=bytes(16),
        )
        tally.cpu_s += time.process_time() - started_s
        tally.roster_bytes = envelope.ByteSize()
        return envelope

    def _inclusion(self, roster: wire.Envelope, tally: Tally) -> wire.Envelope:
        envelope = self._coordinator.inclusion(roster)
        tally.inclusion_bytes = envelope.ByteSize()
        return envelope


def _text(envelope: wire.Envelope) -> str:
    return base64.b64encode(envelope.SerializeToString()).decode()
