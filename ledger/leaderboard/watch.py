"""Tells cheaply whether anything was written to a database since one last looked."""

from __future__ import annotations

import threading

from sqlalchemy import Connection, Engine, text

_ASK = {
    # Changes when another connection commits to the file; read from its first page.
    "sqlite": text("PRAGMA data_version"),
    # Changes when any transaction that wrote has ended.
    "postgresql": text("SELECT CAST(pg_current_snapshot() AS text)"),
}


class Watch:
    """One connection, kept for asking; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ask = _ASK.get(engine.dialect.name)
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def token(self) -> object:
        """Equal to an earlier one if nothing was written in between; else look yourself.

        Raises:
            SQLAlchemyError: the database cannot be read.
        """
        if self._ask is None:
            return object()
        with self._lock:
            if self._connection is None:
                connection = self._engine.connect()
                self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            try:
                return self._connection.scalar(self._ask)
            except BaseException:
                self._connection.invalidate()
                self._close()
                raise

    def close(self) -> None:
        """Release the connection."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
