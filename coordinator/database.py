"""The database: one transaction for each request, all of them on one writer thread.

Invariants:

* :meth:`Database.run` either commits everything that its function did or nothing of it.
* Functions run one after the other, in the order of the calls, on a thread of their own: the
  event loop never waits for a disk, and no two requests see each other half-done.
* SQLite runs with a write-ahead log, ``synchronous=FULL`` (an acknowledged record survives a
  power cut) and enforced foreign keys; each transaction takes the write lock at its start, so
  that a command-line program in another process waits instead of failing half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from protocol.errors import TransientError, UsageError

T = TypeVar("T")

_LOCK_WAIT_S = 30
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Tables of the coordinator and the ledger, by URL."""

    def __init__(self, url: str) -> None:
        """Connect lazily.

        Args:
            url: SQLAlchemy URL, for example ``sqlite:///run/coordinator.db`` or
                ``postgresql+psycopg://...``.
        """
        self.url = url
        self.engine = _connect(url)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database")

    async def run(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in one transaction on the writer thread and return what it returns.

        What it returns must not be a mapped row: those end with the session.

        Raises:
            TransientError: the database was locked or away; nothing was changed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._once, fn)

    def _once(self, fn: Callable[[Session], T]) -> T:
        with self.session() as session:
            return fn(session)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction on the calling thread, for command-line programs.

        Raises:
            TransientError: the database was locked, full or away; nothing was changed.
            UsageError: its file is damaged.
        """
        with self._explained(), Session(self.engine) as session, session.begin():
            yield session

    def require(self) -> None:
        """Insist that a SQLite file is there: connecting would make an empty one.

        Raises:
            UsageError: it is not.
        """
        url = self.engine.url
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise UsageError(
                f"the database {url.database} is missing: restore it from a backup, or correct "
                "[server] database in run.toml"
            )

    def upgrade(self) -> None:
        """Bring the tables to the newest revision; makes them in an empty database.

        Raises:
            TransientError, UsageError: as :meth:`session`.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._explained(), self.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Finish what was begun, then let go of thread and connections."""
        self._writer.shutdown(wait=True)
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise TransientError(
                f"the database is not available: {error.orig}; nothing was changed. Check the "
                "space and the permissions of its disk, then try again"
            ) from error
        except DatabaseError as error:
            # The class itself is what SQLite says of a damaged file; its other subclasses are bugs.
            if type(error) is not DatabaseError:
                raise
            raise UsageError(
                f"the database {self.engine.url.render_as_string()} is damaged ({error.orig}): "
                "stop the coordinator and restore the file from a backup"
            ) from error


def _connect(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _configure_sqlite(connection: Any, _: object) -> None:
    # The driver must not begin transactions by itself: it begins them too late for DDL and
    # without the write lock (SQLAlchemy, "SQLite: serializable isolation").
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_LOCK_WAIT_S * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
