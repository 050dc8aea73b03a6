"""The all-reduces that are compared, each as a set of real processes on a link's members."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.links import Member
from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
from protocol.leash import leashed
from protocol.trust import delegate
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

CHUNK_ELEMENTS = 1 << 17
DAY_S = 86_400
_PATIENCE_S = 240
_NOISE = 0.2


class Process:
    """One spawned peer; ask and then await its answer, so that peers work at the same time."""

    def __init__(self, member: Member, kind: str, **start: object) -> None:
        program = (sys.executable, "-m", "bench.allreduce_peer", kind)
        self._child = subprocess.Popen(
            leashed(member.command(*program)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                "GLOO_SOCKET_IFNAME": member.device,
            },
        )
        self.member = member
        self.send({"address": member.address, **start})

    @property
    def pid(self) -> int:
        return self._child.pid

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


class System:
    """Peers that reduce together, again and again."""

    def __init__(self) -> None:
        self.peers: list[Process] = []

    def turn(self, number: int) -> float:
        """Reduce once; the seconds that it took."""
        _ask(self.peers, "prepare")
        started_s = time.perf_counter()
        _ask(self.peers, "go")
        return time.perf_counter() - started_s

    def check(self) -> None:
        """All have the same mean now, but for the codec's noise: vectors of members differ by 1.

        Raises:
            RuntimeError: they have not; some systems end a reduce early without a word.
        """
        samples = [answer["sample"] for answer in _ask(self.peers, "sample")]
        spread = max(max(values) - min(values) for values in zip(*samples, strict=True))
        if spread > _NOISE:
            raise RuntimeError(f"peers differ by {spread:.2g} after a reduce")

    def stop(self) -> None:
        _ask(self.peers, "stop")
        for peer in self.peers:
            peer.wait()


class Gloo(System):
    def __init__(self, members: Sequence[Member], elements: int, codec: str, folder: Path) -> None:
        super().__init__()
        fields = {"elements": elements, "size": len(members), "store": str(folder / "gloo")}
        self.peers = [
            Process(member, "gloo", rank=rank, **fields) for rank, member in enumerate(members)
        ]
        for peer in self.peers:
            peer.answer()


class Hivemind(System):
    def __init__(self, members: Sequence[Member], elements: int, codec: str, folder: Path) -> None:
        super().__init__()
        addresses: list[str] = []
        for rank, member in enumerate(members):
            fields = {"rank": rank, "elements": elements, "codec": codec, "size": len(members)}
            peer = Process(member, "hivemind", peers=addresses, **fields)
            addresses = addresses or peer.answer()["addresses"]
            self.peers.append(peer)
        for peer in self.peers[1:]:
            peer.answer()


class Ours(System):
    """Spawns our peers and plays the coordinator."""

    def __init__(self, members: Sequence[Member], elements: int, codec: str, folder: Path) -> None:
        super().__init__()
        self._layout, self._codec = ChunkLayout(elements, CHUNK_ELEMENTS), codec
        self._run_id, self._round_key = os.urandom(32), Identity.generate()
        self._identities = [Identity.generate() for _ in members]
        start = self._start_fields(Identity.generate())
        self._addresses: list[list[str]] = []
        for rank, (member, identity) in enumerate(zip(members, self._identities, strict=True)):
            key = folder / identity.peer_id
            identity.save(key)
            fields = {"rank": rank, "elements": elements, "codec": codec, "key": str(key)}
            anchors = self._addresses[0] if rank else []
            self.peers.append(Process(member, "ours", peers=anchors, **fields, **start))
            self._addresses.append(self.peers[-1].answer()["addresses"])

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
        answers = _ask(self.peers, "encode", round_=number)
        roster = self._roster(number, [bytes.fromhex(answer["root"]) for answer in answers])
        gathered = _ask(self.peers, "gather", roster=roster.SerializeToString().hex())
        assert all(answer["complete"] for answer in gathered)
        _ask(self.peers, "finish", inclusion=self._inclusion(roster).SerializeToString().hex())
        taken_s = time.perf_counter() - started_s
        _ask(self.peers, "close")
        return taken_s

    def _roster(self, round_: int, roots: list[bytes]) -> wire.Envelope:
        size, chunks = len(self.peers), self._layout.count
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
                if first < end
            ],
            codec=self._codec,
            combine="mean",
            vector_elements=self._layout.elements,
            chunk_elements=self._layout.chunk_elements,
            chunk_count=chunks,
            gather_deadline_ms=now_ms + 1000 * _PATIENCE_S,
            broadcast_deadline_ms=now_ms + 2000 * _PATIENCE_S,
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


SYSTEMS: dict[str, type[Gloo] | type[Hivemind] | type[Ours]] = {
    "gloo": Gloo,
    "hivemind": Hivemind,
    "ours": Ours,
}
