"""Real peers of one run in one event loop, whose daemons can be killed at an exact chunk."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from protocol.envelope import open_envelope
from protocol.identity import Identity
from protocol.trust import TrustStore
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from worker.allreduce import GroupReduce, ReduceResult
from worker.swarm import LOOPBACK, Swarm

SWARM_TESTS = Path(__file__).parent.with_name("swarm")


def load(name: str) -> ModuleType:
    """A helper of the swarm's tests, which are not on the path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SWARM_TESTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@dataclass
class LocalPeer:
    """A peer, and the task that keeps its daemon alive."""

    identity: Identity
    swarm: Swarm
    tasks: asyncio.TaskGroup
    addresses: list[str] = field(default_factory=list)
    keeping: asyncio.Task[None] | None = None
    problems: list[str] = field(default_factory=list)
    at_change: Callable[[], None] = lambda: None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id

    @property
    def daemon_pid(self) -> int:
        child = self.swarm.membership.p2p.daemon._child
        assert child is not None
        return int(child.pid)

    def keep(self) -> None:
        self.keeping = self.tasks.create_task(self.swarm.run())

    def kill_daemon(self) -> None:
        os.kill(self.daemon_pid, signal.SIGKILL)

    def watch(self) -> None:
        membership = self.swarm.membership

        def hear() -> None:
            self.problems.append(membership.problem)
            self.at_change()
            self._news.set()

        membership.on_change = hear

    async def changes(self, count: int) -> None:
        """Wait until the peer has said so many things of its daemon, since the start."""
        while len(self.problems) < count:
            self._news.clear()
            await self._news.wait()

    async def dies_and_comes_back(self) -> None:
        before = len(self.problems)
        self.kill_daemon()
        await self.changes(before + 2)
        assert self.problems[before:] == [self.problems[before], ""]

    async def close(self) -> None:
        if self.keeping is not None:
            self.keeping.cancel()
            await asyncio.wait([self.keeping])
        await self.swarm.shutdown()


class Peers:
    """The organiser's keys, and peers as they are asked for."""

    def __init__(self, folder: Path, tasks: asyncio.TaskGroup) -> None:
        self.rig: Any = load("allreduce_rig").Rig(folder)
        self.folder, self._tasks = folder, tasks
        self.all: list[LocalPeer] = []

    async def join(
        self, anchor: LocalPeer | None = None, *, listen: str = LOOPBACK[0]
    ) -> LocalPeer:
        identity = Identity.generate()
        path = self.folder / identity.peer_id
        identity.save(path)
        trust = TrustStore(self.rig.run_id, self.rig.root.peer_id)
        trust.add([self.rig.delegation])
        swarm = await Swarm.create(
            identity_path=path,
            identity=identity,
            run_id=self.rig.run_id,
            trust=trust,
            initial_peers=[] if anchor is None else anchor.addresses,
            client_mode=False,
            listen=[listen],
        )
        peer = LocalPeer(identity, swarm, self._tasks, await swarm.multiaddrs())
        peer.watch()
        peer.keep()
        self.all.append(peer)
        return peer

    async def close(self) -> None:
        for peer in reversed(self.all):
            await peer.close()


@dataclass
class Reduce:
    """One all-reduce among peers, each of which reduces a part."""

    peers: list[LocalPeer]
    groups: list[GroupReduce]
    roster: wire.Envelope

    @classmethod
    def begin(cls, made: Peers, peers: list[LocalPeer], layout: ChunkLayout) -> Reduce:
        round_ = made.rig.next_round()
        updates = [cls._update(made, peer, layout, round_, seed) for seed, peer in enumerate(peers)]
        bounds = [layout.count * i // len(peers) for i in range(len(peers) + 1)]
        roster = made.rig.roster(
            [(p, 1, u.root) for p, u in zip(peers, updates, strict=True)],
            [(p, *bounds[i : i + 2]) for i, p in enumerate(peers)],
            round_=round_,
            layout=layout,
            codec="int8",
            combine="mean",
            gather_s=100,
            broadcast_s=200,
        )
        signed = open_envelope(roster, wire.Roster)
        groups = [
            p.swarm.open_group(signed, update) for p, update in zip(peers, updates, strict=True)
        ]
        return cls(peers, groups, roster)

    @staticmethod
    def _update(
        made: Peers, peer: LocalPeer, layout: ChunkLayout, round_: int, seed: int
    ) -> EncodedUpdate:
        vector = load("allreduce_rig").member_vector(layout.elements, seed)
        return encode_update(
            vector, layout, "int8", run_id=made.rig.run_id, round_=round_, worker=peer.peer_id
        )

    async def gather(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(group.gather()) for group in self.groups]
        assert [task.result() for task in sending] == [[] for _ in self.groups]

    async def finish(self, made: Peers) -> list[ReduceResult]:
        inclusion = open_envelope(made.rig.inclusion(self.roster, self.peers), wire.InclusionSet)
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(group.finish(inclusion)) for group in self.groups]
        return [end.result() for end in ends]

    def close(self) -> None:
        for group in self.groups:
            group.close()


def daemons() -> set[int]:
    """Daemons that this process has started and that live, zombies among them."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.name() == "p2pd"}
