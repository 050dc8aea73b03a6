"""The owner's network limits, as the network sees them: byte counters of a namespace's interface.

A cap holds within 5 % over a minute: whatever window one looks at, no more than three seconds'
worth is over the rate. The windows here are shorter than a minute and say the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_net import Internet, open_internet
from chaos_net_cap import DOWN, UP, CappedClient, Wire, capped_reduce

from protocol.update import ChunkLayout

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

MIB = 1 << 20
OVER_S = 0.05 * 60
"""What the rate may be exceeded by, in seconds of it: 5 % of a minute."""

LAYOUT = ChunkLayout(2_000_000, 1 << 16)


@pytest.fixture
def internet() -> Iterator[Internet]:
    with open_internet() as opened:
        yield opened


def check(seen: Wire, way: str, kbit_s: int, *, least: float = 0.8) -> None:
    """The cap held, and the line was used while there was something to send."""
    rate = kbit_s * 125
    assert seen.excess_bytes(way, rate) <= OVER_S * rate
    moving_s = seen.moving_s(way)
    assert seen.passed(way) >= least * rate * moving_s - rate
    assert moving_s > 4


async def test_a_reduce_goes_out_and_comes_in_at_the_owners_rates(
    internet: Internet, tmp_path: Path
) -> None:
    limits = {"upload_kbit_s": 4000, "download_kbit_s": 4000}
    async with capped_reduce(tmp_path, internet, LAYOUT, limits) as made:
        async with made.watching() as seen:
            await made.reduce()
        check(seen, UP, 4000)
        check(seen, DOWN, 4000)
        counted = await made.counted()
        for way in (UP, DOWN):  # what is counted is never less than what passed
            assert seen.total[way][-1] <= counted[way] <= 1.2 * seen.total[way][-1]


async def test_a_changed_limit_holds_for_the_reduce_under_way(
    internet: Internet, tmp_path: Path
) -> None:
    limits = {"upload_kbit_s": 400}
    async with (
        capped_reduce(tmp_path, internet, LAYOUT, limits) as made,
        made.watching() as seen,
    ):
        roster = await made.begin()
        await made.until_counted(UP, least_bytes=200_000)
        changed_s = seen.at_s[-1]
        assert not made.has_gathered(roster)
        await made.limit(upload_kbit_s=4000)
        await made.end(roster)
    assert seen.between(0.0, changed_s).excess_bytes(UP, 400 * 125) <= OVER_S * 400 * 125
    check(seen.between(changed_s, 1e18), UP, 4000)


def test_blobs_and_answers_of_grpc_keep_to_it_and_small_calls_do_not_wait(
    internet: Internet, tmp_path: Path
) -> None:
    served = CappedClient(tmp_path, internet)
    for_s, kbit_s = 6.0, 2000

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            up = tasks.create_task(served.work("sender", UP, for_s, upload_kbit_s=kbit_s))
            down = tasks.create_task(served.work("fetcher", DOWN, for_s, download_kbit_s=kbit_s))
        for way, (seen, told) in ((UP, up.result()), (DOWN, down.result())):
            check(seen, way, kbit_s)
            assert seen.total[way][-1] <= 1.02 * told[f"{way}_bytes"]
            assert len(told["hellos_s"]) >= 3
            assert max(told["hellos_s"]) < 2.0  # behind 3 MiB it would be twelve

    with served.serving():
        asyncio.run(both())


async def test_at_the_days_quota_a_reduce_stops(internet: Internet, tmp_path: Path) -> None:
    quota_bytes = 2 * MIB  # a gather takes 2.6: two thirds of an update each way
    async with (
        capped_reduce(tmp_path, internet, LAYOUT, {"daily_mib": 2}) as made,
        made.watching() as seen,
    ):
        roster = await made.begin()
        await made.until_counted(UP, DOWN, least_bytes=MIB)
        await asyncio.sleep(2.0)  # it would be over by now
        assert not made.has_gathered(roster)
        assert sum((await made.counted()).values()) <= 1.01 * quota_bytes
        assert seen.total[UP][-1] + seen.total[DOWN][-1] <= 1.01 * quota_bytes
        await made.limit()  # the owner allows more
        await made.end(roster)
