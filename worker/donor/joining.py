"""Joining one key's account to another key's, which agrees: here, or by a line from elsewhere."""

from __future__ import annotations

import base64

from protocol.envelope import parse_envelope
from protocol.errors import BadRecord, UsageError
from protocol.identity import Identity, PeerId
from protocol.wire import records_pb2 as wire
from worker.donor import acts
from worker.donor.desk import Desk, Outcome, Refused

CONSENT_PREFIX = "barnraise-consent:"
_MAX_LINE_CHARS = 4096


def consent_line(run_id: bytes, of: PeerId, into: Identity) -> str:
    """An agreement to take the account of ``of``, for its owner."""
    data = acts.consent(run_id, of, into).SerializeToString(deterministic=True)
    return CONSENT_PREFIX + base64.urlsafe_b64encode(data).decode()


def read_consent(line: str) -> wire.Envelope:
    """What :func:`consent_line` gave; whose it is, is checked where it is used.

    Raises:
        UsageError: it is damaged.
    """
    text = line.strip()
    if len(text) > _MAX_LINE_CHARS or not text.startswith(CONSENT_PREFIX):
        raise UsageError(f"a consent begins with {CONSENT_PREFIX!r}, as 'donor consent' prints it")
    try:
        data = base64.urlsafe_b64decode(text.removeprefix(CONSENT_PREFIX).encode())
        return parse_envelope(data)
    except (ValueError, BadRecord) as error:
        raise UsageError(f"the consent is damaged ({error}): copy the whole line") from error


async def join_accounts(desk: Desk, given_up: Identity, agreed: wire.Envelope) -> Outcome:
    """Merge the accounts; a key that has no account yet takes the other's over instead.

    Raises:
        Refused: both were, with the reason of the first.
        UsageError: the consent is not to this, or the coordinator does not answer.
    """
    try:
        return await desk.perform(acts.merge(desk.run_id, given_up, agreed))
    except Refused as refused:
        try:
            return await desk.perform(acts.takeover(desk.run_id, given_up, agreed))
        except Refused:
            raise refused from None
