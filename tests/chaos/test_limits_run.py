"""An honest run goes on under every flood at once: coordinator, anchor and two workers, flooded."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from chaos_limits_rig import flooding

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


def _worker_rig() -> Any:
    path = Path(__file__).parents[1] / "swarm" / "worker_rig.py"
    spec = importlib.util.spec_from_file_location("worker_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_run_settles_its_rounds_under_every_flood(tmp_path: Path) -> None:
    rigs = _worker_rig()
    with rigs.open_rig(tmp_path) as rig:
        rig.init(max_rounds=ROUNDS, duration_s=8.0, grace_s=6.0, min_members=2)
        coordinator = rig.serve()
        await asyncio.to_thread(coordinator.wait_for, "Join link")
        for name in WORKERS:
            await asyncio.to_thread(rig.join, name)
        async with AsyncExitStack() as floods:
            link = JoinLink.parse(rig.link)
            for attack, *options in FLOODS:
                flood = flooding(link, attack, *options, "--seconds", FLOOD_S)
                await (await floods.enter_async_context(flood)).hear("standing")
            workers = [rig.work(name, "--until-finished") for name in WORKERS]
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
