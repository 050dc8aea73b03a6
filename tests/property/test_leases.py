"""Every batch is trained exactly once in an epoch, whatever the order of events."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator import leases
from coordinator.database import Database
from coordinator.schema import CONSUMED, FREE, LEASED, IntervalRow

BATCHES = 40


class ExactlyOnce(RuleBasedStateMachine):
    """Random interleavings of lease, merge (whole or partial), expiry, skip and restart."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.database = Database("sqlite://")
        self._make_tables()
        self.session = Session(self.database.engine)
        self.open: dict[bytes, leases.Lease] = {}
        self.merged: Counter[tuple[int, int]] = Counter()
        self.serial = 0

    def _make_tables(self) -> None:
        IntervalRow.__table__.create(self.database.engine)

    def teardown(self) -> None:
        self.session.close()
        self.database.close()

    @rule(target=held, wanted=st.integers(1, 25))
    def lease(self, wanted: int) -> bytes:
        self.serial += 1
        key = self.serial.to_bytes(16, "big")
        self.open[key] = lease = leases.take(self.session, key, wanted, BATCHES)
        assert 1 <= lease.steps <= wanted
        self.session.commit()
        return key

    @rule(key=consumes(held), part=st.floats(0, 1))
    def merge(self, key: bytes, part: float) -> None:
        if (lease := self.open.pop(key, None)) is None:
            return
        steps = max(1, round(part * lease.steps))
        leases.consume(self.session, key, steps)
        self.merged.update((lease.epoch, lease.start + i) for i in range(steps))
        self.session.commit()

    @rule(key=consumes(held))
    def expire(self, key: bytes) -> None:
        assert leases.release(self.session, key) == (self.open.pop(key, None) is not None)
        self.session.commit()

    @rule()
    def skip(self) -> None:
        for key in self.open:
            assert leases.release(self.session, key)
        self.open.clear()
        self.session.commit()

    @rule(wanted=st.integers(1, 25))
    def die_before_commit(self, wanted: int) -> None:
        leases.take(self.session, b"lost", wanted, BATCHES)
        self.session.rollback()

    @invariant()
    def no_batch_is_merged_twice(self) -> None:
        assert all(count == 1 for count in self.merged.values())

    @invariant()
    def the_table_agrees(self) -> None:
        seen: Counter[str] = Counter()
        position: dict[int, int] = {}
        last: dict[int, str] = {}
        rows = self.session.scalars(
            select(IntervalRow).order_by(IntervalRow.epoch, IntervalRow.start)
        ).all()
        for row in rows:
            assert row.start == position.get(row.epoch, 0)
            assert row.state == LEASED or row.state != last.get(row.epoch), "neighbours are joined"
            position[row.epoch], last[row.epoch] = row.stop, row.state
            seen[row.state] += row.stop - row.start
            if row.state == LEASED:
                lease = self.open[row.assignment_id or b""]
                assert (lease.epoch, lease.start, lease.stop) == (row.epoch, row.start, row.stop)
        self.session.rollback()
        assert all(stop == BATCHES for stop in position.values())
        assert seen[CONSUMED] == sum(self.merged.values())
        assert seen[LEASED] == sum(lease.steps for lease in self.open.values())
        assert seen.total() == BATCHES * len(position) and seen[FREE] >= 0


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    ("speed", "left", "steps"),
    [(100.0, 10.0, 9), (0.0, 10.0, 50), (1e9, 10.0, 50), (5.0, 10.0, 0), (100.0, -1.0, 0)],
)
def test_steps_follow_speed_and_time(speed: float, left: float, steps: int) -> None:
    assert steps == leases.steps_for(
        speed_tokens_per_s=speed, time_left_s=left, tokens_per_step=100, max_steps=50
    )
