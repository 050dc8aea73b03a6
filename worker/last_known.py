"""What is known of a worker that does not run: from its folder alone, without its network."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from typing import Any

from protocol.errors import ProtocolError
from protocol.identity import Identity
from worker.config import Home, WorkerConfig
from worker.pause import as_kept


def last_known(home: Home) -> dict[str, Any]:
    """Facts for ``status``; reads only, and leaves out what cannot be read."""
    facts: dict[str, Any] = {"running": False, "home": str(home.path), "joined": False}
    with suppress(ProtocolError):
        config = WorkerConfig.load(home.config)
        facts |= {"joined": True, "confirmed": config.confirmed}
        facts["run"] = config.join_link.run_id.hex()[:16]
    with suppress(ProtocolError):
        facts["worker"] = Identity.load(home.identity).peer_id
    with suppress(sqlite3.Error):
        facts |= _journal(home)
    return facts


def _journal(home: Home) -> dict[str, Any]:
    # Not by Journal: it may have to repair, which is for the worker that starts.
    with closing(sqlite3.connect(f"{home.journal.as_uri()}?mode=ro", uri=True)) as journal:

        def count(sql: str, *values: object) -> int:
            return int(journal.execute(sql, values).fetchone()[0])

        paused = journal.execute("SELECT value FROM meta WHERE key = 'paused'").fetchone()
        return {
            "paused": as_kept(paused[0] if paused else None) is not None,
            "units_trained": count("SELECT count(*) FROM lease WHERE state = 'trained'"),
            "receipts_held": count("SELECT count(*) FROM receipt WHERE leaf IS NOT NULL"),
            "receipts_pending": count(
                "SELECT count(*) FROM receipt WHERE leaf IS NULL AND asked_until_s > ?",
                int(time.time()),
            ),
        }
