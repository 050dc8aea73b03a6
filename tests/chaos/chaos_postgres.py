"""A PostgreSQL of the test's own, on a unix socket, that can be stopped and started."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"


def _program(name: str) -> str:
    """Debian keeps the server's programs off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or str(found[-1] if found else name)


class Postgres:
    """A cluster in a folder; the server refuses to be root, so it runs as its own user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self.url = f"postgresql+psycopg://{_USER}@/postgres?host={folder}"
        self._do("initdb", "-A", "trust", "-U", _USER, "--no-sync", "-D", str(self._data))

    def start(self) -> None:
        # Durable (no -F): an immediate stop must lose nothing that was committed.
        options = f"-k {self._folder} -c listen_addresses=''"
        log = str(self._folder / "log")
        self._do("pg_ctl", "-w", "-D", str(self._data), "-l", log, "-o", options, "start")

    def stop(self, mode: str) -> None:
        """End it ``fast`` (connections are told) or ``immediate`` (as a crash)."""
        self._do("pg_ctl", "-w", "-D", str(self._data), "-m", mode, "stop")

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
def postgres() -> Iterator[Postgres]:
    """A running server; it and its folder are gone afterwards."""
    # Not in pytest's folder, which its user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="chaos-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop("immediate")
    finally:
        shutil.rmtree(folder)
