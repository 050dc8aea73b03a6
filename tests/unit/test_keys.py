from __future__ import annotations

import time
from pathlib import Path

import pytest

from coordinator.keys import (
    ANCHOR_KEY,
    DELEGATIONS,
    DRAW_SEED,
    ROOT_KEY,
    ROUND_KEY,
    KeyRing,
)
from protocol.errors import BadSignature, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

RUN = b"r" * 32
DAY_S = 24 * 3600
NOW_S = int(time.time())


@pytest.fixture
def root() -> Identity:
    return Identity.generate()


@pytest.fixture
def ring(tmp_path: Path, root: Identity) -> KeyRing:
    return KeyRing.create(tmp_path / "keys", root, run_id=RUN, now_s=NOW_S, valid_s=DAY_S)


def load(tmp_path: Path, root: Identity, *, now_s: float = NOW_S, run_id: bytes = RUN) -> KeyRing:
    return KeyRing.load(tmp_path / "keys", run_id=run_id, root_id=root.peer_id, now_s=now_s)


def test_only_the_owner_reads_the_keys(tmp_path: Path, ring: KeyRing) -> None:
    keys = tmp_path / "keys"
    assert keys.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}


def test_what_is_loaded_is_what_was_made(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    loaded = load(tmp_path, root)
    assert loaded.round.peer_id == ring.round.peer_id
    assert loaded.log.peer_id == ring.log.peer_id
    assert loaded.delegations == ring.delegations
    assert loaded.anchor_id == Identity.load(tmp_path / "keys" / ANCHOR_KEY).peer_id
    loaded.trust().require_signer(wire.KEY_PURPOSE_LOG, loaded.log.peer_id, NOW_S)
    with pytest.raises(BadSignature):
        loaded.trust().require_signer(wire.KEY_PURPOSE_LOG, loaded.round.peer_id, NOW_S)


def test_serving_needs_no_root_key(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    (tmp_path / "keys" / ROOT_KEY).unlink()
    loaded = load(tmp_path, root)
    assert loaded.root is None
    with pytest.raises(UsageError, match="renewing needs the root key"):
        loaded.renewed(tmp_path / "keys", now_s=NOW_S, valid_s=DAY_S)


def test_keys_are_never_overwritten(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    with pytest.raises(UsageError, match="there is a key"):
        KeyRing.create(tmp_path / "keys", root, run_id=RUN, now_s=NOW_S, valid_s=DAY_S)
    assert load(tmp_path, root).round.peer_id == ring.round.peer_id


def test_expired_keys_say_how_to_renew_them(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    later = NOW_S + 2 * DAY_S
    with pytest.raises(UsageError, match=r"expired.*renew-keys"):
        load(tmp_path, root, now_s=later)
    old = KeyRing.load(
        tmp_path / "keys", run_id=RUN, root_id=root.peer_id, now_s=later, checked=False
    )
    renewed = old.renewed(tmp_path / "keys", now_s=later, valid_s=DAY_S)
    assert load(tmp_path, root, now_s=later).round.peer_id == ring.round.peer_id
    assert not set(map(bytes, (e.payload for e in old.delegations))) & {
        e.payload for e in renewed.delegations
    }


def test_a_revoked_key_is_refused(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    serial = wire.Delegation.FromString(ring.delegations[0].payload).serial
    ring.revoke(tmp_path / "keys", serial, "lost laptop")
    with pytest.raises(UsageError, match="revoked"):
        load(tmp_path, root)


def test_a_revoked_key_is_never_trusted_again(
    tmp_path: Path, root: Identity, ring: KeyRing
) -> None:
    keys, purpose, year_s = tmp_path / "keys", wire.KEY_PURPOSE_TREASURER, 365 * DAY_S
    stolen = Identity.generate()
    ring = ring.appointed(keys, purpose, stolen, now_s=NOW_S, valid_s=DAY_S)
    ring.dismissed(keys, stolen.public, "stolen")
    for later_s in (NOW_S + 2 * DAY_S, NOW_S + 3 * DAY_S):  # its delegation has expired by then
        ring = KeyRing.load(
            keys, run_id=RUN, root_id=root.peer_id, now_s=later_s, checked=False
        ).renewed(keys, now_s=later_s, valid_s=year_s)
        with pytest.raises(BadSignature):
            ring.trust().require_signer(purpose, stolen.peer_id, later_s)
        with pytest.raises(UsageError, match="never trusted again"):
            ring.appointed(keys, purpose, stolen.public, now_s=later_s, valid_s=year_s)


def test_what_another_command_stored_meanwhile_is_not_lost(
    tmp_path: Path, root: Identity, ring: KeyRing
) -> None:
    keys, purpose = tmp_path / "keys", wire.KEY_PURPOSE_TREASURER
    first, second = load(tmp_path, root), load(tmp_path, root)
    one, other = Identity.generate(), Identity.generate()
    first = first.appointed(keys, purpose, one.public, now_s=NOW_S, valid_s=DAY_S)
    with pytest.raises(UsageError, match="another command changed"):
        second.appointed(keys, purpose, other.public, now_s=NOW_S, valid_s=DAY_S)
    assert load(tmp_path, root).delegations == first.delegations
    load(tmp_path, root).appointed(keys, purpose, other.public, now_s=NOW_S, valid_s=DAY_S)
    assert len(load(tmp_path, root).delegations) == len(first.delegations) + 1


def test_keys_of_another_run_are_refused(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    with pytest.raises(UsageError, match="another run"):
        load(tmp_path, root, run_id=b"x" * 32)
    with pytest.raises(UsageError, match="cannot be used"):
        load(tmp_path, Identity.generate())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"delegations": [{}], "revocations": []}'])
def test_damaged_delegations_are_named(
    tmp_path: Path, root: Identity, ring: KeyRing, text: str
) -> None:
    (tmp_path / "keys" / DELEGATIONS).write_text(text)
    with pytest.raises(UsageError, match=r"delegations.json|DSSE"):
        load(tmp_path, root)


def test_a_missing_key_is_named(tmp_path: Path, root: Identity, ring: KeyRing) -> None:
    (tmp_path / "keys" / ROUND_KEY).unlink()
    with pytest.raises(UsageError, match=r"round\.key"):
        load(tmp_path, root)


def test_the_seed_of_the_draws_outlives_renewed_keys(
    tmp_path: Path, root: Identity, ring: KeyRing
) -> None:
    renewed = ring.renewed(tmp_path / "keys", now_s=NOW_S, valid_s=2 * DAY_S)
    loaded = load(tmp_path, root)
    assert ring.draws.tip == renewed.draws.tip == loaded.draws.tip
    assert ring.draw_seed.hex() not in repr(ring)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_without_the_seed_of_the_draws_nothing_is_served(
    tmp_path: Path, root: Identity, ring: KeyRing, damage: str
) -> None:
    seed = tmp_path / "keys" / DRAW_SEED
    seed.unlink()
    if damage == "short":
        seed.write_bytes(b"short")
    with pytest.raises(UsageError, match=r"draw\.seed.*restore it from a backup"):
        load(tmp_path, root)
