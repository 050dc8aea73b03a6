"""What the worker makes of the run's events."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.watch import Watch


@pytest.mark.parametrize(
    ("phase", "round_", "deadline_ms", "expected"),
    [
        ("TRAINING", 4, 9_000, 9_000),  # moved by the coordinator's downtime
        ("TRAINING", 4, 1_000, 5_000),  # what was signed is never cut short
        ("TRAINING", 5, 9_000, 5_000),  # another round's
        ("COMMITTING", 4, 9_000, 5_000),  # the grace is for commits only
    ],
)
def test_when_training_ends(phase: str, round_: int, deadline_ms: int, expected: int) -> None:
    watch = Watch(SimpleNamespace(greeting=SimpleNamespace(run_head=None)))  # type: ignore[arg-type]
    watch._take(api.RunEvent(phase=phase, round=round_, deadline_ms=deadline_ms))
    assert watch.training_deadline_ms(wire.Assignment(round=4, deadline_ms=5_000)) == expected
