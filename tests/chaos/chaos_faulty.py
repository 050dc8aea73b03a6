"""How a test starts a real command in which a fault fires at one exact point."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROCESS = Path(__file__).with_name("chaos_process.py")


def program(points: str, *faults: dict[str, Any]) -> list[str]:
    """What stands for ``-m barnraise`` after the interpreter.

    Args:
        points: the ``chaos_points_*`` module that knows the points.
        faults: fields of :class:`chaos_injector.Fault`.
    """
    words = [str(_PROCESS), "--points", points]
    for fault in faults:
        words += ["--fault", json.dumps(fault)]
    return [*words, "--"]


def command(points: str, *faults: dict[str, Any]) -> list[str]:
    """As :func:`program`, with the interpreter."""
    return [sys.executable, *program(points, *faults)]
