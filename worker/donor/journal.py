"""What a donor signed: SQLite in WAL mode with full synchronisation.

An act goes ``signed`` -> ``recorded`` or ``refused``. It is here before it is sent, so that a kill
between sending and the answer is mended by sending the same bytes again. The ids and salts of
private pledges are nowhere else: without them a pledge cannot be revised, withdrawn or revealed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from protocol.errors import UsageError
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire

_VERSION = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS act (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    intent TEXT NOT NULL,
    signer TEXT NOT NULL,
    envelope BLOB NOT NULL,
    signed_at_s INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'signed' CHECK (state IN ('signed', 'recorded', 'refused')),
    leaf INTEGER,
    said TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS device (
    worker TEXT PRIMARY KEY,
    donor TEXT NOT NULL,
    line TEXT NOT NULL,
    not_after_s INTEGER NOT NULL
) STRICT;
"""


class ActState(StrEnum):
    SIGNED = "signed"
    RECORDED = "recorded"
    REFUSED = "refused"


@dataclass(frozen=True)
class StoredAct:
    """One act, as it was signed."""

    id: int
    kind: str  # the record's name: Pledge, TeamFounding ...
    signer: PeerId
    envelope: wire.Envelope
    signed_at_s: int
    state: ActState
    leaf: int | None  # where it is in the public record; None: not yet, or it never is
    said: str  # by the coordinator


@dataclass(frozen=True)
class StoredDevice:
    worker: PeerId
    donor: PeerId  # the key that vouches for it
    line: str
    not_after_s: int


class ActJournal:
    """SQLite file; methods block briefly."""

    def __init__(self, path: Path) -> None:
        """Open or make the journal.

        Raises:
            UsageError: it is damaged, of another version, or cannot be written.
        """
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            # What was erased is overwritten, not only unlinked.
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.executescript(_SCHEMA)
            version = self.get("version")
        except sqlite3.Error as error:
            raise UsageError(
                f"cannot use the journal {path} ({error}): free some disk or restore the file; do "
                "not delete it, the ids of private pledges are nowhere else"
            ) from error
        if version is None:
            self.put("version", _VERSION)
        elif version != _VERSION:
            raise UsageError(f"the journal {path} is of version {version}: upgrade barnraise")

    def close(self) -> None:
        self._db.close()

    @property
    def folder(self) -> Path:
        return self._path.parent

    def get(self, key: str) -> str | None:
        row = self._run("SELECT value FROM meta WHERE key = ?", key).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        self._run("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    # ---- acts --------------------------------------------------------------------------

    def unanswered(self, kind: str, intent: Mapping[str, object]) -> StoredAct | None:
        """An act that means the same and that nobody has answered."""
        row = self._run(
            f"{_ACTS} WHERE state = 'signed' AND kind = ? AND intent = ?", kind, _text(intent)
        ).fetchone()
        return None if row is None else _act(row)

    def sign(
        self, kind: str, intent: Mapping[str, object], signer: PeerId, envelope: wire.Envelope
    ) -> StoredAct:
        """Note an act before it is sent.

        Args:
            kind: name of its record.
            intent: what it means, without ids, salts and dates: the same wish is signed once.
        """
        cursor = self._run(
            "INSERT INTO act (kind, intent, signer, envelope, signed_at_s) VALUES (?, ?, ?, ?, ?)",
            kind,
            _text(intent),
            signer,
            envelope.SerializeToString(deterministic=True),
            int(time.time()),
        )
        return _act(self._run(f"{_ACTS} WHERE id = ?", cursor.lastrowid).fetchone())

    def means(self, act: StoredAct, intent: Mapping[str, object]) -> bool:
        """Whether an act was signed with this intent."""
        row = self._run("SELECT intent FROM act WHERE id = ?", act.id).fetchone()
        return row is not None and row[0] == _text(intent)

    def signed_anew(self, act: StoredAct, envelope: wire.Envelope) -> None:
        """A dated act that nobody had taken has a new date."""
        data = envelope.SerializeToString(deterministic=True)
        self._run("UPDATE act SET envelope = ? WHERE id = ?", data, act.id)

    def recorded(self, act: StoredAct, leaf: int | None, said: str) -> None:
        self._answer(act, ActState.RECORDED, leaf, said)

    def refused(self, act: StoredAct, said: str) -> None:
        self._answer(act, ActState.REFUSED, None, said)

    def _answer(self, act: StoredAct, state: ActState, leaf: int | None, said: str) -> None:
        self._run(
            "UPDATE act SET state = ?, leaf = ?, said = ? WHERE id = ?", state, leaf, said, act.id
        )

    def acts(self, *kinds: str) -> list[StoredAct]:
        """All acts of these kinds (or of any), the oldest first."""
        marks = ", ".join("?" * len(kinds))
        where = f" WHERE kind IN ({marks})" if kinds else ""
        return [_act(row) for row in self._run(f"{_ACTS}{where} ORDER BY id", *kinds)]

    def pending(self) -> list[StoredAct]:
        """Acts that nobody has answered, the oldest first."""
        return [act for act in self.acts() if act.state == ActState.SIGNED]

    def forget(self, acts: list[StoredAct]) -> None:
        """Erase acts from this machine."""
        for act in acts:
            self._run("DELETE FROM act WHERE id = ?", act.id)
        self._run("PRAGMA wal_checkpoint(TRUNCATE)")  # the log in front of the file has them too

    # ---- devices -----------------------------------------------------------------------

    def keep_device(self, device: StoredDevice) -> None:
        self._run(
            "INSERT OR REPLACE INTO device VALUES (?, ?, ?, ?)",
            device.worker,
            device.donor,
            device.line,
            device.not_after_s,
        )

    def devices(self) -> list[StoredDevice]:
        rows = self._run("SELECT worker, donor, line, not_after_s FROM device ORDER BY rowid")
        return [StoredDevice(*row) for row in rows]

    def _run(self, sql: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.OperationalError as error:
            raise UsageError(
                f"cannot write {self._path} ({error}): free some disk and try again"
            ) from error


_ACTS = "SELECT id, kind, signer, envelope, signed_at_s, state, leaf, said FROM act"


def _text(intent: Mapping[str, object]) -> str:
    return json.dumps(intent, sort_keys=True)


def _act(row: tuple[int, str, str, bytes, int, str, int | None, str]) -> StoredAct:
    number, kind, signer, envelope, signed_at_s, state, leaf, said = row
    return StoredAct(
        number,
        kind,
        signer,
        wire.Envelope.FromString(envelope),
        signed_at_s,
        ActState(state),
        leaf,
        said,
    )
