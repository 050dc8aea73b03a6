"""The owner's network limits at work: on the event loop, with a clock of ours and a real one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from worker.limits import Limits
from worker.meter import AHEAD_BYTES, NetworkBudget, on_the_wire
from worker.pacing import Rank
from worker.patience import patience
from worker.traffic_day import Moment

NOON = Moment(time.mktime((2026, 3, 10, 12, 0, 0, 0, 0, -1)), 1000.0, "one")
MIB = 1 << 20


@dataclass
class Clock:
    at: Moment = NOON

    def __call__(self) -> Moment:
        return self.at

    def pass_(self, seconds: float) -> None:
        self.at = replace(
            self.at, wall_s=self.at.wall_s + seconds, steady_s=self.at.steady_s + seconds
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def settled() -> None:
    """Let everybody run who can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_without_limits_nothing_waits_and_all_is_counted(clock: Clock) -> None:
    budget = NetworkBudget(clock=clock)
    toll = budget.toll(Rank.REDUCE)
    assert (toll.up_quantum, toll.down_quantum) == (0, 0)
    await toll.send(10 * MIB)
    await toll.receive(MIB)
    up, down = budget.snapshot()["up_bytes_today"], budget.snapshot()["down_bytes_today"]
    assert 10 * MIB < up < 10.7 * MIB
    assert MIB * 1.2 < down < MIB * 1.4  # with what acknowledges the ten
    assert budget.snapshot()["quota_left_bytes"] is None


async def test_bulk_waits_small_messages_do_not_and_a_change_is_felt_at_once(clock: Clock) -> None:
    budget = NetworkBudget(Limits(upload_kbit_s=80), clock=clock)  # 10 kB/s
    toll = budget.toll(Rank.REDUCE)
    await toll.send(toll.up_quantum)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        bulk = tasks.create_task(toll.send(toll.up_quantum))
        await toll.send(500)
        await settled()
        assert not bulk.done()
        budget.change(Limits())
        await bulk


async def test_who_gives_up_waiting_leaves_nothing_behind(clock: Clock) -> None:
    budget = NetworkBudget(Limits(upload_kbit_s=80), clock=clock)
    toll = budget.toll(Rank.REDUCE)
    await toll.send(10_000)
    sent = budget.day.up_bytes
    async with asyncio.TaskGroup() as tasks:
        gone = [tasks.create_task(toll.send(10_000)) for _ in range(3)]
        await settled()
        # The first one's turn comes just as it gives up.
        gone[0].cancel()
        clock.pass_(3.0)
        budget.up.serve()
        await settled()
        gone[1].cancel()
        gone[2].cancel()
    assert not budget.up.waiting
    assert budget.day.up_bytes - sent in (0, on_the_wire(10_000))
    clock.pass_(3.0)
    async with asyncio.timeout(20):
        await toll.send(10_000)


async def test_one_direction_does_not_drown_in_what_acknowledges_the_other(clock: Clock) -> None:
    budget = NetworkBudget(Limits(upload_kbit_s=100), clock=clock)
    assert budget.down.pacer.rate_bytes_s == 20 * budget.up.pacer.rate_bytes_s
    budget.change(Limits(upload_kbit_s=100, download_kbit_s=100_000))
    assert budget.down.pacer.rate_bytes_s == 20 * budget.up.pacer.rate_bytes_s
    budget.change(Limits(upload_kbit_s=100, download_kbit_s=1000))
    assert budget.down.pacer.rate_bytes_s == 125_000
    budget.change(Limits(download_kbit_s=1000))
    assert budget.up.pacer.rate_bytes_s == 2_500_000


async def test_what_comes_ahead_is_paid_for_before_it_is_let_come(clock: Clock) -> None:
    budget = NetworkBudget(Limits(download_kbit_s=8000), clock=clock)  # 1 MB/s
    toll, other = budget.toll(Rank.REDUCE), budget.toll(Rank.REDUCE)
    await toll.expect(10 * MIB)
    counted = budget.day.down_bytes
    assert counted == on_the_wire(AHEAD_BYTES)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        second = tasks.create_task(other.expect(MIB))
        await settled()
        assert not second.done()  # it would come on top of the first
        clock.pass_(1.0)
        budget.down.serve()
        await second
    # The last of it has been paid for when it was let come.
    budget.change(Limits())
    counted = budget.day.down_bytes
    for _ in range(640):
        await toll.receive(16 << 10)
    assert budget.day.down_bytes - counted == pytest.approx(
        on_the_wire(10 * MIB - AHEAD_BYTES), rel=0.01
    )


async def test_what_does_not_come_is_given_back(clock: Clock) -> None:
    budget = NetworkBudget(Limits(download_kbit_s=80_000), clock=clock)
    toll = budget.toll(Rank.BLOBS)
    await toll.expect(AHEAD_BYTES)
    await toll.receive(50_000)
    toll.left(10_000)
    await toll.receive(10_000)
    assert budget.day.down_bytes == pytest.approx(on_the_wire(60_000), rel=0.02)


async def test_at_the_quota_bulk_stops_and_goes_on_after_midnight(clock: Clock) -> None:
    budget = NetworkBudget(Limits(daily_mib=10), clock=clock)
    toll = budget.toll(Rank.REDUCE)
    pieces = 0
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        while budget.snapshot()["quota_left_bytes"] > 0.01 * 10 * MIB:
            await toll.send(16 << 10)
            pieces += 1
        stopped = tasks.create_task(toll.send(16 << 10))
        await settled()
        assert not stopped.done()
        assert budget.exhausted()
        assert budget.claimed_bytes >= 10 * MIB
        await toll.send(300)  # to say why
        assert budget.day.total_bytes <= 10 * MIB * 1.01
        clock.pass_(12 * 3600 + 1)
        budget.look()
        await stopped
    assert pieces > 500
    assert not budget.exhausted()


async def test_a_larger_quota_is_felt_at_once(clock: Clock) -> None:
    budget = NetworkBudget(Limits(daily_mib=1), clock=clock)
    toll = budget.toll(Rank.BLOBS)
    budget.count(2 * MIB, 0)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(toll.receive(100_000))
        await settled()
        assert not waiting.done()
        budget.change(Limits(daily_mib=100))
        await waiting


def test_a_unit_is_begun_only_if_the_quota_will_do_for_it(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    budget = NetworkBudget(Limits(daily_mib=10), path, clock)
    budget.expect_unit(MIB)
    assert 4 * MIB < budget.reserve_bytes < 4.5 * MIB
    with budget.unit():
        budget.count(3 * MIB, MIB // 2)
        assert budget.claimed_bytes == 3 * MIB + MIB // 2  # what is under way goes on
    assert budget.reserve_bytes == 3 * MIB + MIB // 2
    assert budget.claimed_bytes == 7 * MIB
    with budget.unit():
        budget.count(3 * MIB, 0)
    assert budget.claimed_bytes == 10 * MIB
    budget.close()
    # Another process knows all of it.
    after = NetworkBudget(Limits(daily_mib=10), path, clock)
    assert (after.claimed_bytes, after.day.up_bytes) == (10 * MIB, 6 * MIB)
    assert after.exhausted(after.reserve_bytes)
    assert not after.exhausted()


def test_the_present_rate(clock: Clock) -> None:
    budget = NetworkBudget(clock=clock)
    for _ in range(10):
        budget.count(12_500, 1250)
        clock.pass_(1.0)
        budget.look()
    shown = budget.snapshot()
    assert (shown["up_kbit_s"], shown["down_kbit_s"]) == (100.0, 10.0)
    for _ in range(10):
        clock.pass_(1.0)
        budget.look()
    assert budget.snapshot()["up_kbit_s"] == 0.0


async def test_a_peer_is_not_given_up_for_our_own_limit(clock: Clock) -> None:
    budget = NetworkBudget(Limits(download_kbit_s=80), clock=clock)
    toll = budget.toll(Rank.REDUCE)
    await toll.receive(10_000)
    loop = asyncio.get_running_loop()

    async def one_piece() -> None:
        async with patience(0.2):
            await toll.receive(10_000)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(one_piece())
        began_s = loop.time()
        while loop.time() < began_s + 0.5:
            await asyncio.sleep(0.05)
        assert not waiting.done()
        clock.pass_(2.0)
        budget.down.serve()
        await waiting
    with pytest.raises(TimeoutError):
        async with patience(0.05):
            await asyncio.sleep(20)


async def test_a_disk_that_refuses_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    budget = NetworkBudget(path=tmp_path / "missing" / "traffic.json")
    budget.count(1, 1)
    budget.close()
    assert budget.day.total_bytes == 2
