"""What the root key signs: which key may do what, from when until when."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from protocol.identity import Identity, PublicKey
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

CLOCK_SKEW_S = 3600
"""Delegations begin this much earlier, so that a volunteer's slow clock does not refuse them."""


def window(now_s: int, valid_s: int) -> dict[str, int]:
    """From now on, for so long."""
    return {"not_before_s": now_s - CLOCK_SKEW_S, "not_after_s": now_s + valid_s}


def delegate_key(
    root: Identity, run_id: bytes, purpose: wire.KeyPurpose, key: PublicKey, **window: int
) -> wire.Envelope:
    """Sign that a key may do this within a window."""
    return delegate(
        root,
        run_id=run_id,
        purpose=purpose,
        public_key=key.raw,
        serial=new_serial(),
        not_before_s=window["not_before_s"],
        not_after_s=window["not_after_s"],
    )


def new_serial() -> int:
    """Names a delegation. Random, so that a root key on another machine needs no counter.

    It fits the integers of a leaf (:data:`ledger.leaf.MAX_SAFE_INTEGER`).
    """
    return secrets.randbits(53)


def opened(delegations: Iterable[wire.Envelope]) -> list[wire.Delegation]:
    """The records in envelopes of ours."""
    return [wire.Delegation.FromString(envelope.payload) for envelope in delegations]


def revoked_serials(revocations: Iterable[wire.Envelope]) -> set[int]:
    """What revocations of ours name."""
    return {wire.Revocation.FromString(envelope.payload).serial for envelope in revocations}
