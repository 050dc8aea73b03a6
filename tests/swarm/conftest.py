"""Loads the helper modules of this folder; pytest's importlib mode keeps it off the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def allreduce_rig() -> ModuleType:
    return load("allreduce_rig")


@pytest.fixture(scope="session")
def worker_rig() -> ModuleType:
    return load("worker_rig")
