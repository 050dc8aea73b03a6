"""Who takes no part any more: keys of devices and of donors, each with its reason.

Invariants:

* A block and its leaf in the public record commit together. The leaf holds a stable word; the
  reason in words for a person stays in the database.
* A device is out when its own key or its donor's is blocked.
* A person is out with every key: where several are joined, all are blocked, and welcome again,
  together.
* An audit lifts only blocks that audits made: what the organiser decided, the organiser undoes.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from coordinator.audit.schema import BlockRow
from coordinator.crowd.joined import keys_of_person
from coordinator.lookups import find
from coordinator.schema import WorkerRow
from ledger.log import Log
from ledger.records import BlockLeaf
from protocol.errors import BadRecord, NotFound, UsageError
from protocol.identity import PeerId, PublicKey

AUDIT, ORGANISER = "audit", "organiser"
"""Sources of a block."""

MAX_REASON_CHARS = 300

_log = structlog.get_logger()


@dataclass(frozen=True)
class BlockList:
    """Writes blocks of one run, in the caller's transaction."""

    log: Log
    run_id: bytes
    session: Session
    now_s: float

    def block(self, key: PeerId, reason: str, *, source: str, word: str) -> bool:
        """Send a device, or all devices of a donor, away.

        Args:
            key: PeerID of the device or donor.
            reason: for the person, whole: it says who decided and why.
            source: ``AUDIT`` or ``ORGANISER``.
            word: stable word for the public record.

        Returns:
            Whether it is news. An organiser's block takes an audit's over, never the reverse.

        Raises:
            UsageError: no key, or no reason that fits.
        """
        _check(key, reason)
        news = False
        for one in sorted(keys_of_person(self.session, key)):
            news |= self._block(one, reason, source, word)
        return news

    def unblock(self, key: PeerId, *, word: str, source: str | None = None) -> bool:
        """Welcome a key again.

        Args:
            key: PeerID of the device or donor.
            word: stable word for the public record.
            source: lift only a block of this source; None lifts any.

        Returns:
            Whether there was such a block.
        """
        lifted = False
        for one in sorted(keys_of_person(self.session, key)):
            row = self.session.get(BlockRow, one)
            if row is not None and source in (None, row.source):
                self.session.delete(row)
                self._append(one, False, word)
                _log.info("unblocked", key=one, word=word)
                lifted = True
        return lifted

    def _block(self, key: PeerId, reason: str, source: str, word: str) -> bool:
        row = self.session.get(BlockRow, key)
        if row is not None:
            if source == ORGANISER:
                row.reason, row.source = reason, source
            return False
        self.session.add(BlockRow(key=key, reason=reason, source=source, at_s=self.now_s))
        self._append(key, True, word)
        _log.warning("blocked", key=key, source=source, reason=reason)
        return True

    def _append(self, key: PeerId, blocked: bool, word: str) -> None:
        self.session.flush()
        leaf = BlockLeaf(
            run_id=self.run_id.hex(), at_s=int(self.now_s), key=key, blocked=blocked, reason=word
        )
        self.log.append(self.session, [leaf])


def reason_for(session: Session, worker: PeerId, donor: PeerId) -> str | None:
    """Why a device is out, in words; None when it is welcome."""
    for key in (worker, donor):
        row = find(session, BlockRow, key)
        if row is not None:
            return row.reason
    return None


def require_welcome(session: Session, worker: PeerId, donor: PeerId) -> None:
    """Insist that neither the device nor its donor is blocked.

    Raises:
        UsageError: one of them is; with the reason.
    """
    reason = reason_for(session, worker, donor)
    if reason is not None:
        raise UsageError(f"this device is blocked: {reason}")


def welcome() -> ColumnElement[bool]:
    """Condition of a query on :class:`WorkerRow`: neither the device nor its donor is blocked."""
    keys = BlockRow.key.in_((WorkerRow.worker, WorkerRow.donor))
    return ~exists(select(BlockRow.key).where(keys).correlate(WorkerRow))


@dataclass(frozen=True)
class Block:
    """A block, for a person."""

    key: PeerId
    reason: str
    source: str
    at_s: float


def listed(session: Session) -> list[Block]:
    """Every block, the newest first."""
    rows = session.scalars(select(BlockRow).order_by(BlockRow.at_s.desc(), BlockRow.key))
    return [Block(row.key, row.reason, row.source, row.at_s) for row in rows]


def reasons(session: Session) -> dict[PeerId, str]:
    """Reason of every block, by key."""
    return {row.key: row.reason for row in session.scalars(select(BlockRow))}


def require_block(session: Session, key: PeerId) -> None:
    """Insist that there is something to lift.

    Raises:
        NotFound: the key is not blocked.
    """
    if session.get(BlockRow, key) is None:
        raise NotFound(f"{key[:80]} is not blocked: see 'barnraise coordinator blocks'")


def _check(key: PeerId, reason: str) -> None:
    try:
        PublicKey.from_peer_id(key)
    except BadRecord as error:
        raise UsageError(f"{error}: give a device's or a donor's key id") from error
    if not reason or len(reason) > MAX_REASON_CHARS or not reason.isprintable():
        raise UsageError(f"a reason is one line of at most {MAX_REASON_CHARS} characters")
