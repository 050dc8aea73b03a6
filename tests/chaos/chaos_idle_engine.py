"""A coordinator's engine in a process of its own, in which two members have their leases.

``chaos_idle_engine.py FOLDER`` runs it by a steady clock until it is killed. It says "leased" when
they have, and logs to its output.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from chaos_scripted_run import ScriptedRun, manifest

from coordinator.context import EngineOptions
from coordinator.steady_clock import SteadyClock

SILENT_AFTER_S = 2.0


async def live(folder: Path) -> None:
    run = ScriptedRun(folder, manifest(rounds=2))
    run.clock = SteadyClock()
    run.now_s = run.clock()
    run.options = EngineOptions(silent_after_s=SILENT_AFTER_S, tick_s=0.1)
    await run.boot()
    await run.admit_all()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run.engine.run())
        for worker in run.workers:
            await worker.lease()
        print("leased", flush=True)
        while True:
            for worker in run.workers:
                await worker.beat()
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1])))
