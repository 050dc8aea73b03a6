from __future__ import annotations

import pytest

from coordinator.requests import Buckets, NonceCache, Rate, RequestGuard, address_of
from protocol.envelope import seal
from protocol.errors import BadRecord, BadSignature, RateLimited, Stale, UnknownRun
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

RUN = b"r" * 32


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:10.0.0.1]:5000", "10.0.0.1"),
        ("ipv6:[::1]:5000", "::/64"),
        ("unix:", "unix:"),
        ("ipv4:nonsense:1", "ipv4:nonsense:1"),
    ],
)
def test_addresses(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_a_bucket_refills(clock: Clock) -> None:
    buckets = Buckets(Rate(per_s=2, burst=3), clock)
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(RateLimited, match=r"try again in 0\.5 s"):
        buckets.take("a")
    buckets.take("b")
    clock.now_s += 0.5
    buckets.take("a")
    with pytest.raises(RateLimited):
        buckets.take("a")
    clock.now_s -= 100  # a clock that is set back gives nothing away, and breaks nothing
    with pytest.raises(RateLimited):
        buckets.take("a")


def freshness(clock: Clock, *, age_s: float = 0, nonce: bytes = b"n" * 16) -> wire.Freshness:
    return wire.Freshness(sent_at_ms=int((clock.now_s - age_s) * 1000), nonce=nonce)


def test_a_nonce_is_good_once_for_as_long_as_it_could_be_fresh(clock: Clock) -> None:
    cache = NonceCache(clock)
    ahead = freshness(clock, age_s=-119)
    cache.check("a", ahead)
    cache.check("b", ahead)
    clock.now_s += 238  # still fresh, by its own date
    with pytest.raises(BadRecord, match="answered before"):
        cache.check("a", ahead)
    clock.now_s += 10
    with pytest.raises(Stale, match="clock"):
        cache.check("a", ahead)
    cache.check("a", freshness(clock))
    assert len(cache._seen) == 1


@pytest.mark.parametrize("nonce", [b"", b"n" * 15, b"n" * 17])
def test_nonces_have_one_size(clock: Clock, nonce: bytes) -> None:
    with pytest.raises(BadRecord, match="16 random bytes"):
        NonceCache(clock).check("a", freshness(clock, nonce=nonce))


@pytest.fixture
def guard(clock: Clock) -> RequestGuard:
    return RequestGuard(RUN, clock, per_key=Rate(1, 2), per_address=Rate(1, 4))


def test_a_record_is_signed_by_its_author(guard: RequestGuard) -> None:
    author, other = Identity.generate(), Identity.generate()
    report = wire.Report(run_id=RUN, worker=author.peer_id)
    assert guard.open(seal(report, author), wire.Report, peer="x").signer == author.peer_id
    with pytest.raises(BadSignature):
        guard.open(seal(report, other), wire.Report, peer="x")
    reducer = wire.ReducerReport(run_id=RUN, reducer=author.peer_id)
    with pytest.raises(BadSignature):
        guard.open(seal(reducer, other), wire.ReducerReport, peer="x")
    with pytest.raises(BadRecord, match="expected"):
        guard.open(seal(report, author), wire.Contribution, peer="x")


def test_records_with_a_natural_key_may_be_sent_again(guard: RequestGuard) -> None:
    author = Identity.generate()
    envelope = seal(wire.Report(run_id=RUN, worker=author.peer_id), author)
    first = guard.open(envelope, wire.Report, peer="x")
    assert guard.open(envelope, wire.Report, peer="x").digest == first.digest


def test_another_run_is_named(guard: RequestGuard) -> None:
    author = Identity.generate()
    envelope = seal(wire.Report(run_id=b"x" * 32, worker=author.peer_id), author)
    with pytest.raises(UnknownRun, match="ask the organiser"):
        guard.open(envelope, wire.Report, peer="x")


def test_an_address_is_limited_before_any_cryptography(guard: RequestGuard) -> None:
    garbage = wire.Envelope()
    for _ in range(4):
        with pytest.raises(BadRecord):
            guard.open(garbage, wire.Report, peer="ipv4:10.0.0.1:1")
    with pytest.raises(RateLimited):
        guard.open(garbage, wire.Report, peer="ipv4:10.0.0.1:2")
    with pytest.raises(BadRecord):
        guard.open(garbage, wire.Report, peer="ipv4:10.0.0.2:1")
