"""The governor at work: looks, tells, and is never in the way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker import governing as shell
from worker.clock import steady_s
from worker.governing import Governing
from worker.governor import Because, Governor, Readings, Verdict
from worker.limits import Limits
from worker.sensors.cpu import ForeignCpu
from worker.sensors.machine import Sensors

PERMISSIVE = Limits(on_battery=True, free_disk_mib=0)
CALM = Readings(0.0, 0.0, foreign_cpu_percent=1.0, idle_s=9e9, free_disk_mib=9000)


@dataclass
class FakeMachine:
    """Reads what it is told to, and hangs when it is told to."""

    readings: Readings = CALM
    looks: int = 0
    closed: bool = False
    goes_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.goes_on.set()

    def read(self) -> Readings:
        self.looks += 1
        self.goes_on.wait()
        return self.readings

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def at_work(
    limits: Limits = PERMISSIVE, machine: Any = None, **options: Any
) -> AsyncIterator[Governing]:
    governing = Governing(Governor(limits), machine or FakeMachine(), **options)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(governing.run())
        yield governing
        running.cancel()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # a thread's doings raise no event here
        await asyncio.sleep(0.005)


async def test_the_verdict_of_the_first_look_is_waited_for() -> None:
    machine = FakeMachine()
    machine.goes_on.clear()
    async with at_work(machine=machine) as governing:
        waiting = asyncio.ensure_future(governing.wait_until_works())
        await until(lambda: machine.looks == 1)
        assert not waiting.done()
        machine.goes_on.set()
        await waiting
        assert governing.verdict == Verdict(works=True)
        assert governing.readings is not None
        assert governing.readings.at_s == pytest.approx(time.time(), abs=60)
        assert governing.readings.steady_s == pytest.approx(steady_s(), abs=60)


async def test_the_owners_words_take_effect_at_once() -> None:
    """Well before the next look, which comes in five seconds."""
    machine = FakeMachine()
    async with at_work(machine=machine) as governing:
        await governing.wait_until_works()
        began_s = steady_s()
        governing.pause(time.time() + 3600)
        assert (await governing.wait_until_stops()).because == Because.OWNER
        governing.resume()
        await governing.wait_until_works()
        governing.change(replace(PERMISSIVE, free_disk_mib=10_000))
        assert (await governing.wait_until_stops()).because == Because.DISK
        governing.change(PERMISSIVE)
        await governing.wait_until_works()
        governing.governor.confirmed = False
        governing.resume()
        assert (await governing.wait_until_stops()).because == Because.UNCONFIRMED
        governing.confirm()
        await governing.wait_until_works()
        assert machine.looks <= 7 + (steady_s() - began_s) / shell.FAST_S
    assert machine.closed


async def test_a_pause_ends_at_its_second_however_seldom_it_looks() -> None:
    async with at_work() as governing:
        end_s = time.time() + 0.3
        governing.pause(end_s)
        await governing.wait_until_stops()
        await governing.wait_until_works()
        assert time.time() >= end_s - 0.01
        assert governing.readings is not None
        assert governing.readings.at_s - end_s < shell.SLOW_S


async def test_traffic_of_the_day_is_asked_for() -> None:
    used = [0]
    limits = replace(PERMISSIVE, daily_mib=1)
    async with at_work(limits, traffic_today_bytes=lambda: used[0]) as governing:
        await governing.wait_until_works()
        used[0] = 1 << 20
        governing.resume()
        verdict = await governing.wait_until_stops()
    assert (verdict.because, verdict.offline) == (Because.QUOTA, True)


async def test_sensors_that_hang_delay_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "_HANGS_AFTER_S", 0.05)
    machine = FakeMachine(replace(CALM, free_disk_mib=1))
    machine.goes_on.clear()
    with structlog.testing.capture_logs() as lines:
        async with at_work(replace(PERMISSIVE, free_disk_mib=1000), machine) as governing:
            try:
                await governing.wait_until_works()  # of the disk nothing is known
                governing.pause()
                assert (await governing.wait_until_stops()).because == Because.OWNER
                governing.resume()
                await governing.wait_until_works()
                assert machine.looks == 1  # no second thread is hung up with it
            finally:
                machine.goes_on.set()
            await until(lambda: governing._look is not None and governing._look.done())
            governing.resume()
            assert (await governing.wait_until_stops()).because == Because.DISK
    events = [line["event"] for line in lines]
    assert events.count("sensors do not answer") == events.count("sensors answer again") == 1


async def test_there_is_one_line_for_each_change_and_none_for_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "FAST_S", 0.002)
    machine = FakeMachine()
    told: list[Verdict] = []
    with structlog.testing.capture_logs() as lines:
        limits = replace(PERMISSIVE, free_disk_mib=1000, busy_cpu_percent=25)
        async with at_work(limits, machine, on_change=told.append) as governing:
            await governing.wait_until_works()
            for free_mib in range(999, 900, -1):
                looks = machine.looks
                machine.readings = replace(CALM, free_disk_mib=free_mib)
                await until(lambda looks=looks: machine.looks > looks + 1)  # type: ignore[misc]
            governing.pause(time.time() + 3600)
            await until(lambda: governing.verdict.because == Because.OWNER)
            governing.resume()
            await until(lambda: governing.verdict.because == Because.DISK)
    assert [line["event"] for line in lines] == ["may not work"] * 3
    assert [line["because"] for line in lines] == ["disk", "paused", "disk"]
    assert "until" in lines[1]
    assert lines[0]["reason"].startswith("only 990 MiB of disk are free")
    assert [verdict.works for verdict in told] == [True, False, False, False]


async def test_a_program_that_takes_over_does_not_say_it_again() -> None:
    limits = replace(PERMISSIVE, free_disk_mib=10_000)
    async with at_work(limits) as governing:
        await governing.wait_until_stops()
        kept = governing.governor.remember()
    governor = Governor(limits)
    governor.recall(kept)
    with structlog.testing.capture_logs() as lines:
        after = Governing(governor, FakeMachine())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(after.run())
            await after.wait_until_stops()
            running.cancel()
    assert lines == []


async def test_a_limit_that_this_machine_cannot_keep_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "FAST_S", 0.002)
    machine = FakeMachine(replace(CALM, idle_s=None))
    with structlog.testing.capture_logs() as lines:
        async with at_work(replace(PERMISSIVE, idle_minutes=3), machine) as governing:
            await until(lambda: machine.looks > 10)
            governing.change(replace(PERMISSIVE, idle_minutes=4))
            looks = machine.looks
            await until(lambda: machine.looks > looks + 10)
    assert [line["problem"] for line in lines] == [
        "idle_minutes has no effect: this machine does not tell when somebody used it last"
    ] * 2


@pytest.mark.parametrize(
    ("limits", "pace_s"),
    [
        ({}, shell.SLOW_S),
        ({"schedule": ("00:00-24:00",)}, shell.SLOW_S),
        ({"busy_cpu_percent": 25}, shell.FAST_S),
        ({"idle_minutes": 5}, shell.FAST_S),
        ({"gpu_temperature_c": 80}, shell.FAST_S),
        ({"free_memory_mib": 500}, shell.FAST_S),
    ],
)
def test_it_looks_seldom_where_nothing_has_to_be_quick(
    limits: dict[str, Any], pace_s: float
) -> None:
    governing = Governing(Governor(replace(PERMISSIVE, **limits)), FakeMachine())
    assert governing._pace_s() == pace_s


# ---- the real machine ------------------------------------------------------------------


@contextmanager
def running(code: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("limits", "because"),
    [
        ({"free_disk_mib": 1 << 31}, Because.DISK),  # two million GiB
        ({"free_memory_mib": 1 << 31}, Because.MEMORY),
    ],
)
async def test_disk_and_memory_of_this_machine(
    tmp_path: Path, limits: dict[str, Any], because: Because
) -> None:
    sensors = Sensors(tmp_path)
    async with at_work(replace(PERMISSIVE, free_disk_mib=1), sensors) as governing:
        await governing.wait_until_works()
        governing.change(replace(PERMISSIVE, **limits))
        assert (await governing.wait_until_stops()).because == because
        governing.change(replace(PERMISSIVE, free_disk_mib=1))
        await governing.wait_until_works()


async def test_a_program_that_starts_has_the_machine_within_five_looks(tmp_path: Path) -> None:
    limits = replace(PERMISSIVE, busy_cpu_percent=25)
    with running("import time; time.sleep(600)") as stranger, ExitStack() as load:
        # What this test starts is foreign to a worker that is another process.
        sensors = Sensors(tmp_path, cpu=ForeignCpu(root_pid=stranger))
        seen: list[Readings | None] = []
        async with at_work(limits, sensors) as governing:
            await until(lambda: governing.readings is not None)
            for _ in range(len(os.sched_getaffinity(0))):
                load.enter_context(running("while True: pass"))
            seen.append(governing.readings)
            while governing.verdict.works:
                await until(lambda: governing.readings is not seen[-1])
                seen.append(governing.readings)
    assert len(seen) - 1 <= 5
    assert governing.verdict.because == Because.BUSY
    assert "your limit is 25 %" in governing.verdict.reason


def test_the_light_process_can_run_it() -> None:
    code = (
        "import sys, worker.governing, worker.sensors.machine\n"
        "heavy = {'torch', 'hivemind', 'numpy', 'grpc'} & set(sys.modules)\n"
        "sys.exit(f'loads {heavy}' if heavy else 0)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
