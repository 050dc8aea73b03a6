from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, MetaData, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator import schema
from coordinator.database import _MIGRATIONS, Database
from ledger.authority import store_delegations
from ledger.schema import Base
from ledger.sources import DatabaseSource
from ledger.verify import verify

BOTH_DATABASES = True


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.upgrade()
    yield database
    database.close()


def differences(database: Database) -> list[Any]:
    """Between the tables that are there and those that the program expects."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


def test_migrating_from_empty_gives_the_metadata(database: Database) -> None:
    assert differences(database) == []


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


PREVIOUS = "0002"
"""The schema of the release before this one."""


def fill_previous(url: str, filled: Engine) -> None:
    """Tables of the previous release, with the rows of a real run as far as it had them."""
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, PREVIOUS)
    tables = MetaData()
    tables.reflect(database.engine)
    with database.session() as session, filled.connect() as source:
        for table in tables.sorted_tables:
            now = Base.metadata.tables.get(table.name)
            if now is None:
                continue  # alembic's own
            kept = [column for column in now.columns if column.name in table.columns]
            rows = [dict(row._mapping) for row in source.execute(select(*kept))]
            if rows:
                session.execute(insert(table), rows)
            if rows and "id" in table.columns and database.engine.dialect.name == "postgresql":
                session.execute(  # rows that bring their number do not count
                    text(
                        f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), max(id)) "
                        f"FROM {table.name}"
                    )
                )
    database.close()


async def test_a_run_of_the_previous_release_goes_on(
    boot: Any, database_url: str, engine_rig: Any
) -> None:
    """Its record verifies as before, and its coordinator starts and settles the next round."""
    rig = await boot(round={"min_members": 1})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await play(rig, ada)
    with rig.database.session() as session:
        store_delegations(session, rig.keys.delegations)  # as serving a run does
    with rig.database.session() as session:
        before = verify(DatabaseSource(session), root=engine_rig.ROOT.peer_id)
    rig.database.engine.dispose()
    old_url, rig.url = rig.database.url, database_url.replace("coordinator.db", "upgraded.db")
    fill_previous(rig.url, rig.database.engine)
    rig.database.close()
    upgraded = Database(rig.url)
    upgraded.upgrade()
    assert differences(upgraded) == []
    with upgraded.session() as session:
        assert verify(DatabaseSource(session), root=engine_rig.ROOT.peer_id) == before
    upgraded.close()
    assert rig.url != old_url
    await rig.boot()
    await play(rig, ada)
    with rig.database.session() as session:
        after = verify(DatabaseSource(session), root=engine_rig.ROOT.peer_id)
    assert after.rounds == before.rounds + 1 == 2


async def play(rig: Any, member: Any) -> None:
    """A round of one member, whole."""
    await member.lease()
    member.train()
    await member.commit()
    await rig.gather()
    await rig.submit(rig.results())
    assert await rig.engine.settle()
    await rig.engine.evaluate()
