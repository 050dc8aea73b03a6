"""Invitations: tokens that admit devices where the organiser does not admit everybody.

Invariants:

* A token is shown once, when it is made; the database holds its SHA-256 only.
* A use is spent in the transaction that admits the device, and by one statement, so that two
  devices never spend the same one.
* An approval is an invitation that one key alone can use: it needs no token.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import CursorResult, delete, or_, select, update
from sqlalchemy.orm import Session

from coordinator.audit.schema import InviteRow
from coordinator.schema import WorkerRow
from protocol.errors import NotFound, UsageError
from protocol.identity import PeerId

MAX_TOKEN_CHARS = 64
_TOKEN_BYTES = 18
_ID_CHARS = 12
_LEAST_ID_CHARS = 6


def create(
    session: Session, *, uses: int, note: str = "", valid_s: float | None, now_s: float
) -> tuple[str, str]:
    """Make an invitation.

    Args:
        session: in a transaction.
        uses: devices that it admits.
        note: for the organiser.
        valid_s: how long; None: until it is used up or revoked.
        now_s: seconds since the epoch.

    Returns:
        The token, and the id under which the organiser finds it again.
    """
    token = f"inv-{secrets.token_urlsafe(_TOKEN_BYTES)}"
    digest = _digest(token)
    expires_at_s = None if valid_s is None else now_s + valid_s
    session.add(
        InviteRow(token_sha256=digest, note=note, uses_left=uses, expires_at_s=expires_at_s)
    )
    return token, digest.hex()[:_ID_CHARS]


def redeem(session: Session, token: str, now_s: float) -> None:
    """Spend one use of a token.

    Raises:
        UsageError: there is no such invitation, or it is used up or expired.
    """
    if not _spend(session, _digest(token), now_s):
        raise UsageError(
            "this invitation is not known, used up, or expired: ask the organiser for another and "
            "give it with 'barnraise worker join LINK --invite TOKEN'"
        )


def approve(session: Session, worker: PeerId) -> bool:
    """Let one device in that asked for it.

    Returns:
        Whether that is news.

    Raises:
        NotFound: it has not asked.
    """
    row = session.get(WorkerRow, worker)
    if row is None:
        raise NotFound(f"{worker[:80]} has not asked: see 'barnraise coordinator pending'")
    digest = _approval_digest(worker)
    if row.approved or session.get(InviteRow, digest) is not None:
        return False
    session.add(InviteRow(token_sha256=digest, note=_approval_note(worker), uses_left=1))
    return True


def redeem_approval(session: Session, worker: PeerId, now_s: float) -> bool:
    """Use the organiser's approval of a key, if there is one."""
    return _spend(session, _approval_digest(worker), now_s)


def pending(session: Session) -> list[dict[str, Any]]:
    """Devices that wait for the organiser's approval, the longest waiting first."""
    rows = session.scalars(
        select(WorkerRow).where(WorkerRow.approved.is_(False)).order_by(WorkerRow.enrolled_at_s)
    )
    return [
        {
            "worker": row.worker,
            "donor": row.donor,
            "display_name": row.display_name,
            "device": row.device_name,
            "device_class": row.device_class,
            "asked_at_s": row.enrolled_at_s,
            "last_seen_s": row.last_seen_s,
        }
        for row in rows
        if session.get(InviteRow, _approval_digest(row.worker)) is None
    ]


def listed(session: Session) -> list[dict[str, Any]]:
    """Every invitation, by id, without its token, which nobody knows any more."""
    rows = session.scalars(select(InviteRow).order_by(InviteRow.token_sha256))
    return [
        {
            "id": row.token_sha256.hex()[:_ID_CHARS],
            "note": row.note,
            "uses_left": row.uses_left,
            "expires_at_s": row.expires_at_s,
        }
        for row in rows
    ]


def revoke(session: Session, id_: str) -> str:
    """Make an invitation void, whatever is left of it.

    Returns:
        Its note.

    Raises:
        NotFound: no invitation, or more than one, begins like this.
    """
    known = session.scalars(select(InviteRow)).all()
    found = [row for row in known if row.token_sha256.hex().startswith(id_.lower())]
    if len(id_) < _LEAST_ID_CHARS or len(found) != 1:
        raise NotFound(
            f"no invitation is called {id_[:80]}: see 'barnraise coordinator invite list'"
        )
    session.delete(found[0])
    return found[0].note


def forget_spent(session: Session, now_s: float) -> None:
    """Drop what admits nobody any more."""
    over = or_(InviteRow.uses_left <= 0, InviteRow.expires_at_s < now_s)
    session.execute(delete(InviteRow).where(over).execution_options(synchronize_session=False))


def _spend(session: Session, digest: bytes, now_s: float) -> bool:
    spent = session.execute(
        update(InviteRow)
        .where(InviteRow.token_sha256 == digest, InviteRow.uses_left > 0)
        .where(or_(InviteRow.expires_at_s.is_(None), InviteRow.expires_at_s >= now_s))
        .values(uses_left=InviteRow.uses_left - 1)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(spent, CursorResult)
    return spent.rowcount == 1


def _digest(token: str) -> bytes:
    return hashlib.sha256(f"barnraise-invite\0{token}".encode()).digest()


def _approval_digest(worker: PeerId) -> bytes:
    return hashlib.sha256(f"barnraise-approval\0{worker}".encode()).digest()


def _approval_note(worker: PeerId) -> str:
    return f"approval of {worker}"
