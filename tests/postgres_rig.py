"""A real PostgreSQL of the tests' own, on a unix socket, that can be stopped and started.

It runs as a process group of its own user, in a folder that is gone afterwards. Nothing listens on
the network.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url

from ledger.schema import Base

_USER = "postgres"


def _program(name: str) -> str:
    """Debian keeps the server's programs off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or str(found[-1] if found else name)


class Postgres:
    """A cluster in a folder; the server refuses to be root, so it runs as its own user."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Make the cluster.

        Args:
            folder: an empty one that the server's user may enter.
            durable: an ``immediate`` stop loses nothing that was committed; slower.
        """
        self._folder = folder
        self._data = folder / "data"
        self._durable = durable
        self._numbers = itertools.count()
        self.url = self._url_of("postgres")
        # Names are compared by bytes in one place and by language in another, if we do not take
        # care: a language's rules, as an organiser's server has them.
        self._do(
            *("initdb", "-A", "trust", "-U", _USER, "--no-sync", "-D", str(self._data)),
            *("--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"),
        )

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses=''"
        if not self._durable:
            options += " -F -c synchronous_commit=off -c full_page_writes=off"
        log = str(self._folder / "log")
        self._do("pg_ctl", "-w", "-D", str(self._data), "-l", log, "-o", options, "start")

    def stop(self, mode: str) -> None:
        """End it ``fast`` (connections are told) or ``immediate`` (as a crash)."""
        self._do("pg_ctl", "-w", "-D", str(self._data), "-m", mode, "stop")

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """URL of a fresh database, a copy of ``template``; gone afterwards."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self._url_of(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def make_template(self) -> str:
        """Name of a database with the tables of the record, to be copied."""
        name = "ledger_template"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        engine = create_engine(self._url_of(name))
        Base.metadata.create_all(engine)
        engine.dispose()
        return name

    def execute(self, statement: str) -> None:
        """Run a statement outside of any transaction, as the server's owner."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def _url_of(self, database: str) -> str:
        url = make_url("postgresql+psycopg://")
        shown = url.set(username=_USER, database=database, query={"host": str(self._folder)})
        return shown.render_as_string()

    def _do(self, *command: str) -> None:
        whole = [_program(command[0]), *command[1:]]
        if os.geteuid() == 0:
            given = ("--reuid", _USER, "--regid", _USER, "--init-groups")
            whole = ["setpriv", *given, *whole]
        done = subprocess.run(
            whole,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=100,
            check=False,
            cwd="/",
        )
        assert done.returncode == 0, f"{command[0]} failed: {done.stderr.decode()}"


@contextmanager
def postgres(*, durable: bool = True) -> Iterator[Postgres]:
    """A running server; it and its folder are gone afterwards."""
    # Not in pytest's folder, which its user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="barnraise-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
        server = Postgres(folder, durable=durable)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop("immediate")
    finally:
        shutil.rmtree(folder)
