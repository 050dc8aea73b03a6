"""What the trainer leaves to others: frozen it takes nothing, and it ends with its parent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import psutil
import pytest

from protocol.leash import leashed
from worker import process_share
from worker.process_share import Share
from worker.trainer import Trainer

_PATIENCE_S = 60.0

_PARENT = """
import asyncio, sys
from worker.trainer import Trainer

async def main():
    trainer = Trainer(1)
    await trainer.start()
    trainer.freeze()
    print("pid", trainer.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def until_status(process: psutil.Process, status: str) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while process.status() != status:
        assert time.monotonic() < deadline_s, process.status()
        await asyncio.sleep(0.01)


def test_a_frozen_trainer_dies_with_a_daemon_that_is_killed() -> None:
    with subprocess.Popen(
        leashed([sys.executable, "-c", _PARENT]), stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        line = next(line for line in daemon.stdout if line.startswith("pid"))
        trainer = psutil.Process(int(line.split()[1]))
        asyncio.run(until_status(trainer, psutil.STATUS_STOPPED))
        daemon.kill()
        assert psutil.wait_procs([trainer], timeout=_PATIENCE_S)[1] == []


async def test_frozen_it_stands_still_and_thawed_it_goes_on() -> None:
    async with Trainer(1) as trainer:
        trainer.freeze()  # before it is there
        await trainer.start()
        process = psutil.Process(trainer.pid)
        await until_status(process, psutil.STATUS_STOPPED)
        used_s = sum(process.cpu_times()[:2])
        trainer.freeze()  # again changes nothing
        assert trainer.frozen
        trainer.thaw()
        assert not trainer.frozen
        while sum(process.cpu_times()[:2]) == used_s:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)
        # Nothing is under way: it is gone at once, also out of the freezer.
        trainer.freeze()
        await trainer.end_soon()
        assert trainer.pid is None and not process.is_running()
        assert trainer.ending
        trainer.go_on()
        assert not trainer.ending


async def test_it_has_all_processors_again_as_soon_as_it_may() -> None:
    ours = psutil.Process().cpu_affinity()
    async with Trainer(2) as trainer:
        await trainer.start()
        process = psutil.Process(trainer.pid)
        trainer.change(threads=2, nice=0, memory_mib=0)  # nothing that concerns processors
        assert process.cpu_affinity() == ours
        trainer.change(threads=2, nice=0, memory_mib=9000)  # it has to begin anew for that
        trainer.change(threads=1, nice=0, memory_mib=9000)  # which is no reason to wait with this
        assert len(process.cpu_affinity()) == 1
        trainer.change(threads=3, nice=0, memory_mib=9000)
        assert process.cpu_affinity() == ours


@pytest.mark.parametrize("count", [2, 4])
def test_the_daemons_of_one_machine_take_processors_of_their_own(count: int) -> None:
    ours = list(range(8))
    shares = [Share(index, count).processors(ours, 8 // count) for index in range(count)]
    assert sorted(one for share in shares for one in share) == ours
    assert all(len(Share(index, count).processors(ours, 1)) == 1 for index in range(count))
    # More threads than its part has processors: it is kept to none of them.
    assert Share(1, count).processors(ours, 5) == ours
    assert Share().processors(ours, 3) == [5, 6, 7]


def test_every_thread_steps_back() -> None:
    program = "import threading, sys; threading.Thread(target=sys.stdin.read).start(); print()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        assert process_share.renice(process.pid, 7)
        process_share.restrict(process.pid, 1)
        threads = [thread.id for thread in psutil.Process(process.pid).threads()]
        assert len(threads) == 2
        assert {psutil.Process(thread).nice() for thread in threads} == {7}
        assert {len(psutil.Process(thread).cpu_affinity()) for thread in threads} == {1}
        process.stdin.close()
    # Gone: nothing to do, and no error.
    assert process_share.renice(process.pid, 8)
    process_share.freeze(process.pid)
    process_share.thaw(process.pid)
