"""The database: one transaction for each request, all of them on one writer thread.

Invariants:

* :meth:`Database.run` either commits everything that its function did or nothing of it.
* Functions run one after the other, in the order of the calls, on a thread of their own: the
  event loop never waits for a disk, and no two requests see each other half-done.
* SQLite runs with a write-ahead log, ``synchronous=FULL`` (an acknowledged record survives a
  power cut) and enforced foreign keys.
* Each transaction takes the write lock at its start (on PostgreSQL an advisory lock), so that a
  command-line program, an auditor or another machine waits instead of failing half-way, and the
  log has one writer at a time.
* A database that is away, locked or full is a passing failure. When it goes away in the middle of
  a commit nobody knows whether that was done: :class:`OutcomeUnknown`. Everything that is run here
  is safe to be asked for again, and finds out.
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
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from protocol.errors import TransientError, UsageError

T = TypeVar("T")

_LOCK_WAIT_S = 30
_CONNECT_S = 10
_WRITE_LOCK = int.from_bytes(b"barnrais", "big") >> 1
"""The advisory lock of whoever writes; it is the database's, so two runs must not share one."""

_POSTGRES = {
    "connect_timeout": _CONNECT_S,
    # A database behind a dead way is noticed within half a minute, and waited for no longer.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": f"-c lock_timeout={_LOCK_WAIT_S}s",
}
"""Unless the URL says otherwise."""

_MIGRATIONS = Path(__file__).parent / "migrations"


class DatabaseAway(TransientError):
    """The database is locked, full, shut down or cannot be reached: nothing was changed."""


class OutcomeUnknown(DatabaseAway):
    """The database went away in the middle of a commit: it may be done, or not."""


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
        self.on_away: Callable[[DatabaseAway], None] = lambda _: None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database")

    async def run(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in one transaction on the writer thread and return what it returns.

        What it returns must not be a mapped row: those end with the session.

        Raises:
            DatabaseAway: it was locked, full or away; nothing was changed.
            OutcomeUnknown: it went away while this was committed.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._writer, self._once, fn)
        except DatabaseAway as error:
            self.on_away(error)
            raise

    def _once(self, fn: Callable[[Session], T]) -> T:
        with self.session() as session:
            return fn(session)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction on the calling thread, for command-line programs.

        Raises:
            DatabaseAway: it was locked, full or away; nothing was changed.
            OutcomeUnknown: it went away while this was committed.
            UsageError: its file is damaged.
        """
        with self._explained(), Session(self.engine) as session:
            yield session
            session.flush()
            self._commit(session)

    def _commit(self, session: Session) -> None:
        try:
            session.commit()
        except DBAPIError as error:
            if not _passing(error) or _full(error):
                raise
            raise OutcomeUnknown(
                f"the database went away while it wrote ({error.orig}): this may be done or not, "
                "and asking again finds out"
            ) from error

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
        except DBAPIError as error:
            if _passing(error):
                raise DatabaseAway(
                    f"the database is not available: {_first_line(error)}; nothing was changed. "
                    "Check that it runs, and the space and the permissions of its disk, then try "
                    "again"
                ) from error
            # The class itself is what SQLite says of a damaged file; its other subclasses are bugs.
            if type(error) is not DatabaseError:
                raise
            raise UsageError(
                f"the database {self.engine.url.render_as_string()} is damaged ({error.orig}): "
                "stop the coordinator and restore the file from a backup"
            ) from error


def _passing(error: DBAPIError) -> bool:
    """Locked, full, shut down, restarted, unreachable: not a bug of ours, nor damage."""
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated


def _full(error: DBAPIError) -> bool:
    """SQLite writes at the commit; when there is no space it has undone everything by itself."""
    return getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL"


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).splitlines() or [type(error.orig).__name__])[0]


def _connect(url: str) -> Engine:
    if make_url(url).get_backend_name() == "postgresql":
        given = make_url(url).query
        chosen = {name: value for name, value in _POSTGRES.items() if name not in given}
        # Connections that a restart of the database closed are replaced before they are used.
        engine = create_engine(url, pool_pre_ping=True, connect_args=chosen)
        event.listen(engine, "begin", _take_write_lock)
        return engine
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
    cursor.execute("PRAGMA secure_delete = ON")  # what somebody had erased is overwritten
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _take_write_lock(connection: Connection) -> None:
    # Until the end of the transaction, however it ends. What is read after it is what the writer
    # before committed: each statement sees the newest rows (READ COMMITTED, PostgreSQL's default).
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")
