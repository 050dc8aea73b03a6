"""A database that is only read: the database itself refuses anything else.

Whoever shows or checks the record opens it so: a flaw in a page cannot change what it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session

from ledger.schema import LogLeaf
from protocol.errors import UsageError

URL_HELP = "Database URL, for example sqlite:///run/coordinator.db"


def read_only_engine(url: str) -> Engine:
    """Connect, lazily, to a database of which nothing can be changed this way.

    Raises:
        UsageError: this is no URL of a database, or its driver is not installed.
    """
    try:
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"not a database URL: {url!r}; {URL_HELP.lower()}") from error
    except ModuleNotFoundError as error:
        kind = url.partition(":")[0]
        raise UsageError(
            f"{kind} needs a driver that is not installed ({error.name}): for PostgreSQL, pip "
            "install 'barnraise[postgres]' and write postgresql+psycopg://..."
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _read_only_sqlite)
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _read_only_postgresql)
    return engine


@contextmanager
def open_session(url: str) -> Iterator[Session]:
    """A session on a database that holds a log.

    Raises:
        UsageError: there is none, it holds no record, or it cannot be read.
    """
    engine = read_only_engine(url)
    file = engine.url.database
    if engine.dialect.name == "sqlite" and (not file or not Path(file).is_file()):
        raise UsageError(f"there is no database at {file or url}")
    try:
        with Session(engine) as session:
            if not inspect(session.connection()).has_table(LogLeaf.__tablename__):
                raise UsageError(f"{engine.url.render_as_string()} holds no public record")
            yield session
    except DatabaseError as error:
        shown = file if engine.dialect.name == "sqlite" else engine.url.render_as_string()
        raise UsageError(
            f"cannot read the database {shown}: {error.orig}; if it is damaged, restore it from a "
            "backup"
        ) from error
    finally:
        engine.dispose()


def _read_only_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only=ON")
    cursor.close()


def _read_only_postgresql(connection: Any, _record: object) -> None:
    connection.read_only = True  # every transaction begins as READ ONLY
