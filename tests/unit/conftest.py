from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def engine_rig() -> ModuleType:
    """``tests/engine_rig.py``: an engine without a network, and real members."""
    path = Path(__file__).parent.with_name("engine_rig.py")
    spec = importlib.util.spec_from_file_location("engine_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def boot(
    engine_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """``await boot(round={"min_members": 2})``: a started engine on a new run."""
    rigs = []

    async def start(*, rig: dict[str, Any] | None = None, **manifest: Any) -> Any:
        made = engine_rig.Rig(tmp_path, make_manifest(**manifest), **(rig or {}))
        await made.boot()
        rigs.append(made)
        return made

    yield start
    for made in rigs:
        made.database.close()
