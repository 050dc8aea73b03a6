"""What passes on a peer's network interface, and an all-reduce in which one peer is limited."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import run_rig
import worker_rig
from allreduce_rig import ENVIRONMENT, Rig, member_vector
from chaos_net import Host, Internet

from protocol.envelope import open_envelope
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire

UP, DOWN = "up", "down"
_LOOK_S = 0.05
_PORT = 31337
_SEQUENCES = 200_000  # of 32 bytes, in two shards


def counters(pid: int) -> dict[str, int]:
    """Bytes that went through ``eth0`` of a process's network, Ethernet headers and all."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "eth0":
            numbers = [int(value) for value in values.split()]
            return {DOWN: numbers[0], UP: numbers[8]}
    raise AssertionError(f"process {pid} has no eth0")


@dataclass
class Wire:
    """Readings of one interface, with their times."""

    at_s: list[float] = field(default_factory=list)
    total: dict[str, list[int]] = field(default_factory=lambda: {UP: [], DOWN: []})

    def read(self, pid: int) -> None:
        now = counters(pid)
        self.at_s.append(time.monotonic())
        for way, value in now.items():
            self.total[way].append(value)

    def passed(self, way: str) -> int:
        values = self.total[way]
        return values[-1] - values[0] if values else 0

    def between(self, from_s: float, to_s: float) -> Wire:
        """The readings of a time."""
        chosen = [i for i, at_s in enumerate(self.at_s) if from_s <= at_s <= to_s]
        total = {way: [values[i] for i in chosen] for way, values in self.total.items()}
        return Wire([self.at_s[i] for i in chosen], total)

    def moving_s(self, way: str) -> float:
        """From when a hundredth had passed until all but a hundredth had."""
        values = self.total[way]
        margin = (values[-1] - values[0]) / 100
        moving = [
            at_s
            for at_s, value in zip(self.at_s, values, strict=True)
            if values[0] + margin <= value <= values[-1] - margin
        ]
        return moving[-1] - moving[0]

    def excess_bytes(self, way: str, rate_bytes_s: float) -> float:
        """By how much the most excessive of all windows, short or long, was over the rate."""
        least, worst = float("inf"), 0.0
        for at_s, value in zip(self.at_s, self.total[way], strict=True):
            over = value - rate_bytes_s * at_s
            least = min(least, over)
            worst = max(worst, over - least)
        return worst

    def most_in(self, way: str, seconds: float) -> int:
        """The most that passed in any window of that length."""
        values, first, most = self.total[way], 0, 0
        for last, at_s in enumerate(self.at_s):
            while at_s - self.at_s[first] > seconds:
                first += 1
            most = max(most, values[last] - values[first])
        return most


@asynccontextmanager
async def watching(pid: int) -> AsyncIterator[Wire]:
    """Read the counters as long as the block runs."""
    wire_ = Wire()

    async def look() -> None:
        while True:
            wire_.read(pid)
            await asyncio.sleep(_LOOK_S)

    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(look())
        yield wire_
        wire_.read(pid)
        looking.cancel()


@dataclass
class Member:
    """A peer, where it is, and its number."""

    peer: Any
    host: Host
    seed: int


class CappedReduce:
    """All-reduces between hosts; the first one's owner has limits."""

    def __init__(self, folder: Path, internet: Internet, layout: ChunkLayout) -> None:
        self.rig = Rig(folder)
        self._internet, self._layout = internet, layout
        self.members: list[Member] = []

    async def join(self, name: str, limits: Mapping[str, int]) -> Member:
        host = self._internet.host(name)
        peer = await self.rig.spawn(
            anchors=self.members[0].peer.addresses if self.members else (),
            inside=host.command(),
            listen=[f"/ip4/{host.address}/tcp/{_PORT}"],
            limits=limits,
        )
        member = Member(peer, host, len(self.members))
        self.members.append(member)
        return member

    @property
    def capped(self) -> Any:
        return self.members[0].peer

    def watching(self) -> AbstractAsyncContextManager[Wire]:
        return watching(self.capped.process.pid)

    async def limit(self, **limits: int) -> None:
        """The owner changes the limits."""
        await self.capped.tell(do="limits", **limits)
        await self.capped.hear("limited")

    async def counted(self) -> dict[str, int]:
        """What the capped peer counted today."""
        await self.capped.tell(do="count")
        told = await self.capped.hear("counted")
        return {UP: told["up_bytes"], DOWN: told["down_bytes"]}

    async def reduce(self) -> None:
        """One whole reduce, everybody a member and a reducer; all get the same mean."""
        layout, peers = self._layout, [member.peer for member in self.members]
        round_ = self.rig.next_round()
        updates = [
            encode_update(
                member_vector(layout.elements, seed),
                layout,
                "int8",
                run_id=self.rig.run_id,
                round_=round_,
                worker=peer.peer_id,
            )
            for seed, peer in enumerate(peers)
        ]
        bounds = [layout.count * i // len(peers) for i in range(len(peers) + 1)]
        roster = self.rig.roster(
            [(peer, 1, update.root) for peer, update in zip(peers, updates, strict=True)],
            [(peer, *share) for peer, share in zip(peers, pairwise(bounds), strict=True)],
            round_=round_,
            layout=layout,
            codec="int8",
            combine="mean",
            gather_s=600,
            broadcast_s=1200,
        )
        group = open_envelope(roster, wire.Roster).digest[:20].hex()
        signed = roster.SerializeToString().hex()
        for seed, peer in enumerate(peers):
            await peer.tell(do="group", roster=signed, seed=seed, fault={})
        for peer in peers:
            assert (await peer.hear("gathered", group))["failures"] == []
        inclusion = self.rig.inclusion(roster, peers).SerializeToString().hex()
        for peer in peers:
            await peer.tell(do="finish", group=group, inclusion=inclusion)
        means = {(await peer.hear("finished", group))["mean_sha256"] for peer in peers}
        assert len(means) == 1
        for peer in peers:
            await peer.tell(do="close", group=group)


@asynccontextmanager
async def capped_reduce(
    folder: Path,
    internet: Internet,
    layout: ChunkLayout,
    limits: Mapping[str, int],
    others: int = 2,
) -> AsyncIterator[CappedReduce]:
    made = CappedReduce(folder, internet, layout)
    try:
        await made.join("capped", limits)
        for number in range(others):
            await made.join(f"other{number}", {})
        yield made
    finally:
        await made.rig.stop()


class CappedClient:
    """A coordinator with a large shard, and a client of ours whose owner has limits."""

    def __init__(self, folder: Path, internet: Internet) -> None:
        self._folder, self._internet = folder, internet
        self._server = internet.host("organiser")
        text = run_rig.RUN_TOML.replace("127.0.0.1", self._server.address)
        text = text.replace(':0"', ':7443"').replace("[server]\n", "[server]\nauditor = false\n")
        data = run_rig.make_dataset(folder / "data", train=_SEQUENCES)
        self.sha256 = data.shards[0].sha256
        self.link = str(run_rig.make_run(folder / "data", folder / "run", text).link)

    @contextmanager
    def serving(self) -> Iterator[None]:
        arguments = ("coordinator", "serve", "--run-dir", str(self._folder / "run"))
        inside = self._server.command()
        process = worker_rig.Process(self._folder / "coordinator.log", *arguments, inside=inside)
        try:
            process.wait_for("Serving")
            yield
        finally:
            process.end()

    async def work(self, name: str, way: str, for_s: float, **limits: int) -> tuple[Wire, Any]:
        """One client's traffic of some seconds; what passed, and what it says of it."""
        host, home = self._internet.host(name), self._folder / name
        home.mkdir()
        options = {
            **{"link": self.link, "folder": str(home), "way": way},
            **{"sha256": self.sha256, "for_s": for_s, **limits},
        }
        script = str(Path(__file__).with_name("chaos_cap_client.py"))
        process = await asyncio.create_subprocess_exec(
            *host.command(sys.executable, script, json.dumps(options)),
            stdout=asyncio.subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        async with watching(process.pid) as seen:
            told = json.loads(await process.stdout.readline())
        assert await process.wait() == 0
        return seen, told
