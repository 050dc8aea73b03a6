"""Runs in which people act. The folder's modules import each other by their plain names."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from acts_rig import Acts, with_keys

from coordinator.context import EngineOptions


@pytest.fixture
async def start_acts(
    engine_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Acts]]]:
    """``await start_acts(inner={"max_steps": 3})``: a started engine on a new run."""
    started: list[Acts] = []

    async def start(*, options: EngineOptions | None = None, **manifest: Any) -> Acts:
        run = make_manifest(verification=engine_rig.QUIET, **manifest)
        made = with_keys(engine_rig.Rig(tmp_path, run, options=options or EngineOptions()))
        await made.boot()
        acts = Acts(made)
        acts.store(made.keys.delegations)
        started.append(acts)
        return acts

    yield start
    for acts in started:
        acts.rig.database.close()
