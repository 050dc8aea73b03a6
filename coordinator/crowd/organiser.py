"""What an organiser's command works on: the run's folder, its keys and its public record.

The commands write to the run's database, so they work whether the coordinator runs or not.

Invariant: what a command records is recorded whole or not at all, and what the root key vouched for
is in the record before what that key signed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from coordinator.config import RunFolder
from coordinator.crowd.book import Book, Recorded
from coordinator.crowd.delegations import keep_delegations
from coordinator.key_files import CROWD_KEYS
from coordinator.keys import KeyRing
from coordinator.terminal import Read, configure_logging, reader
from ledger.acts import open_act
from ledger.fold import Board
from ledger.log import Log
from ledger.schema import ActRow
from protocol.envelope import seal
from protocol.errors import BadSignature, PeerFault, UsageError
from protocol.identity import Identity, PublicKey
from protocol.manifest import RunManifest
from protocol.wire import records_pb2 as wire

YEAR_DAYS = 365
_DAY_S = 24 * 3600
_LEAVES_AT_ONCE = 5000
"""Folded in one transaction: a running coordinator waits for it."""


@dataclass
class Organiser:
    """Acts for one run, with the keys in its folder."""

    folder: RunFolder
    manifest: RunManifest
    read: Read
    ring: KeyRing
    log: Log
    book: Book
    now_s: float

    @property
    def run_id(self) -> bytes:
        return self.manifest.run_id

    @property
    def board(self) -> Board:
        return self.book.board

    def signer(self, purpose: wire.KeyPurpose, *, days: int = YEAR_DAYS) -> Identity:
        """The folder's key for a purpose; the root key vouches for it at the first use.

        Raises:
            UsageError: it has to, and is not in the folder.
        """
        key = self.ring.crowd.get(purpose)
        if key is not None and self.is_believed(purpose, key.public):
            return key
        name = CROWD_KEYS[purpose]
        if self.ring.root is None:
            raise UsageError(
                f"the run's root key has to vouch for keys/{name}: put root.key into "
                f"{self.folder.keys} for a moment"
            )
        key = key or Identity.generate()
        self.appoint(purpose, key, days=days)
        return key

    def is_believed(self, purpose: wire.KeyPurpose, key: PublicKey) -> bool:
        """Whether the root key vouches for a key now."""
        try:
            self.ring.trust().require(purpose, key.raw, self.now_s)
        except BadSignature:
            return False
        return True

    def appoint(
        self, purpose: wire.KeyPurpose, key: Identity | PublicKey, *, days: int = YEAR_DAYS
    ) -> None:
        """Have the root key vouch for a key, and keep it if it is given whole."""
        self.ring = self.ring.appointed(
            self.folder.keys, purpose, key, now_s=int(self.now_s), valid_s=days * _DAY_S
        )

    def sign(self, record: Message, key: Identity) -> wire.Envelope:
        """Seal an act."""
        return seal(record, key)

    def record(self, envelopes: Sequence[wire.Envelope] = ()) -> list[Recorded]:
        """Write acts, after what the root key vouched for, and sign the record's new head.

        Raises:
            UsageError: one of them is refused; nothing is written.
        """

        def write(session: Session) -> list[Recorded]:
            keep_delegations(self.log, session, self.ring, self.now_s)
            return [self._record(session, envelopes, number) for number in range(len(envelopes))]

        recorded = self.read(write)
        self.read(self.log.sign_head)
        return recorded

    def _record(
        self, session: Session, envelopes: Sequence[wire.Envelope], number: int
    ) -> Recorded:
        try:
            return self.book.record(session, open_act(envelopes[number]), self.now_s)
        except (PeerFault, UsageError) as error:
            which = f"act {number + 1} of {len(envelopes)}: " if len(envelopes) > 1 else ""
            raise UsageError(f"{which}{error}; nothing was recorded") from error

    def act_of(self, index: int) -> wire.Envelope | None:
        """The signed act behind a leaf, if it is still here."""
        data = self.read(lambda session: _envelope(session, index))
        return wire.Envelope.FromString(data) if data else None


def _envelope(session: Session, index: int) -> bytes | None:
    row = session.get(ActRow, index)
    return None if row is None else row.envelope


@contextmanager
def organise(run_dir: Path) -> Iterator[Organiser]:
    """Open a run for an organiser's command.

    Raises:
        UsageError: it is no run folder, or its database was not upgraded yet.
    """
    configure_logging(quiet=True)
    with reader(run_dir) as (read, manifest):
        if not read(lambda session: inspect(session.connection()).has_table("act")):
            raise UsageError(
                "the run's database is of an earlier version: start 'barnraise coordinator serve' "
                "once, which upgrades it"
            )
        folder, now_s = RunFolder(run_dir), time.time()
        ring = KeyRing.load(folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s)
        log = Log(manifest.origin, ring.log)
        book = Book(log, manifest)
        while not read(lambda session: book.follow(session, _LEAVES_AT_ONCE)):
            pass
        yield Organiser(folder, manifest, read, ring, log, book, now_s)
