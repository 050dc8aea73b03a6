"""Places, allowances, bounds before parsing, and what a refusal tells its client."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable

import grpc
import pytest

from coordinator.bounds import check_bounds
from coordinator.grpc_status import status_of
from coordinator.overload import Places, Share, Shares, Visitor, allow_many_connections
from coordinator.requests import (
    GREETINGS_PER_CONNECTION,
    Acquaintances,
    NonceCache,
    Rate,
    RequestGuard,
)
from coordinator.shared_read import SharedRead
from protocol.channel import LONGEST_WAIT_S, call, translate
from protocol.envelope import seal
from protocol.errors import BadRecord, BadSignature, RateLimited, TransientError
from protocol.identity import Identity
from protocol.limits import MAX_RECORD_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

RUN = b"r" * 32
SHARES = Shares(Share(4, per_address=3, per_key=2), Share(2, per_address=1))
HOME = "ipv4:10.0.0.1"


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_strangers_take_no_place_of_known_devices() -> None:
    places = Places("downloads", SHARES)
    stranger, neighbour = Visitor("a", None), Visitor("a", "key")
    with places.one(stranger):
        with pytest.raises(RateLimited, match=r"1 downloads from this address .* try again in"):
            places.one(stranger).__enter__()
        with places.one(Visitor("b", None)), pytest.raises(RateLimited, match="not enrolled"):
            places.one(Visitor("c", None)).__enter__()
        with places.one(neighbour), places.one(neighbour):
            with pytest.raises(RateLimited, match="of this device") as refused:
                places.one(neighbour).__enter__()
            assert refused.value.retry_after_s
            with places.one(Visitor("a", "other")):
                with pytest.raises(RateLimited, match="from this address"):
                    places.one(Visitor("a", "third")).__enter__()
                with places.one(Visitor("b", "fourth")), pytest.raises(RateLimited, match="in all"):
                    places.one(Visitor("c", "fifth")).__enter__()
    assert not places._taken  # whatever was taken was given back


def test_a_flood_from_the_same_address_locks_no_known_device_out() -> None:
    device, clock = Identity.generate(), Clock()
    known = Acquaintances([device.peer_id])
    guard = RequestGuard(RUN, clock, per_key=Rate(1, 4), per_address=Rate(1, 4), known=known)
    for port in range(20):
        stranger = Identity.generate()
        request = seal(wire.Report(run_id=RUN, worker=stranger.peer_id), stranger)
        try:
            guard.open(request, wire.Report, peer=f"{HOME}:{port}")
        except RateLimited as error:
            assert error.retry_after_s is not None
    with pytest.raises(RateLimited):
        guard.allow(f"{HOME}:99")
    report = seal(wire.Report(run_id=RUN, worker=device.peer_id), device)
    assert guard.visitor(f"{HOME}:100").key is None
    guard.open(report, wire.Report, peer=f"{HOME}:100")
    guard.allow(f"{HOME}:100")  # its downloads, too: the connection has proven whose it is
    assert guard.visitor(f"{HOME}:100").key == device.peer_id


def test_who_only_names_a_known_device_gets_no_more_than_a_connection_may() -> None:
    device, liar, clock = Identity.generate(), Identity.generate(), Clock()
    known = Acquaintances([device.peer_id])
    guard = RequestGuard(RUN, clock, per_key=Rate(1, 4), per_address=Rate(1, 4), known=known)
    forged = seal(wire.Report(run_id=RUN, worker=device.peer_id), liar)
    forged.signatures[0].keyid = device.peer_id
    outcomes = []
    for _ in range(6):
        with pytest.raises((RateLimited, BadSignature)) as refused:
            guard.open(forged, wire.Report, peer=f"{HOME}:1")
        outcomes.append(type(refused.value).__name__)
    assert outcomes == ["BadSignature"] * 4 + ["RateLimited"] * 2
    assert guard.visitor(f"{HOME}:1").key is None
    report = seal(wire.Report(run_id=RUN, worker=device.peer_id), device)
    for _ in range(4):  # not one token of the device's own was spent
        guard.open(report, wire.Report, peer=f"{HOME}:2")


def test_first_greetings_on_a_connection_are_let_through() -> None:
    guard = RequestGuard(RUN, Clock(), per_key=Rate(1, 1), per_address=Rate(1, 1))
    guard.allow(f"{HOME}:1")
    for _ in range(GREETINGS_PER_CONNECTION.burst):
        guard.allow_greeting(f"{HOME}:1")
    with pytest.raises(RateLimited):
        guard.allow_greeting(f"{HOME}:1")
    guard.allow_greeting(f"{HOME}:2")


def test_strangers_cannot_use_up_the_memory_of_nonces() -> None:
    clock = Clock()
    cache = NonceCache(clock, most_of_strangers=2)

    def fresh(number: int) -> wire.Freshness:
        return wire.Freshness(sent_at_ms=int(clock.now_s * 1000), nonce=number.to_bytes(16))

    cache.check("a", fresh(1), known=False)
    cache.check("a", fresh(2), known=False)
    with pytest.raises(TransientError) as refused:
        cache.check("a", fresh(3), known=False)
    assert refused.value.retry_after_s == 60
    cache.check("k", fresh(4))
    with pytest.raises(BadRecord):  # let in meanwhile: its nonces are still remembered
        cache.check("a", fresh(1))
    clock.now_s += 300
    cache.check("a", fresh(5), known=False)


@pytest.mark.parametrize(
    ("method", "data", "envelope", "why"),
    [
        ("Hello", bytes(5000), False, "allowed are 4096"),
        ("Heartbeat", bytes(70_000), True, "allowed are 65536"),
        ("ReducerReport", b"\x1a\x00" * 400_000, True, "more than 16 fields"),
        ("AnswerChallenge", b"\x12\x00" * 400_000, False, "more than 1024 fields"),
        ("ReducerReport", bytes(MAX_RECORD_BYTES + 5000), True, "allowed are"),
        ("Unheard", bytes(70_000), False, "allowed are"),
    ],
)
def test_requests_are_bounded_before_they_are_parsed(
    method: str, data: bytes, envelope: bool, why: str
) -> None:
    with pytest.raises(BadRecord, match=why):
        check_bounds(method, data, envelope=envelope)


def test_the_largest_honest_requests_pass() -> None:
    envelope = wire.Envelope(payload=bytes(MAX_RECORD_BYTES), payload_type="x" * 100)
    envelope.signatures.add(keyid="k" * 52, sig=bytes(64))
    check_bounds("ReducerReport", envelope.SerializeToString(), envelope=True)
    piece = api.ResultPiece(encoded=bytes(1 << 20))
    check_bounds("SubmitResults", piece.SerializeToString(), envelope=False)
    for noise in (b"", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f" * 8, b"\x0c" * 40):
        check_bounds("Commit", noise, envelope=True)  # the parser's to refuse


async def test_those_who_ask_at_once_share_a_read_that_began_after_they_asked() -> None:
    begun, reading, go_on = 0, asyncio.Event(), asyncio.Event()

    async def read() -> int:
        nonlocal begun
        begun += 1
        number = begun
        reading.set()
        await go_on.wait()
        return number

    shared = SharedRead(read)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(shared.get())
        await reading.wait()
        others = [tasks.create_task(shared.get()) for _ in range(100)]
        await asyncio.sleep(0)
        go_on.set()
    assert first.result() == 1
    assert {other.result() for other in others} == {2}
    assert await shared.get() == 3


class Refusal(grpc.aio.AioRpcError):
    def __init__(self, error: TransientError) -> None:
        status = status_of(error)
        super().__init__(status.code, grpc.aio.Metadata(), status.trailing_metadata, status.details)


def attempts_of(*problems: Exception) -> Callable[[float], Awaitable[str]]:
    left = list(problems)

    async def attempt(_: float) -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return attempt


async def test_a_client_comes_back_when_it_is_told_to() -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    busy = Refusal(RateLimited("too many", retry_after_s=0.3))
    assert await call(attempts_of(busy, busy), base_delay_s=0.01) == "answer"
    assert loop.time() - began_s >= 0.6


async def test_a_long_wait_is_left_to_the_caller() -> None:
    late = Refusal(RateLimited("enough for today", retry_after_s=LONGEST_WAIT_S + 1))
    with pytest.raises(RateLimited) as refused:
        await call(attempts_of(late))
    assert refused.value.retry_after_s == LONGEST_WAIT_S + 1
    with pytest.raises(RateLimited):
        await call(attempts_of(Refusal(RateLimited("no hint"))))


def test_a_hint_survives_the_wire() -> None:
    error = translate(Refusal(RateLimited("slow down", retry_after_s=1.25)))
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 1.25
    assert str(error) == "slow down"
    plain = translate(Refusal(TransientError("restarting")))
    assert type(plain) is TransientError
    assert plain.retry_after_s is None


def test_the_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, before[1]), before[1]))
        assert allow_many_connections() >= 64
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
