"""Only what a round key or an admitted device signed may stand in the DHT, in its own place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord

from protocol.envelope import seal
from protocol.identity import Identity
from protocol.trust import TrustStore, delegate
from protocol.wire import records_pb2 as wire
from worker.dht_records import (
    HEAD_LIFETIME_S,
    MAX_HOLDER_LIFETIME_S,
    ROSTER_LIFETIME_S,
    RunRecords,
    head_key,
    roster_key,
    weights_key,
)

NOW_S = 1_800_000_000
RUN, OTHER_RUN = b"r" * 32, b"o" * 32
ROOT, ROUND_KEY, WORKER, STRANGER = (Identity.from_seed(bytes([i]) * 32) for i in range(4))
DIGEST = b"d" * 32


@pytest.fixture
def rules() -> RunRecords:
    trust = TrustStore(RUN, ROOT.peer_id)
    trust.add(
        [
            delegate(
                ROOT,
                run_id=RUN,
                purpose=wire.KEY_PURPOSE_ROUND,
                public_key=ROUND_KEY.public.raw,
                serial=1,
                not_before_s=NOW_S - 10,
                not_after_s=NOW_S + 7200,
            )
        ]
    )
    return RunRecords(RUN, trust, lambda: NOW_S)


def record(key: str, subkey: object, value: object, expires_s: float) -> DHTRecord:
    return DHTRecord(
        DHTID.generate(source=key).to_bytes(),
        msgpack.packb(subkey, use_bin_type=True),
        msgpack.packb(value, use_bin_type=True),
        expires_s,
    )


@dataclass(frozen=True)
class Head:
    """A good head record, field by field; ``replace`` makes a bad one."""

    run_id: bytes = RUN
    signer: Identity = ROUND_KEY
    issued_s: int = NOW_S - 5
    padding: int = 0
    key: str = head_key(RUN)
    subkey: object = ROUND_KEY.peer_id
    expires_s: float = NOW_S - 5 + HEAD_LIFETIME_S

    def record(self) -> DHTRecord:
        head = wire.RunHead(
            run_id=self.run_id,
            issued_at_ms=self.issued_s * 1000,
            weights_sha256=bytes(self.padding),
        )
        value = seal(head, self.signer).SerializeToString()
        return record(self.key, self.subkey, value, self.expires_s)


def test_a_good_head_is_taken(rules: RunRecords) -> None:
    assert rules.validate(Head().record())


OLD_S = NOW_S - HEAD_LIFETIME_S - 1


@pytest.mark.parametrize(
    "bad",
    [
        Head(signer=STRANGER, subkey=STRANGER.peer_id),
        Head(signer=ROOT, subkey=ROOT.peer_id),
        Head(run_id=OTHER_RUN),
        Head(run_id=OTHER_RUN, key=head_key(OTHER_RUN)),
        Head(key=head_key(OTHER_RUN)),
        Head(key=roster_key(RUN, 0, 0)),
        Head(subkey=STRANGER.peer_id),
        Head(subkey=None),
        Head(subkey=b"bytes"),
        Head(expires_s=NOW_S + 2 * HEAD_LIFETIME_S),  # an old head must not outlive a new one
        Head(issued_s=OLD_S, expires_s=OLD_S + HEAD_LIFETIME_S),
        Head(issued_s=NOW_S + 600, expires_s=NOW_S + 600 + HEAD_LIFETIME_S),
        Head(padding=70_000),
    ],
)
def test_a_bad_head_is_refused(rules: RunRecords, bad: Head) -> None:
    assert not rules.validate(bad.record())


@pytest.mark.parametrize(
    "value", [b"", b"\xff" * 40, "text", 7, None, [1], {"a": b"b"}, b"\x80\x04K\x01."]
)
def test_what_is_not_an_envelope_is_refused(rules: RunRecords, value: object) -> None:
    good = Head()
    assert not rules.validate(record(good.key, good.subkey, value, good.expires_s))


def test_bytes_that_are_not_msgpack_are_refused(rules: RunRecords) -> None:
    for junk in (b"\xc1", b"\xd8", b"\x91" * 5000, b"\xdc\xff\xff"):
        assert not rules.validate(replace(Head().record(), value=junk))
        assert not rules.validate(replace(Head().record(), subkey=junk))


def test_an_altered_payload_is_refused(rules: RunRecords) -> None:
    good = Head().record()
    value = bytearray(good.value)
    value[20] ^= 1
    assert not rules.validate(replace(good, value=bytes(value)))


def test_the_key_must_still_be_delegated(rules: RunRecords) -> None:
    late = RunRecords(RUN, rules._trust, lambda: NOW_S + 7300)
    assert not late.validate(Head().record())


def test_rosters_stand_side_by_side(rules: RunRecords) -> None:
    """A second roster for the same attempt does not push out the first: it is evidence."""
    for weight in (1, 2):
        roster = wire.Roster(run_id=RUN, round=3, attempt=1, broadcast_deadline_ms=NOW_S * 1000)
        roster.members.add(worker=WORKER.peer_id, weight=weight)
        envelope = seal(roster, ROUND_KEY)
        place = rules.place(envelope)
        assert place.key == roster_key(RUN, 3, 1)
        assert place.expires_s == NOW_S + ROSTER_LIFETIME_S
        value = envelope.SerializeToString()
        assert rules.validate(record(place.key, place.subkey, value, place.expires_s))
        assert not rules.validate(record(place.key, "0" * 40, value, place.expires_s))


@dataclass(frozen=True)
class Holder:
    run_id: bytes = RUN
    worker: Identity = WORKER
    signer: Identity = WORKER
    admitted: Identity = WORKER
    admitted_by: Identity = ROUND_KEY
    admitted_run: bytes = RUN
    admitted_until_s: int = NOW_S + 60
    until_s: int = NOW_S + 1800

    def records(self) -> list[DHTRecord]:
        admission = wire.Admission(
            run_id=self.admitted_run,
            worker=self.admitted.peer_id,
            not_after_s=self.admitted_until_s,
        )
        fields = {
            "run_id": self.run_id,
            "worker": self.worker.peer_id,
            "admission": seal(admission, self.admitted_by),
            "not_after_s": self.until_s,
        }
        weights = seal(wire.WeightHolder(state_digest=DIGEST, **fields), self.signer)
        roster = seal(wire.RosterHolder(round=3, attempt=1, **fields), self.signer)
        name, until_s = self.worker.peer_id, float(self.until_s)
        return [
            record(weights_key(RUN, DIGEST), name, weights.SerializeToString(), until_s),
            record(roster_key(RUN, 3, 1), name, roster.SerializeToString(), until_s),
        ]


def test_an_admitted_device_may_announce(rules: RunRecords) -> None:
    assert all(rules.validate(good) for good in Holder().records())


@pytest.mark.parametrize(
    "bad",
    [
        Holder(run_id=OTHER_RUN),
        Holder(signer=STRANGER),
        Holder(worker=STRANGER, signer=STRANGER),  # shows another device's admission
        Holder(admitted=STRANGER),
        Holder(admitted_by=WORKER),
        Holder(admitted_by=ROOT),
        Holder(admitted_run=OTHER_RUN),
        Holder(admitted_until_s=NOW_S - 1),
        Holder(until_s=NOW_S - 1),
        Holder(until_s=NOW_S + 2 * MAX_HOLDER_LIFETIME_S),
    ],
)
def test_others_may_not(rules: RunRecords, bad: Holder) -> None:
    assert not any(rules.validate(refused) for refused in bad.records())


def test_other_records_do_not_belong_there(rules: RunRecords) -> None:
    admission = seal(wire.Admission(run_id=RUN, worker=WORKER.peer_id), ROUND_KEY)
    good = Head()
    value = admission.SerializeToString()
    assert not rules.validate(record(good.key, good.subkey, value, good.expires_s))
