"""The all-reduce between real processes on loopback; the test plays the coordinator."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from protocol.combine import combine_chunk
from protocol.envelope import open_envelope
from protocol.update import (
    MEAN_SOURCE,
    ChunkLayout,
    EncodedUpdate,
    decode_chunk,
    decode_update,
    encode_chunk,
    encode_update,
    noise_key,
)
from protocol.wire import records_pb2 as wire

pytestmark = [pytest.mark.swarm, pytest.mark.asyncio(loop_scope="module")]

LAYOUT = ChunkLayout(100_003, 1 << 13)  # 13 chunks, the last one short


@dataclass
class Swarm:
    """An anchor, two public peers and two without an inbound port."""

    rig: Any
    vector: Callable[[int, int], np.ndarray]
    anchor: Any
    public: list[Any]
    clients: list[Any]

    async def more(self, *, client: bool) -> Any:
        return await self.rig.spawn(client=client, anchors=self.anchor.addresses)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def swarm(
    allreduce_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Swarm]:
    rig = allreduce_rig.Rig(tmp_path_factory.mktemp("peers"))
    anchor = await rig.spawn()
    spawning = [
        rig.spawn(client=client, anchors=anchor.addresses) for client in (False, False, True, True)
    ]
    peers = await asyncio.gather(*spawning)
    yield Swarm(rig, allreduce_rig.member_vector, anchor, peers[:2], peers[2:])
    assert set(await rig.stop()) == {0}


@dataclass
class Round:
    """One attempt, from the roster to the inclusion set."""

    swarm: Swarm
    members: Sequence[Any]
    reducers: Sequence[Any]
    codec: Any = "int8"
    combine: Any = "mean"
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    gather_s: float = 60
    broadcast_s: float = 120

    async def open(self) -> None:
        """Sign the roster and tell everybody; gathering begins."""
        rig = self.swarm.rig
        self.round_ = rig.next_round()
        self.updates = [self._update(i, peer) for i, peer in enumerate(self.members)]
        shares = [LAYOUT.count * i // len(self.reducers) for i in range(len(self.reducers) + 1)]
        self.roster = rig.roster(
            [(p, self.weight(i), self.updates[i].root) for i, p in enumerate(self.members)],
            [(p, *share) for p, share in zip(self.reducers, pairwise(shares), strict=True)],
            round_=self.round_,
            layout=LAYOUT,
            codec=self.codec,
            combine=self.combine,
            gather_s=self.gather_s,
            broadcast_s=self.broadcast_s,
        )
        self.group = open_envelope(self.roster, wire.Roster).digest[:20].hex()
        for peer in self.everybody:
            seed = self.members.index(peer) if peer in self.members else None
            roster = self.roster.SerializeToString().hex()
            fault = self.faults.get(peer.peer_id, {})
            await peer.tell(do="group", roster=roster, seed=seed, fault=fault)

    @property
    def everybody(self) -> list[Any]:
        return [*self.members, *(peer for peer in self.reducers if peer not in self.members)]

    @staticmethod
    def weight(member: int) -> int:
        return 1000 + 777 * member

    def _update(self, member: int, peer: Any) -> EncodedUpdate:
        vector = self.swarm.vector(LAYOUT.elements, member)
        run_id = self.swarm.rig.run_id
        return encode_update(
            vector, LAYOUT, self.codec, run_id=run_id, round_=self.round_, worker=peer.peer_id
        )

    async def outcomes(self, reducer: Any) -> dict[str, wire.GatherOutcome]:
        """A reducer's final word: all members are decided, or its deadline has come."""
        await reducer.hear("reported", self.group)
        reports = []
        for heard in reducer.heard("report", self.group):
            envelope = wire.Envelope.FromString(bytes.fromhex(heard["envelope"]))
            signed = open_envelope(envelope, wire.ReducerReport, signer=reducer.peer_id)
            reports.append(signed.record)
        revisions = [report.revision for report in reports]
        assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
        return {outcome.worker: outcome for outcome in reports[-1].outcomes}

    async def finish(self, included: Sequence[Any], peers: Sequence[Any]) -> None:
        inclusion = self.swarm.rig.inclusion(self.roster, included).SerializeToString().hex()
        for peer in peers:
            await peer.tell(do="finish", group=self.group, inclusion=inclusion)

    async def means(self, peers: Sequence[Any]) -> set[str]:
        return {(await p.hear("finished", self.group))["mean_sha256"] for p in peers}

    def expected(self, included: Sequence[Any]) -> str:
        """Digest of the mean, computed here from the inputs alone."""
        chosen = [i for i, peer in enumerate(self.members) if peer in included]
        results = []
        for chunk in range(LAYOUT.count):
            size = LAYOUT.chunk_size(chunk)
            inputs = [decode_chunk(self.codec, self.updates[i].chunks[chunk], size) for i in chosen]
            mean = combine_chunk(self.combine, inputs, [self.weight(i) for i in chosen])
            key = noise_key(self.swarm.rig.run_id, self.round_, chunk, MEAN_SOURCE)
            results.append(encode_chunk(self.codec, mean, key))
        mean_vector = decode_update(tuple(results), LAYOUT, self.codec)
        return hashlib.sha256(mean_vector.tobytes()).hexdigest()

    async def close(self, peers: Sequence[Any]) -> None:
        for peer in peers:
            await peer.tell(do="close", group=self.group)
            await peer.hear("closed", self.group)


@pytest.mark.parametrize("combine", ["mean", "clipped_mean"])
@pytest.mark.parametrize("codec", ["fp32", "int8", "int4"])
async def test_everybody_ends_with_the_same_mean(swarm: Swarm, codec: str, combine: str) -> None:
    members = [*swarm.public, *swarm.clients]
    round_ = Round(swarm, members, [swarm.anchor, *swarm.public], codec=codec, combine=combine)
    await round_.open()
    for peer in members:
        assert (await peer.hear("gathered", round_.group))["failures"] == []
    for reducer in round_.reducers:
        outcomes = await round_.outcomes(reducer)
        assert all(outcome.complete for outcome in outcomes.values())
        for name, outcome in outcomes.items():
            open_envelope(outcome.statement, wire.GatherStatement, signer=name)
    await round_.finish(members, round_.everybody)
    assert await round_.means(round_.everybody) == {round_.expected(members)}
    await round_.close(round_.everybody)


async def test_members_without_inbound_port_and_one_anchor(swarm: Swarm) -> None:
    round_ = Round(swarm, swarm.clients, [swarm.anchor], codec="int4")
    await round_.open()
    await round_.outcomes(swarm.anchor)
    await round_.finish(swarm.clients, round_.everybody)
    assert await round_.means(round_.everybody) == {round_.expected(swarm.clients)}
    await round_.close(round_.everybody)


async def test_one_falsified_chunk_excludes_its_sender_alone(swarm: Swarm) -> None:
    cheat, honest = swarm.clients[0], [*swarm.public, swarm.clients[1]]
    round_ = Round(
        swarm,
        [*swarm.public, *swarm.clients],
        [swarm.anchor, *swarm.public],
        faults={cheat.peer_id: {"falsify": 2}},  # in the anchor's range
    )
    await round_.open()
    at_anchor = await round_.outcomes(swarm.anchor)
    assert not at_anchor[cheat.peer_id].complete
    assert at_anchor[cheat.peer_id].reason == "bad_digest"
    assert all(at_anchor[peer.peer_id].complete for peer in honest)
    failures = (await cheat.hear("gathered", round_.group))["failures"]
    assert [reducer for reducer, _ in failures] == [swarm.anchor.peer_id]
    assert (await round_.outcomes(swarm.public[0]))[cheat.peer_id].complete
    await round_.finish(honest, round_.everybody)
    assert await round_.means(round_.everybody) == {round_.expected(honest)}
    await round_.close(round_.everybody)


async def test_a_sender_that_dies_in_the_middle_is_left_out(swarm: Swarm) -> None:
    dying = await swarm.more(client=True)
    members = [*swarm.public, dying]
    round_ = Round(
        swarm, members, [swarm.anchor], faults={dying.peer_id: {"die_at": 5}}, gather_s=6
    )
    await round_.open()
    assert await dying.process.wait() == -9
    outcomes = await round_.outcomes(swarm.anchor)
    assert not outcomes[dying.peer_id].complete
    assert outcomes[dying.peer_id].reason == "incomplete"
    alive = [*swarm.public, swarm.anchor]
    await round_.finish(swarm.public, alive)
    assert await round_.means(alive) == {round_.expected(swarm.public)}
    await round_.close(alive)


async def test_results_of_a_dead_reducer_come_from_whoever_holds_them(swarm: Swarm) -> None:
    doomed = await swarm.more(client=False)
    late = swarm.clients[0]
    members = [*swarm.public, late]
    round_ = Round(swarm, members, [doomed, swarm.anchor])
    await round_.open()
    for reducer in round_.reducers:
        await round_.outcomes(reducer)
    early = [doomed, swarm.anchor, *swarm.public]
    await round_.finish(members, early)
    assert await round_.means(early) == {round_.expected(members)}
    await doomed.kill()
    await round_.finish(members, [late])
    assert await round_.means([late]) == {round_.expected(members)}
    await round_.close([swarm.anchor, *members])


async def test_a_reducer_lost_before_its_broadcast_leaves_the_rest_and_says_so(
    swarm: Swarm,
) -> None:
    doomed = await swarm.more(client=False)
    round_ = Round(swarm, swarm.public, [swarm.anchor, doomed], gather_s=8, broadcast_s=12)
    await round_.open()
    for reducer in round_.reducers:
        await round_.outcomes(reducer)
    await doomed.kill()
    await round_.finish(swarm.public, [*swarm.public, swarm.anchor])
    for peer in swarm.public:
        heard = await peer.hear("incomplete", round_.group)
        assert heard["pieces"] == list(range(LAYOUT.count // 2))
        assert "next attempt" in heard["why"]
    await round_.close([swarm.anchor, *swarm.public])
