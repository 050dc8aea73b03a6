"""Free identities hold a reducer's streams; its members' reduce goes on."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from chaos_limits_rig import ENVIRONMENT, swarm_rig

from protocol.envelope import open_envelope
from protocol.identity import Identity
from protocol.limits import MAX_ROSTER_MEMBERS
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire
from worker.callers import (
    MAX_FAMILIAR,
    MAX_STRANGERS,
    MAX_STREAMS_PER_PEER,
    MAX_STREAMS_PER_STRANGER,
    STRANGER_S,
    Callers,
    Familiar,
)

FLOOD = Path(__file__).with_name("chaos_flood_peer.py")
LAYOUT = ChunkLayout(5000, 1024)
IDENTITIES = 3


async def _flood(run_id: bytes, address: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(FLOOD), run_id.hex(), address),
        *("--identities", str(IDENTITIES), "--streams", "6"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )


@pytest.mark.swarm
@pytest.mark.timeout(240)
async def test_members_gather_at_a_reducer_that_strangers_flood(tmp_path: Path) -> None:
    rig = swarm_rig("allreduce_rig").Rig(tmp_path)
    reducer = await rig.spawn()
    member = await rig.spawn(client=True, anchors=reducer.addresses)
    flood = await _flood(rig.run_id, reducer.addresses[0])
    try:
        assert flood.stdout is not None
        assert flood.stdin is not None
        held = json.loads(await flood.stdout.readline())["held"]
        assert held == [MAX_STREAMS_PER_STRANGER] * IDENTITIES
        await _reduce(rig, reducer, member)
        flood.stdin.close()
        assert await flood.wait() == 0
    finally:
        if flood.returncode is None:
            flood.kill()
            await flood.wait()
    assert set(await rig.stop()) == {0}


async def _reduce(rig: Any, reducer: Any, member: Any) -> None:
    members, round_ = (reducer, member), rig.next_round()
    updates = [
        encode_update(
            swarm_rig("allreduce_rig").member_vector(LAYOUT.elements, seed),
            LAYOUT,
            "int8",
            run_id=rig.run_id,
            round_=round_,
            worker=peer.peer_id,
        )
        for seed, peer in enumerate(members)
    ]
    roster = rig.roster(
        [(peer, 1000, update.root) for peer, update in zip(members, updates, strict=True)],
        [(reducer, 0, LAYOUT.count)],
        round_=round_,
        layout=LAYOUT,
        codec="int8",
        combine="mean",
    )
    group = open_envelope(roster, wire.Roster).digest[:20].hex()
    for seed, peer in enumerate(members):
        await peer.tell(do="group", roster=roster.SerializeToString().hex(), seed=seed, fault={})
    assert (await member.hear("gathered", group))["failures"] == []
    inclusion = rig.inclusion(roster, members).SerializeToString().hex()
    for peer in members:
        await peer.tell(do="finish", group=group, inclusion=inclusion)
    means = {(await peer.hear("finished", group))["mean_sha256"] for peer in members}
    assert len(means) == 1
    for peer in members:
        await peer.tell(do="close", group=group)


def test_strangers_have_but_a_share_of_the_streams() -> None:
    callers = Callers()
    callers.familiar = {"friend"}
    with ExitStack() as held:
        for number in range(MAX_STRANGERS):
            name = str(number // MAX_STREAMS_PER_STRANGER)
            assert not callers.is_busy(name)
            assert held.enter_context(callers.serving(name)) == STRANGER_S
        assert callers.is_busy("another")
        for _ in range(MAX_STREAMS_PER_PEER):
            assert not callers.is_busy("friend")
            assert held.enter_context(callers.serving("friend")) is None
        assert callers.is_busy("friend")
    with callers.serving("one"), callers.serving("one"), callers.serving("one"):
        assert not callers.is_busy("one")
        with callers.serving("one"):
            assert callers.is_busy("one")
        assert not callers.is_busy("another")


def test_only_so_many_peers_are_familiar() -> None:
    familiar = Familiar()
    first = Identity.generate().peer_id
    familiar.add([first])
    assert first in familiar
    for start in range(0, MAX_FAMILIAR, MAX_ROSTER_MEMBERS):
        familiar.add(str(number) for number in range(start, start + MAX_ROSTER_MEMBERS))
    assert first not in familiar
    assert "0" in familiar
