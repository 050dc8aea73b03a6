"""What the run's root key vouches for, and stops vouching for."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.envelope import seal
from protocol.errors import BadRecord, BadSignature
from protocol.identity import Identity
from protocol.trust import TrustStore, delegate
from protocol.wire import records_pb2 as wire

RUN_ID = b"\x05" * 32
ROOT = Identity.from_seed(b"\x01" * 32)
ROUND_KEY = Identity.from_seed(b"\x02" * 32)
ROUND = wire.KEY_PURPOSE_ROUND


def delegation(root: Identity = ROOT, **overrides: Any) -> wire.Envelope:
    fields: dict[str, Any] = {
        "run_id": RUN_ID,
        "purpose": ROUND,
        "public_key": ROUND_KEY.public.raw,
        "serial": 1,
        "not_before_s": 100,
        "not_after_s": 200,
    }
    return delegate(root, **{**fields, **overrides})


def revocation(root: Identity = ROOT, run_id: bytes = RUN_ID, serial: int = 1) -> wire.Envelope:
    return seal(wire.Revocation(run_id=run_id, serial=serial, reason="lost"), root)


@pytest.fixture
def store() -> TrustStore:
    return TrustStore(RUN_ID, ROOT.peer_id)


@pytest.mark.parametrize("now_s", [100, 150.5, 200])
def test_delegated_key_is_believed_within_its_window(store: TrustStore, now_s: float) -> None:
    store.add([delegation()])
    store.require_signer(ROUND, ROUND_KEY.peer_id, now_s)
    store.require(ROUND, ROUND_KEY.public.raw, now_s)


@pytest.mark.parametrize(("now_s", "problem"), [(99.9, "not valid yet"), (200.1, "expired")])
def test_window_is_enforced(store: TrustStore, now_s: float, problem: str) -> None:
    store.add([delegation()])
    with pytest.raises(BadSignature, match=problem):
        store.require_signer(ROUND, ROUND_KEY.peer_id, now_s)


def test_purpose_and_key_are_enforced(store: TrustStore) -> None:
    store.add([delegation()])
    with pytest.raises(BadSignature, match="not a log key"):
        store.require_signer(wire.KEY_PURPOSE_LOG, ROUND_KEY.peer_id, 150)
    with pytest.raises(BadSignature, match="never delegated"):
        store.require_signer(ROUND, Identity.generate().peer_id, 150)
    with pytest.raises(BadSignature, match="never delegated"):
        store.require_signer(ROUND, ROOT.peer_id, 150)


def test_revoked_key_is_refused_and_its_successor_believed(store: TrustStore) -> None:
    store.add([delegation()], [revocation()])
    with pytest.raises(BadSignature, match="revoked"):
        store.require_signer(ROUND, ROUND_KEY.peer_id, 150)
    store.add([delegation(serial=2)])
    store.require_signer(ROUND, ROUND_KEY.peer_id, 150)


def test_revocation_counts_whenever_it_comes(store: TrustStore) -> None:
    store.add([], [revocation()])
    store.add([delegation()])
    with pytest.raises(BadSignature, match="revoked"):
        store.require_signer(ROUND, ROUND_KEY.peer_id, 150)


def test_only_the_root_delegates_and_revokes(store: TrustStore) -> None:
    impostor = Identity.generate()
    with pytest.raises(BadSignature):
        store.add([delegation(impostor)])
    with pytest.raises(BadSignature):
        store.require_signer(ROUND, ROUND_KEY.peer_id, 150)
    store.add([delegation()])
    with pytest.raises(BadSignature):
        store.add([], [revocation(impostor)])
    store.require_signer(ROUND, ROUND_KEY.peer_id, 150)


def test_other_runs_records_are_refused(store: TrustStore) -> None:
    with pytest.raises(BadSignature, match="another run"):
        store.add([delegation(run_id=b"\x06" * 32)])
    with pytest.raises(BadSignature, match="another run"):
        store.add([], [revocation(run_id=b"\x06" * 32)])


def test_a_revocation_is_not_a_delegation(store: TrustStore) -> None:
    with pytest.raises(BadRecord):
        store.add([revocation()])
