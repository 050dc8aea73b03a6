from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator import schema
from coordinator.database import Database
from ledger.schema import Base


@pytest.fixture
def database(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'coordinator.db'}")
    database.upgrade()
    yield database
    database.close()


def test_migrating_from_empty_gives_the_metadata(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_is_idempotent(database: Database) -> None:
    database.upgrade()
    with database.session() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).all()


async def test_a_failed_function_leaves_nothing(database: Database) -> None:
    def fail(session: Session) -> None:
        session.add(schema.ControlRow(run_id=b"r"))
        session.flush()
        raise KeyError("half-way")

    with pytest.raises(KeyError):
        await database.run(fail)
    assert await database.run(lambda s: s.get(schema.ControlRow, 1)) is None


async def test_transactions_run_one_after_the_other(database: Database) -> None:
    def add_one(session: Session) -> None:
        row = session.get(schema.ControlRow, 1) or schema.ControlRow(run_id=b"r", alive_at_s=0.0)
        row.alive_at_s += 1
        session.add(row)

    await asyncio.gather(*(database.run(add_one) for _ in range(20)))
    with database.session() as session:
        row = session.get(schema.ControlRow, 1)
        assert row is not None and row.alive_at_s == 20


@pytest.mark.parametrize(
    "intervals",
    [
        [(0, 10, None), (5, 15, 5)],  # overlapping: 5 is nobody's end
        [(0, 10, None), (12, 15, 12)],  # gap
        [(0, 10, None), (0, 10, None)],  # twice
        [(3, 10, None)],  # does not begin at 0
        [(0, 10, None), (10, 20, 10), (10, 15, 10)],  # fork
    ],
)
def test_intervals_are_a_chain(database: Database, intervals: list[tuple]) -> None:
    with pytest.raises(IntegrityError), database.session() as session:
        session.add_all(
            schema.IntervalRow(
                epoch=0, start=start, stop=stop, previous_stop=previous, state=schema.FREE
            )
            for start, stop, previous in intervals
        )
