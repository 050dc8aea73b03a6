"""What a worker must not forget: its lease, its trained update, what it signed, its receipts.

Invariants (each transaction is durable when it returns; kill -9 may come between any two):

* An update's file is complete under its final name before the journal names it, so a lease
  marked *trained* always has the bytes that its signed Contribution commits to.
* The Contribution and the mark *trained* are one transaction: after a restart either the
  unit is trained again, or exactly the record that may have been sent already is sent again.
* One natural key, one record: a second record under a key never replaces the first.
* A delivered record is kept until its round is over; a receipt is kept for good.
* A full disk undoes the transaction and is a passing failure: what called tries it again.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from protocol.errors import TransientError, UsageError
from protocol.wire import records_pb2 as wire

_VERSION = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS lease (
    assignment_id BLOB PRIMARY KEY,
    round INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'trained', 'ended')),
    assignment BLOB NOT NULL,
    contribution BLOB,
    update_path TEXT,
    CHECK (state != 'trained' OR (contribution IS NOT NULL AND update_path IS NOT NULL))
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    round INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS receipt (
    assignment_id BLOB PRIMARY KEY,
    round INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    leaf BLOB,
    proof TEXT,
    asked_until_s INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS state (
    digest BLOB PRIMARY KEY,
    settled_rounds INTEGER NOT NULL,
    weights_sha256 BLOB NOT NULL,
    momentum_sha256 BLOB
) STRICT;
"""


class LeaseState(StrEnum):
    LEASED = "leased"
    TRAINED = "trained"
    ENDED = "ended"


@dataclass(frozen=True)
class Lease:
    """One assignment as the journal knows it; envelopes as they were signed."""

    assignment_id: bytes
    round: int
    state: LeaseState
    assignment: wire.Envelope
    contribution: wire.Envelope | None
    update_path: Path | None


@dataclass(frozen=True)
class OutboxEntry:
    key: str
    kind: str
    round: int
    envelope: wire.Envelope


@dataclass(frozen=True)
class StoredReceipt:
    """``leaf`` and ``proof`` are empty until the coordinator has settled the credit."""

    assignment_id: bytes
    round: int
    tokens: int
    leaf: bytes
    proof: str


@dataclass(frozen=True)
class CachedState:
    digest: bytes
    settled_rounds: int
    weights_sha256: bytes
    momentum_sha256: bytes | None


class Journal:
    """SQLite file; methods block briefly and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the journal.

        Raises:
            UsageError: the file is damaged, of another version, or cannot be written.
        """
        self._lock = threading.Lock()
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # FULL: in WAL mode anything less may lose the last transactions at a power cut.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            version = self.get("version")
        except (sqlite3.OperationalError, TransientError) as error:
            raise UsageError(
                f"cannot write the journal {path} ({error}): free some disk, or give another --home"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"the journal {path} is damaged ({error}); move it away to begin with a new one "
                "(updates under way are lost, credit is not)"
            ) from error
        if version is None:
            self.put("version", _VERSION)
        elif version != _VERSION:
            raise UsageError(f"the journal {path} is of version {version}: upgrade barnraise")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # ---- small values ------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        self._run(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            key,
            value,
        )

    def bind(self, run_id: bytes, worker: str) -> None:
        """Tie the journal to one run and one key.

        Raises:
            UsageError: it belongs to another already.
        """
        for key, value in (("run_id", run_id.hex()), ("worker", worker)):
            known = self.get(key)
            if known is None:
                self.put(key, value)
            elif known != value:
                raise UsageError(
                    f"this folder belongs to another {key} ({known[:16]}...): "
                    "use another --home for another run or key"
                )

    # ---- the lease under way -----------------------------------------------------------

    def begin(self, assignment_id: bytes, round_: int, assignment: wire.Envelope) -> None:
        """Note a lease; one that is known keeps its state."""
        self._run(
            "INSERT OR IGNORE INTO lease (assignment_id, round, state, assignment) "
            "VALUES (?, ?, 'leased', ?)",
            assignment_id,
            round_,
            assignment.SerializeToString(),
        )

    def trained(self, assignment_id: bytes, contribution: wire.Envelope, update: Path) -> None:
        """The update is on disk and signed: note both, and that it must be delivered."""
        data = contribution.SerializeToString()
        with self._writing(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "UPDATE lease SET state = 'trained', contribution = ?, update_path = ? "
                "WHERE assignment_id = ? AND state = 'leased'",
                (data, str(update), assignment_id),
            )
            self._db.execute(
                "INSERT OR IGNORE INTO outbox (key, kind, round, envelope) "
                "SELECT ?, 'contribution', round, contribution FROM lease "
                "WHERE assignment_id = ? AND state = 'trained'",
                (contribution_key(assignment_id), assignment_id),
            )

    def lease(self, assignment_id: bytes) -> Lease | None:
        row = self._one(f"{_LEASE} WHERE assignment_id = ?", assignment_id)
        return None if row is None else _lease(row)

    def open_leases(self) -> list[Lease]:
        """Leases that have not ended, latest round first."""
        rows = self._all(f"{_LEASE} WHERE state != 'ended' ORDER BY round DESC")
        return [_lease(row) for row in rows]

    def end(self, assignment_id: bytes) -> Path | None:
        """The round is over for this lease.

        Returns:
            Its update file, which is of no more use.
        """
        row = self._one("SELECT update_path FROM lease WHERE assignment_id = ?", assignment_id)
        self._run("UPDATE lease SET state = 'ended' WHERE assignment_id = ?", assignment_id)
        return Path(row[0]) if row and row[0] else None

    # ---- records to deliver ------------------------------------------------------------

    def post(self, key: str, kind: str, round_: int, envelope: wire.Envelope) -> wire.Envelope:
        """Queue a record under its natural key; one that was delivered goes out once more, which
        changes nothing at the coordinator and brings its first answer again.

        Returns:
            The record to send: an earlier one under the same key, if there is one.
        """
        self._run(
            "INSERT INTO outbox (key, kind, round, envelope) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET delivered = 0",
            key,
            kind,
            round_,
            envelope.SerializeToString(),
        )
        row = self._one("SELECT envelope FROM outbox WHERE key = ?", key)
        assert row is not None, "just inserted"
        return wire.Envelope.FromString(row[0])

    def undelivered(self) -> list[OutboxEntry]:
        rows = self._all(
            "SELECT key, kind, round, envelope FROM outbox WHERE NOT delivered ORDER BY rowid"
        )
        return [
            OutboxEntry(row[0], row[1], row[2], wire.Envelope.FromString(row[3])) for row in rows
        ]

    def delivered(self, key: str) -> None:
        self._run("UPDATE outbox SET delivered = 1 WHERE key = ?", key)

    def forget_rounds_before(self, round_: int) -> list[Path]:
        """End what belongs to rounds that are over.

        Reports that the coordinator has not answered stay: they are valid however late they come.

        Returns:
            Update files to delete.
        """
        rows = self._all(
            "SELECT assignment_id FROM lease WHERE round < ? AND state != 'ended'", round_
        )
        files = [self.end(row[0]) for row in rows]
        self._run("DELETE FROM outbox WHERE round < ? AND (delivered OR kind != 'report')", round_)
        self._run("DELETE FROM lease WHERE round < ? AND state = 'ended'", round_)
        return [file for file in files if file is not None]

    # ---- receipts ----------------------------------------------------------------------

    def expect_receipt(
        self, assignment_id: bytes, round_: int, tokens: int, *, patience_s: int
    ) -> None:
        self._run(
            "INSERT OR IGNORE INTO receipt (assignment_id, round, tokens, asked_until_s) "
            "VALUES (?, ?, ?, ?)",
            assignment_id,
            round_,
            tokens,
            int(time.time()) + patience_s,
        )

    def keep_receipt(self, assignment_id: bytes, leaf: bytes, proof: str) -> None:
        self._run(
            "UPDATE receipt SET leaf = ?, proof = ? WHERE assignment_id = ?",
            leaf,
            proof,
            assignment_id,
        )

    def receipts(self) -> list[StoredReceipt]:
        rows = self._all(
            "SELECT assignment_id, round, tokens, leaf, proof FROM receipt ORDER BY round"
        )
        return [StoredReceipt(row[0], row[1], row[2], row[3] or b"", row[4] or "") for row in rows]

    def awaited_receipts(self) -> list[bytes]:
        """Assignments whose receipt is still worth asking for."""
        rows = self._all(
            "SELECT assignment_id FROM receipt WHERE leaf IS NULL AND asked_until_s > ?",
            int(time.time()),
        )
        return [bytes(row[0]) for row in rows]

    # ---- cached states -----------------------------------------------------------------

    def keep_state(self, state: CachedState) -> None:
        self._run(
            "INSERT INTO state VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET "
            "weights_sha256 = excluded.weights_sha256, "
            "momentum_sha256 = coalesce(excluded.momentum_sha256, momentum_sha256)",
            state.digest,
            state.settled_rounds,
            state.weights_sha256,
            state.momentum_sha256,
        )

    def state(self, digest: bytes) -> CachedState | None:
        row = self._one("SELECT * FROM state WHERE digest = ?", digest)
        return None if row is None else CachedState(*row)

    def drop_state(self, digest: bytes) -> None:
        self._run("DELETE FROM state WHERE digest = ?", digest)

    def states(self) -> list[CachedState]:
        """All cached states, newest first."""
        rows = self._all("SELECT * FROM state ORDER BY settled_rounds DESC")
        return [CachedState(*row) for row in rows]

    # ---- SQLite ------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One thread at a time.

        Raises:
            TransientError: the disk is full, or failed.
        """
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise TransientError(
                    f"cannot write {self._path} ({error}): free some disk, it will go on by itself"
                ) from error

    def _run(self, sql: str, *values: object) -> None:
        with self._writing():
            self._db.execute(sql, values)

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._all(sql, *values)
        return rows[0] if rows else None

    def _all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._writing():
            return self._db.execute(sql, values).fetchall()


_LEASE = "SELECT assignment_id, round, state, assignment, contribution, update_path FROM lease"


def contribution_key(assignment_id: bytes) -> str:
    return f"contribution/{assignment_id.hex()}"


def report_key(round_: int, attempt: int, worker: str) -> str:
    return f"report/{round_}/{attempt}/{worker}"


def _lease(row: tuple[Any, ...]) -> Lease:
    assignment_id, round_, state, assignment, contribution, update_path = row
    return Lease(
        assignment_id,
        round_,
        LeaseState(str(state)),
        wire.Envelope.FromString(assignment),
        None if contribution is None else wire.Envelope.FromString(contribution),
        None if update_path is None else Path(str(update_path)),
    )
