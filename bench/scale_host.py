"""Several members in one process: ``python -m bench.scale_host``, driven by JSON lines.

Each member is a real :class:`worker.swarm.Swarm` with a key, a ``p2pd`` and a DHT node of its own,
and takes part by :class:`worker.allreduce.GroupReduce`; only the Python process and its event loop
are shared, because a process with the libraries loaded takes 300 MB. Commands come on stdin:
``start``, ``encode``, ``reduce``, ``finish``, ``close``, ``peers``; events go to stdout.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.played_coordinator import trust_in
from protocol.envelope import open_envelope
from protocol.identity import Identity
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire
from worker.allreduce import GroupReduce
from worker.p2pd import P2pd
from worker.swarm import Swarm


class StreamCount:
    """Counts the streams that one member opens."""

    def __init__(self, p2p: P2pd) -> None:
        self.opened = self._open = self.most_at_once = 0
        self._stream = p2p.stream
        p2p.stream = self.stream  # type: ignore[method-assign, assignment]

    @asynccontextmanager
    async def stream(self, *arguments: Any) -> AsyncIterator[Any]:
        self.opened += 1
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            async with self._stream(*arguments) as stream:
                yield stream
        finally:
            self._open -= 1


class Member:
    """One peer of the run."""

    def __init__(self, swarm: Swarm, seed: int, elements: int) -> None:
        self.swarm, self.name = swarm, swarm.peer_id
        self.streams = StreamCount(swarm.membership.p2p)
        self._vector = np.random.default_rng(seed).standard_normal(elements).astype(np.float32)
        self._group: GroupReduce | None = None

    def encode(self, run_id: bytes, round_: int, layout: ChunkLayout, codec: Any) -> bytes:
        """Encode our update; its commitment root. Blocking."""
        self._update = encode_update(
            self._vector, layout, codec, run_id=run_id, round_=round_, worker=self.name
        )
        return self._update.root

    async def reduce(self, roster: wire.Envelope) -> None:
        """Open the group, send our chunks, and tell our reports as a reducer."""
        group = self.swarm.open_group(open_envelope(roster, wire.Roster), self._update)
        self._group = group
        async with asyncio.TaskGroup() as tasks:
            gathering = tasks.create_task(group.gather())
            async for report in group.reports():
                data = base64.b64encode(report.SerializeToString()).decode()
                say(event="report", envelope=data)
        say(event="gathered", member=self.name, failures=len(gathering.result()))

    async def finish(self, inclusion: wire.Envelope) -> None:
        assert self._group is not None
        result = await self._group.finish(open_envelope(inclusion, wire.InclusionSet))
        digest = hashlib.sha256(result.mean_update.tobytes()).hexdigest()
        say(event="finished", member=self.name, mean_sha256=digest)

    def close(self) -> None:
        assert self._group is not None
        self._group.close()


class Host:
    """The members of this process."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._members: list[Member] = []

    async def run(self) -> None:
        """Obey until stdin ends."""
        reader = asyncio.StreamReader(limit=1 << 24)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := await reader.readline():
                command = json.loads(line)
                await getattr(self, "do_" + command.pop("do"))(**command)
        finally:
            for member in self._members:
                await member.swarm.shutdown()

    async def do_start(self, keys: list[str], first: int, peers: list[str], **run: Any) -> None:
        """Start members one after the other; the first of all is the others' way in."""
        self._run_id, self._codec = bytes.fromhex(run["run_id"]), run["codec"]
        self._layout = ChunkLayout(run["elements"], run["chunk_elements"])
        known = peers
        for number, key in enumerate(keys, start=first):
            path = Path(key)
            swarm = await Swarm.create(
                identity_path=path,
                identity=Identity.load(path),
                run_id=self._run_id,
                trust=trust_in(run),
                initial_peers=known,
                client_mode=False,
            )
            self._members.append(Member(swarm, number, self._layout.elements))
            addresses = await swarm.multiaddrs()
            known = known or addresses
            say(event="started", member=swarm.peer_id, addresses=addresses)

    async def do_encode(self, round_: int) -> None:
        for member in self._members:
            work = (self._run_id, round_, self._layout, self._codec)
            root = await asyncio.to_thread(member.encode, *work)
            say(event="encoded", member=member.name, root=root.hex())

    async def do_reduce(self, roster: str) -> None:
        envelope = wire.Envelope.FromString(base64.b64decode(roster))
        for member in self._members:
            self._tasks.create_task(member.reduce(envelope))

    async def do_finish(self, inclusion: str) -> None:
        envelope = wire.Envelope.FromString(base64.b64decode(inclusion))
        for member in self._members:
            self._tasks.create_task(member.finish(envelope))

    async def do_close(self) -> None:
        for member in self._members:
            member.close()
        say(event="closed")

    async def do_peers(self) -> None:
        """How many connections each member holds, and what it opened since the start."""
        for member in self._members:
            connected = await member.swarm.membership.p2p.connected()
            streams = member.streams
            say(
                event="peers",
                member=member.name,
                connections=len(connected),
                opened=streams.opened,
                most_at_once=streams.most_at_once,
            )


def say(**event: object) -> None:
    sys.stdout.write("EVENT " + json.dumps(event) + "\n")
    sys.stdout.flush()


async def main() -> None:
    async with asyncio.TaskGroup() as tasks:
        await Host(tasks).run()


if __name__ == "__main__":
    asyncio.run(main())
