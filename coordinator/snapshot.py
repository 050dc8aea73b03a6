"""One consistent picture of a run's database, taken while the coordinator writes.

SQLite copies itself in one read transaction (``VACUUM INTO``), which no writer waits for.
PostgreSQL is dumped by its own ``pg_dump``, in the transaction that the blobs' names are read in.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from protocol.errors import BadDigest, TransientError, UsageError

SQLITE, PGDUMP = "database.sqlite", "database.pgdump"
_LOCK_WAIT_S = 60.0
_SAID_CHARS = 2000


@dataclass(frozen=True)
class Snapshot:
    """A dump, and a session that reads what is in it."""

    name: str  # in a backup
    file: Path
    session: Session


@contextmanager
def take_snapshot(url: str, scratch: Path) -> Iterator[Snapshot]:
    """Dump the database into ``scratch``.

    Args:
        url: SQLAlchemy URL.
        scratch: an empty folder; the dump stays in it.

    Raises:
        UsageError: the database is damaged, or a program that dumps it is missing.
        TransientError: it is away, or the disk is full.
    """
    parsed = make_url(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            yield from _of_sqlite(Path(parsed.database or ""), scratch / SQLITE)
        elif parsed.get_backend_name() == "postgresql":
            yield from _of_postgresql(parsed, scratch / PGDUMP)
        else:
            raise UsageError(
                f"cannot back up a {parsed.get_backend_name()} database: use SQLite or PostgreSQL"
            )
    except DBAPIError as error:
        raise TransientError(f"cannot read the database: {error.orig}") from error


def _of_sqlite(source: Path, target: Path) -> Iterator[Snapshot]:
    target.unlink(missing_ok=True)
    target.touch(0o600)  # VACUUM takes an empty file, and would make one for everybody to read
    try:
        uri = f"file:{quote(str(source.absolute()))}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_WAIT_S)) as database:
            database.execute("VACUUM INTO ?", (str(target),))
        with closing(sqlite3.connect(target)) as copy:
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise TransientError(f"cannot copy the database {source}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise UsageError(_damaged(source, str(error))) from error
    if found != "ok":
        raise UsageError(_damaged(source, str(found)))
    engine = create_engine(f"sqlite:///{target}")
    try:
        with Session(engine) as session:
            yield Snapshot(SQLITE, target, session)
    finally:
        engine.dispose()


def _damaged(source: Path, found: str) -> str:
    return (
        f"the database {source} is damaged ({found}): nothing was backed up. Keep the backups "
        "that there are, and restore the newest one that verifies"
    )


def _of_postgresql(url: URL, target: Path) -> Iterator[Snapshot]:
    program = need_program("pg_dump")
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    try:
        with engine.connect() as connection, connection.begin():
            name = connection.scalar(text("SELECT pg_export_snapshot()"))
            target.unlink(missing_ok=True)
            target.touch(0o600)
            run_postgres(
                url, program, "--format=custom", "--no-owner", "--no-privileges",
                f"--snapshot={name}", f"--file={target}",
            )  # fmt: skip
            with Session(connection) as session:
                yield Snapshot(PGDUMP, target, session)
    finally:
        engine.dispose()


def need_program(name: str) -> str:
    """Where one of PostgreSQL's programs is.

    Raises:
        UsageError: not on this machine.
    """
    program = shutil.which(name)
    if program is None:
        raise UsageError(
            f"{name} is needed for a run whose database is PostgreSQL, and is not on this "
            "machine: install PostgreSQL's client programs, of the server's version or newer"
        )
    return program


def run_postgres(url: URL, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs on a database; the password is not for other users to see.

    Raises:
        UsageError: it failed; says why.
    """
    plain = url.set(drivername="postgresql", password=None)
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    done = subprocess.run(
        [program, f"--dbname={plain.render_as_string()}", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UsageError(f"{program} failed: {done.stderr.strip()[-_SAID_CHARS:]}")


def restore_dump(name: str, dump: Path, url: str) -> None:
    """Fill an empty database from a dump.

    Raises:
        UsageError: the database is not empty, not of the dump's kind, or the dump is damaged.
        TransientError: the database is away.
    """
    parsed = make_url(url)
    kind = {SQLITE: "sqlite", PGDUMP: "postgresql"}[name]
    if parsed.get_backend_name() != kind:
        raise UsageError(
            f"the backup holds a {kind} database, but [server] database in its run.toml is "
            f"{parsed.render_as_string()}"
        )
    if name == SQLITE:
        _place_sqlite(dump, Path(parsed.database or ""))
        return
    _require_empty(url)
    run_postgres(
        parsed, need_program("pg_restore"), "--exit-on-error", "--single-transaction",
        "--no-owner", "--no-privileges", str(dump),
    )  # fmt: skip


def _place_sqlite(dump: Path, target: Path) -> None:
    if target.exists():
        raise UsageError(
            f"there is a database at {target} already: it is never overwritten; move it away first"
        )
    with closing(sqlite3.connect(dump)) as copy:
        try:
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
    if found != "ok":
        raise BadDigest(f"the backed up database is damaged: {found}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(dump, target)


def _require_empty(url: str) -> None:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = connection.scalar(
                text("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")
            )
    except DBAPIError as error:
        raise TransientError(f"cannot reach the database: {error.orig}") from error
    finally:
        engine.dispose()
    if tables:
        raise UsageError(
            "the database of [server] database is not empty: it is never overwritten; make an "
            "empty one with 'createdb', and name it in run.toml with --database"
        )
