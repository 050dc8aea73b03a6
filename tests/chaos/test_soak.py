"""A whole run under faults, three minutes with its start and its end: nothing is lost.

The same as ``make soak``, shorter and with fewer workers; see docs/resilience.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos_soak import soak
from chaos_soak_run import Shape
from chaos_soak_table import as_text

SEED = 7
FAULTS = 6
SHAPE = Shape(workers=6, sequences=16384)

# Generous: two dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(1200)]


def test_nothing_is_lost_in_minutes_of_faults(tmp_path: Path) -> None:
    outcome = soak(tmp_path / "soak", SEED, 2.0, SHAPE, faults=FAULTS)
    assert not outcome.wrong, as_text(outcome)
    assert len(outcome.fired) >= FAULTS, as_text(outcome)
