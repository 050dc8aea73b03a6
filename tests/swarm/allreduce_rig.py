"""Spawns real peers (``allreduce_peer.py``) and plays the coordinator: rosters, inclusion sets."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
from protocol.trust import delegate
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire
from worker.streams import socket_directory

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
NO_LIMITS: Mapping[str, int] = {}
PEER = Path(__file__).with_name("allreduce_peer.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def member_vector(elements: int, seed: int) -> np.ndarray:
    """The update of a member, from a seed that both sides know."""
    return np.random.default_rng(seed).standard_normal(elements).astype(np.float32)


@dataclass
class Peer:
    """One spawned process; its events are read in the order they come."""

    identity: Identity
    process: asyncio.subprocess.Process
    addresses: list[str] = field(default_factory=list)
    _kept: list[dict[str, Any]] = field(default_factory=list)

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id

    async def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()

    def heard(self, event: str, group: str) -> list[dict[str, Any]]:
        """What came while :meth:`hear` waited for something else; forgotten here."""
        found = [e for e in self._kept if e["event"] == event and e.get("group") == group]
        self._kept = [e for e in self._kept if e not in found]
        return found

    async def hear(self, event: str, group: str | None = None) -> dict[str, Any]:
        """The next event of that kind (and group); others are kept for later."""
        for i, known in enumerate(self._kept):
            if known["event"] == event and group in (None, known.get("group")):
                return self._kept.pop(i)
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if not line.startswith(b"{"):
                continue
            heard: dict[str, Any] = json.loads(line)
            if heard["event"] == event and group in (None, heard.get("group")):
                return heard
            self._kept.append(heard)
        raise AssertionError(f"{self.peer_id} ended before {event!r}")

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = await self.process.wait()
        assert self.process.stdout is not None
        await self.process.stdout.read()
        return code


class Rig:
    """The organiser's keys and the peers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.round_key = Identity.generate(), Identity.generate()
        self.run_id = os.urandom(32)
        self.delegation = delegate(
            self.root,
            run_id=self.run_id,
            purpose=wire.KEY_PURPOSE_ROUND,
            public_key=self.round_key.public.raw,
            serial=1,
            not_before_s=0,
            not_after_s=int(time.time()) + 86400,
        )
        self.peers: list[Peer] = []
        self._round = 0

    async def spawn(
        self,
        *,
        client: bool = False,
        anchors: Sequence[str] = (),
        inside: Sequence[str] = (),
        listen: Sequence[str] = LOOPBACK,
        limits: Mapping[str, int] = NO_LIMITS,
    ) -> Peer:
        """Start one; ``inside`` is put before its command, ``limits`` are its owner's."""
        identity = Identity.generate()
        home = self.folder / identity.peer_id[-8:]
        home.mkdir()
        identity.save(home / "device.key")
        process = await asyncio.create_subprocess_exec(
            *inside,
            sys.executable,
            str(PEER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=ENVIRONMENT,
            limit=1 << 24,
        )
        peer = Peer(identity, process)
        self.peers.append(peer)
        await peer.tell(
            do="start",
            folder=str(home),
            run_id=self.run_id.hex(),
            root=self.root.peer_id,
            delegation=self.delegation.SerializeToString().hex(),
            peers=list(anchors),
            client=client,
            listen=list(listen),
            limits=dict(limits),
        )
        peer.addresses = (await peer.hear("started"))["addresses"]
        return peer

    def next_round(self) -> int:
        self._round += 1
        return self._round

    def roster(
        self,
        members: Sequence[tuple[Peer, int, bytes]],
        reducers: Sequence[tuple[Peer, int, int]],
        *,
        round_: int,
        layout: ChunkLayout,
        codec: str,
        combine: str,
        gather_s: float = 60,
        broadcast_s: float = 120,
    ) -> wire.Envelope:
        """Sign a roster; members are (peer, weight, root), reducers (peer, first, end)."""
        now_ms = int(time.time() * 1000)
        roster = wire.Roster(
            run_id=self.run_id,
            round=round_,
            state_digest=bytes(32),
            members=[
                wire.RosterMember(worker=p.peer_id, weight=weight, commitment_root=root)
                for p, weight, root in members
            ],
            reducers=[
                wire.ReducerRange(
                    reducer=p.peer_id, first_chunk=first, end_chunk=end, multiaddrs=p.addresses
                )
                for p, first, end in reducers
            ],
            codec=codec,
            combine=combine,
            vector_elements=layout.elements,
            chunk_elements=layout.chunk_elements,
            chunk_count=layout.count,
            gather_deadline_ms=now_ms + int(gather_s * 1000),
            broadcast_deadline_ms=now_ms + int(broadcast_s * 1000),
        )
        return seal(roster, self.round_key)

    def inclusion(self, roster: wire.Envelope, members: Sequence[Peer]) -> wire.Envelope:
        signed = open_envelope(roster, wire.Roster)
        record = signed.record
        inclusion = wire.InclusionSet(
            run_id=record.run_id,
            round=record.round,
            attempt=record.attempt,
            group_id=signed.digest[:20],
            members=[peer.peer_id for peer in members],
        )
        return seal(inclusion, self.round_key)

    async def stop(self) -> list[int]:
        running = [peer for peer in self.peers if peer.process.returncode is None]
        codes = await asyncio.gather(*(peer.stop() for peer in running))
        for peer in self.peers:  # those that were killed could not tidy up
            socket_directory(peer.peer_id).rmdir()
        return codes
