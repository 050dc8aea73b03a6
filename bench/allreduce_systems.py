"""The all-reduces that are compared, each as a set of real processes on a link's members."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.links import Member
from bench.peer_process import PeerProcess
from bench.played_coordinator import PlayedCoordinator
from protocol.identity import Identity
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

CHUNK_ELEMENTS = 1 << 17
_PATIENCE_S = 240
_NOISE = 0.2


def _start(member: Member, kind: str, **fields: object) -> PeerProcess:
    peer = PeerProcess(member, "bench.allreduce_peer", kind, GLOO_SOCKET_IFNAME=member.device)
    peer.tell({"address": member.address, **fields})
    return peer


def _ask(peers: list[PeerProcess], do: str, **arguments: object) -> list[dict[str, Any]]:
    for peer in peers:
        peer.tell({"do": do, **arguments})
    return [peer.hear() for peer in peers]


class System:
    """Peers that reduce together, again and again."""

    def __init__(self) -> None:
        self.peers: list[PeerProcess] = []

    def turn(self, number: int) -> float:
        """Reduce once; the seconds that it took."""
        _ask(self.peers, "prepare")
        started_s = time.perf_counter()
        _ask(self.peers, "go")
        return time.perf_counter() - started_s

    def check(self) -> None:
        """All have the same mean now, but for noise; the members' own vectors differ by 1 or so.

        Single values may differ by as much: hivemind's 8-bit codec clips at three deviations.

        Raises:
            RuntimeError: they have not; some systems end a reduce early without a word.
        """
        samples = [answer["sample"] for answer in _ask(self.peers, "sample")]
        spread = fmean(max(values) - min(values) for values in zip(*samples, strict=True))
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
            _start(member, "gloo", rank=rank, **fields) for rank, member in enumerate(members)
        ]
        for peer in self.peers:
            peer.hear()


class Hivemind(System):
    def __init__(self, members: Sequence[Member], elements: int, codec: str, folder: Path) -> None:
        super().__init__()
        addresses: list[str] = []
        for rank, member in enumerate(members):
            fields = {"rank": rank, "elements": elements, "codec": codec, "size": len(members)}
            peer = _start(member, "hivemind", peers=addresses, **fields)
            addresses = addresses or peer.hear()["addresses"]
            self.peers.append(peer)
        for peer in self.peers[1:]:
            peer.hear()


class Ours(System):
    """Spawns our peers and plays the coordinator."""

    def __init__(self, members: Sequence[Member], elements: int, codec: str, folder: Path) -> None:
        super().__init__()
        self._layout, self._codec = ChunkLayout(elements, CHUNK_ELEMENTS), codec
        self._coordinator = PlayedCoordinator()
        self._identities = [Identity.generate() for _ in members]
        start = self._coordinator.told()
        self._addresses: list[list[str]] = []
        for rank, (member, identity) in enumerate(zip(members, self._identities, strict=True)):
            key = folder / identity.peer_id
            identity.save(key)
            fields = {"rank": rank, "elements": elements, "codec": codec, "key": str(key)}
            anchors = self._addresses[0] if rank else []
            self.peers.append(_start(member, "ours", peers=anchors, **fields, **start))
            self._addresses.append(self.peers[-1].hear()["addresses"])

    def turn(self, number: int) -> float:
        started_s = time.perf_counter()
        answers = _ask(self.peers, "encode", round_=number)
        roster = self._roster(number, [bytes.fromhex(answer["root"]) for answer in answers])
        gathered = _ask(self.peers, "gather", roster=roster.SerializeToString().hex())
        assert all(answer["complete"] for answer in gathered)
        inclusion = self._coordinator.inclusion(roster).SerializeToString().hex()
        _ask(self.peers, "finish", inclusion=inclusion)
        taken_s = time.perf_counter() - started_s
        _ask(self.peers, "close")
        return taken_s

    def _roster(self, round_: int, roots: list[bytes]) -> wire.Envelope:
        size, chunks = len(self.peers), self._layout.count
        shares = pairwise([chunks * rank // size for rank in range(size + 1)])
        names = [identity.peer_id for identity in self._identities]
        reducers = [
            wire.ReducerRange(reducer=name, first_chunk=first, end_chunk=end, multiaddrs=known)
            for name, known, (first, end) in zip(names, self._addresses, shares, strict=True)
            if first < end
        ]
        committed = dict(zip(names, roots, strict=True))
        return self._coordinator.roster(
            round_, committed, reducers, self._layout, self._codec, patience_s=_PATIENCE_S
        )


SYSTEMS: dict[str, type[Gloo] | type[Hivemind] | type[Ours]] = {
    "gloo": Gloo,
    "hivemind": Hivemind,
    "ours": Ours,
}
