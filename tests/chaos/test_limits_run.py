"""An honest run goes on under every flood at once: coordinator, anchor and two workers, flooded."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from chaos_limits_rig import flooding, swarm_rig

from protocol.link import JoinLink

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

ROUNDS = 3
WORKERS = ("ada", "grace")
FLOOD_S = 240  # at most: they end with the run
FLOODS = (
    ("crowd", "--count", 1000, "--many"),
    ("loris", "--count", 100),
    ("readers", "--count", 40),
    ("uploads", "--count", 20),
    ("keys", "--count", 2),
    ("strangers", "--count", 2),
)


async def test_a_run_settles_its_rounds_under_every_flood(tmp_path: Path) -> None:
    rigs = swarm_rig("worker_rig")
    with rigs.open_rig(tmp_path) as rig:
        rig.init(max_rounds=ROUNDS, duration_s=20.0, grace_s=6.0, min_members=2)
        coordinator = rig.serve()
        await asyncio.to_thread(coordinator.wait_for, "Join link")
        # Known before the floods, as most devices are; no round begins before all of these stand.
        pause = ("coordinator", "pause", "--run-dir", str(rig.run))
        await asyncio.to_thread(rigs.barnraise, *pause)
        for name in WORKERS:
            await asyncio.to_thread(rig.join, name)
        workers = [rig.work(name, "--until-finished") for name in WORKERS]
        for worker in workers:
            await asyncio.to_thread(worker.wait_for, "paused")
        async with AsyncExitStack() as floods:
            link = JoinLink.parse(rig.link)
            for attack, *options in FLOODS:
                flood = flooding(link, attack, *options, "--seconds", FLOOD_S)
                await (await floods.enter_async_context(flood)).hear("standing")
            resume = ("coordinator", "resume", "--run-dir", str(rig.run))
            await asyncio.to_thread(rigs.barnraise, *resume)
            for worker in workers:
                assert await asyncio.to_thread(worker.wait, 400) == 0, worker.text()[-3000:]
        assert coordinator.popen.poll() is None
        said = coordinator.text()
        assert "Traceback" not in said
        assert not re.search(r'"event": "(round_skipped|call_failed)"', said)
        assert len(re.findall(r'"event": "round_settled"', said)) == ROUNDS
        for name in WORKERS:  # every unit was merged, and is paid for
            listed = rigs.barnraise("worker", "receipts", "--home", str(rig.home(name)), "--json")
            states = [receipt["state"] for receipt in json.loads(listed.stdout)]
            assert states == ["verified"] * ROUNDS
        url = f"sqlite:///{rig.run}/coordinator.db"
        rigs.barnraise("ledger", "verify", "--db", url, "--root", link.root)
