"""A run's real server whose ``Act`` opens and checks what comes, and can fail at one exact point.

It keeps what it took as a coordinator does: the same bytes again are answered as the first time.
Tests of the coordinator's own rules use the coordinator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.message import Message

from coordinator.service import CoordinatorService
from protocol.envelope import Signed, open_envelope, payload_type
from protocol.errors import BadRecord, Stale, TransientError, UsageError
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

KINDS = {
    payload_type(kind): kind
    for kind in (
        wire.Pledge,
        wire.TeamFounding,
        wire.TeamMembership,
        wire.KeyChange,
        wire.AccountMerge,
        wire.ProfileUpdate,
    )
}
_SIGNED_BY = ("donor", "founder", "old")


@dataclass
class Office:
    """What was handed in, and how the next act is answered."""

    link: JoinLink | None = None
    taken: list[Signed[Any]] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)  # payloads as they came, again and again
    refuse: Callable[[Message], str] = lambda _: ""
    away: bool = False
    lose_answers: int = 0
    stale: int = 0

    def records(self, kind: type[Message]) -> list[Any]:
        return [signed.record for signed in self.taken if isinstance(signed.record, kind)]

    async def act(self, envelope: wire.Envelope) -> api.ActReply:
        signed: Signed[Any] = open_envelope(envelope, KINDS[envelope.payload_type])
        self.seen.append(envelope.payload)
        self._check(signed)
        if self.away:
            raise TransientError("the coordinator is going down")
        if self.stale:
            self.stale -= 1
            raise Stale("the request is 300 s old")
        for index, earlier in enumerate(self.taken):
            if earlier.digest == signed.digest:
                return _reply(signed, index)
        problem = self.refuse(signed.record)
        if problem:
            raise UsageError(problem)
        self.taken.append(signed)
        if self.lose_answers:
            self.lose_answers -= 1
            raise TransientError("killed before it answered")
        return _reply(signed, len(self.taken) - 1)

    def _check(self, signed: Signed[Any]) -> None:
        record = signed.record
        signer = next(getattr(record, name) for name in _SIGNED_BY if hasattr(record, name))
        assert self.link is not None
        if (record.run_id, signer) != (self.link.run_id, signed.signer):
            raise BadRecord("of another run, or signed by somebody else")
        if isinstance(record, wire.KeyChange | wire.AccountMerge):
            into = record.new if isinstance(record, wire.KeyChange) else record.into
            consent = open_envelope(record.consent, wire.KeyConsent, signer=into).record
            if (consent.run_id, consent.of, consent.into) != (self.link.run_id, signer, into):
                raise BadRecord("the consent is to something else")
        if hasattr(record, "freshness") and len(record.freshness.nonce) != 16:
            raise BadRecord("not dated")


def _reply(signed: Signed[Any], index: int) -> api.ActReply:
    if isinstance(signed.record, wire.ProfileUpdate):
        return api.ActReply(message="shown from now on")
    return api.ActReply(recorded=True, leaf_index=100 + index, message="noted")


@asynccontextmanager
async def open_office(
    run_rig: ModuleType, folder: Path, patch: pytest.MonkeyPatch
) -> AsyncIterator[Office]:
    """Serve a run folder on loopback with an :class:`Office`."""
    office = Office()

    async def act(_service: Any, request: wire.Envelope, _context: Any) -> api.ActReply:
        return await office.act(request)

    patch.setattr(CoordinatorService, "Act", act)
    async with run_rig.serving(folder) as served:
        office.link = served.link
        yield office
