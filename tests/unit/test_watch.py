"""What the worker makes of the run's events."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
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


class Open:
    """A session that believes every record which some key signed."""

    greeting = SimpleNamespace(run_head=None)

    @staticmethod
    def open_round_record(envelope: wire.Envelope, kind: type[Any]) -> Any:
        return open_envelope(envelope, kind)


def rosters(count: int) -> Iterator[wire.Envelope]:
    key = Identity.generate()
    for attempt in range(count):
        yield seal(wire.Roster(run_id=bytes(32), round=9, attempt=attempt), key)


def test_a_coordinator_that_sends_rosters_without_end_fills_no_memory() -> None:
    watch = Watch(Open())  # type: ignore[arg-type]
    for envelope in rosters(200):
        watch.offer_roster(envelope)
    assert len(watch._rosters) == 64
    newest = watch.roster_after(9, 198)
    assert newest is not None and newest.record.attempt == 199


def test_evidence_that_never_ends_fills_no_log() -> None:
    watch, key = Watch(Open()), Identity.generate()  # type: ignore[arg-type]
    with capture_logs() as logs:
        for digest in range(1, 100):
            head = wire.RunHead(run_id=bytes(32), round=9, state_digest=bytes([digest]))
            watch.offer_head(seal(head, key))
    assert [line["log_level"] for line in logs] == ["error"] * 4
    assert watch.head is not None and watch.head.record.state_digest == b"\x01"


def heads(watch: Watch, *rounds: int) -> None:
    key = Identity.generate()
    for round_ in rounds:
        watch.offer_head(seal(wire.RunHead(run_id=bytes(32), round=round_), key))


def test_with_an_overlap_a_round_is_over_with_the_head_after_the_next() -> None:
    watch = Watch(Open(), lag_rounds=1)  # type: ignore[arg-type]
    heads(watch, 4, 5)
    assert watch.head_beyond(4) is not None, "round 4 has closed"
    assert watch.over(4) is None
    assert not watch.has_ended(4)
    watch._take(api.RunEvent(phase="SETTLED", round=4, running_from=5))
    assert watch.has_ended(4)
    assert watch.over(4) is None, "its state is the next head's"
    heads(watch, 6)
    assert watch.over(4) is watch.head


def test_without_an_overlap_a_round_is_over_with_the_next_head() -> None:
    watch = Watch(Open())  # type: ignore[arg-type]
    heads(watch, 4, 5)
    assert watch.over(4) is watch.head
    assert watch.has_ended(4)


def test_a_round_that_is_reduced_beside_it_does_not_move_the_deadline_of_training() -> None:
    watch = Watch(Open(), lag_rounds=1)  # type: ignore[arg-type]
    watch._take(api.RunEvent(phase="TRAINING", round=5, deadline_ms=9_000, running_from=4))
    watch._take(api.RunEvent(phase="GATHER", round=4, deadline_ms=100, running_from=4))
    assert (watch.phase, watch.round) == ("TRAINING", 5)
    assert watch.training_deadline_ms(wire.Assignment(round=5, deadline_ms=5_000)) == 9_000
