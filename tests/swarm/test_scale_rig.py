"""The benchmark of scale measures real rounds: its members agree, and what it counts is so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.scale_rig import Case, Rig

pytestmark = pytest.mark.swarm

CASE = Case(members=3, reducers=2, elements=40_000, chunk_elements=1 << 13)


def test_members_in_fewer_processes_agree_and_are_counted(tmp_path: Path) -> None:
    async def measure() -> None:
        async with Rig(CASE, tmp_path) as rig:
            rounds = [await rig.round(number) for number in (1, 2)]
            peers = await rig.peers()
            memory = rig.memory()
        for taken in rounds:
            assert taken.tally.statements == CASE.members * CASE.reducers
            assert taken.tally.reports >= CASE.reducers
            assert taken.gather_s > 0 < taken.broadcast_s
            used = [*taken.encode, *taken.gather, *taken.broadcast]
            assert all(host.python_s >= 0 <= host.daemons_s for host in used)
        # A member opens a stream to each reducer but itself, in GATHER and again in BROADCAST.
        opened = 2 * len(rounds) * (CASE.members * CASE.reducers - CASE.reducers)
        assert sum(peer["opened"] for peer in peers) == opened
        assert all(peer["connections"] == CASE.members - 1 for peer in peers)
        assert all(host.daemons_bytes > 1 << 20 for host in memory)

    asyncio.run(measure())


def test_reducers_are_spread_or_come_first_and_hosts_cover_all() -> None:
    assert CASE.reducing == [0, 1]
    assert Case(64, 8, 1 << 20, 1 << 14).reducing == list(range(0, 64, 8))
    packed = Case(64, 32, 1 << 20, 1 << 14, first_ones=True)
    assert packed.reducing == list(range(32))
    assert [len(ranks) for ranks in packed.hosts] == [8] * 8
    assert [rank for ranks in packed.hosts for rank in ranks] == list(range(64))
