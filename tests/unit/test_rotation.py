"""Rotated keys: what old and new ones signed, and what holds after a revocation."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from coordinator.config import RunFolder
from coordinator.keys import LOG_KEY, ROUND_KEY, KeyRing
from coordinator.opening import running_round
from coordinator.resigning import sign_anew
from ledger.authority import store_delegations
from ledger.log import Log
from ledger.receipts import make_receipt, verify_receipt
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.envelope import open_envelope
from protocol.errors import BadSignature, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.config import Home, WorkerConfig
from worker.join import look_at_run, move
from worker.limits import Limits

DAY_S = 24 * 3600
ROUND, LOG, TLS = wire.KEY_PURPOSE_ROUND, wire.KEY_PURPOSE_LOG, wire.KEY_PURPOSE_TLS


@pytest.fixture
def run(run_rig: ModuleType, tmp_path: Path) -> RunFolder:
    """A run whose record began two days ago: old leaves come under the heads of new keys."""
    run_rig.make_dataset(tmp_path / "data")
    began_s = int(time.time()) - 2 * DAY_S
    return run_rig.make_run(tmp_path / "data", tmp_path / "run", now_s=began_s).folder


class Keys:
    """A run's keys and database, outside of any server."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.manifest = run, run.read_manifest()
        self.now_s = int(time.time())
        self.engine = create_engine(f"sqlite:///{run.path}/coordinator.db")
        self.ring = self.load()

    def load(self) -> KeyRing:
        ids = {"run_id": self.manifest.run_id, "root_id": self.manifest.root}
        return KeyRing.load(self.run.keys, **ids, now_s=self.now_s)

    def rotate(self, *purposes: wire.KeyPurpose, why: str | None = None) -> KeyRing:
        window = {"now_s": self.now_s, "valid_s": DAY_S, "since_s": self.now_s - 2 * DAY_S}
        self.ring = self.ring.rotated(self.run.keys, purposes, **window, why_revoked=why)
        with Session(self.engine) as session, session.begin():
            store_delegations(session, self.ring.delegations, self.ring.revocations)
        return self.ring

    def sign_head(self) -> str:
        log = Log(self.manifest.origin, self.ring.log)
        with Session(self.engine) as session, session.begin():
            return log.sign_head(session)

    def verify(self, old: str | None = None) -> None:
        with Session(self.engine) as session:
            verify(DatabaseSource(session), root=self.manifest.root, old_checkpoint=old)


def named(ring: KeyRing) -> tuple[object, ...]:
    """A ring by what can be compared."""
    return ring.round.peer_id, ring.log.peer_id, ring.tls, ring.delegations, ring.revocations


@pytest.fixture
def keys(run: RunFolder) -> Keys:
    return Keys(run)


def test_old_and_new_keys_are_believed_until_the_old_ones_are_revoked(keys: Keys) -> None:
    old, new = keys.ring, keys.rotate(ROUND, LOG, TLS)
    assert named(keys.load()) == named(new)
    assert len({old.round.peer_id, new.round.peer_id, old.log.peer_id, new.log.peer_id}) == 4
    assert old.tls.certificate_pem != new.tls.certificate_pem
    for ring in (old, new):
        new.trust().require_signer(ROUND, ring.round.peer_id, keys.now_s)
        new.trust().require_signer(LOG, ring.log.peer_id, keys.now_s)
    newest = keys.rotate(ROUND, LOG, why="stolen")
    newest.trust().require_signer(ROUND, newest.round.peer_id, keys.now_s)
    newest.trust().require_signer(ROUND, old.round.peer_id, keys.now_s)  # rotated, not stolen
    for purpose, stolen in ((ROUND, new.round), (LOG, new.log)):
        with pytest.raises(BadSignature, match="revoked"):
            newest.trust().require_signer(purpose, stolen.peer_id, keys.now_s)
    assert newest.tls == new.tls
    # A stolen key is never vouched for again.
    (keys.run.keys / ROUND_KEY).write_bytes(new.round.libp2p_bytes())
    (keys.run.keys / LOG_KEY).write_bytes(new.log.libp2p_bytes())
    with pytest.raises(UsageError, match="revoked"):
        keys.load()


def test_a_revoked_key_is_not_renewed(keys: Keys) -> None:
    serial = wire.Delegation.FromString(keys.ring.delegations[0].payload).serial
    revoked = keys.ring.revoke(keys.run.keys, serial, "stolen")
    with pytest.raises(UsageError, match="rotate-keys"):
        revoked.renewed(keys.run.keys, now_s=keys.now_s, valid_s=DAY_S)


def test_a_rotation_needs_the_root_key(keys: Keys) -> None:
    (keys.run.keys / "root.key").unlink()
    ring = keys.load()
    with pytest.raises(UsageError, match="rotating needs the root key"):
        ring.rotated(keys.run.keys, [ROUND], now_s=keys.now_s, valid_s=DAY_S, since_s=0)
    assert named(keys.load()) == named(ring)


def test_the_record_verifies_over_a_rotation_and_a_revocation_of_its_key(keys: Keys) -> None:
    before = keys.sign_head()
    with Session(keys.engine) as session:
        receipt = make_receipt(session, keys.manifest.origin, 0)
    keys.rotate(LOG)
    after = keys.sign_head()
    assert after != before
    keys.verify(before)
    keys.verify(after)
    # A leaf of days ago, under a head of the new key: and the old receipt as before.
    with Session(keys.engine) as session:
        renewed = make_receipt(session, keys.manifest.origin, 0)
    for proof in (receipt, renewed):
        verify_receipt(proof.leaf, proof.proof, root=keys.manifest.root)
    keys.rotate(LOG, why="stolen")
    with pytest.raises(BadSignature):
        keys.verify()  # the head there is, is the thief's as much as ours
    newest = keys.sign_head()
    keys.verify(newest)
    with pytest.raises(BadSignature):
        keys.verify(after)


def test_what_is_under_way_is_signed_anew_and_stays_the_same_record(keys: Keys) -> None:
    def head() -> wire.Envelope:
        with Session(keys.engine) as session:
            return wire.Envelope.FromString(running_round(session).head)

    def restart() -> int:
        with Session(keys.engine) as session, session.begin():
            return sign_anew(session, keys.ring, keys.now_s)

    before = head()
    keys.rotate(ROUND)
    assert restart() == 0  # the old key's signature holds
    assert head() == before
    keys.rotate(ROUND, why="stolen")
    assert restart() == 0  # it was the key before that one
    for envelope in keys.ring.delegations:
        serial = wire.Delegation.FromString(envelope.payload).serial
        record = wire.Delegation.FromString(envelope.payload)
        if record.purpose == ROUND and record.public_key != keys.ring.round.public.raw:
            keys.ring = keys.ring.revoke(keys.run.keys, serial, "all of them")
    assert restart() == 1
    signed = open_envelope(head(), wire.RunHead, signer=keys.ring.round.peer_id)
    assert signed.envelope.payload == before.payload


async def test_a_worker_moves_to_the_run_at_another_address_and_nowhere_else(
    run_rig: ModuleType, run: RunFolder, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    async with run_rig.serving(run.path) as served:
        config = WorkerConfig(link=str(served.link), limits=Limits(threads=3), name="ada")
        await look_at_run(home, config)
        config.save(home.config)
        old_link = served.link
    key = home.identity.read_bytes()
    async with run_rig.serving(run.path) as served:
        assert served.link != old_link
        other_root = str(served.link).replace(served.link.root, Identity.generate().peer_id)
        other_run = str(served.link).replace(served.link.run_id.hex(), "0" * 64)
        for link, says in ((other_root, "another root key"), (other_run, "another run")):
            with pytest.raises(UsageError, match=says):
                await move(home, link)
        with pytest.raises(UsageError, match="another root key"):
            await look_at_run(home, WorkerConfig(link=other_root))
        with pytest.raises(UsageError, match="not moved"):
            await move(home, str(old_link))  # nobody answers there any more
        assert WorkerConfig.load(home.config) == config
        await move(home, str(served.link))
    moved = WorkerConfig.load(home.config)
    assert moved.join_link == served.link
    assert (moved.limits.threads, moved.name) == (3, "ada")
    assert home.identity.read_bytes() == key
