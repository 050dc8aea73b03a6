"""A worker whose clock is off by a sleep of its machine: every dated call mends it by itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import NotEnrolled, NotFound, PeerFault, Stale, TransientError, UsageError
from protocol.wire import records_pb2 as wire
from worker.clock import steady_s
from worker.session import Session

HOUR_S = 3600.0


def enrolment(session: Session) -> wire.Enrolment:
    worker = session.identity.peer_id
    device = wire.Device(device_class="cpu", name="a laptop", threads=1)
    return wire.Enrolment(
        run_id=session.link.run_id,
        worker=worker,
        donor=worker,
        client_version="0.1.0",
        device=device,
        client_mode=True,
    )


def beat(session: Session) -> wire.Heartbeat:
    return wire.Heartbeat(run_id=session.link.run_id, worker=session.identity.peer_id)


async def first_event(session: Session) -> Any:
    events = session.watch()
    try:
        return await anext(events)
    finally:
        await events.aclose()


CALLS: dict[str, Callable[[Session], Awaitable[Any]]] = {
    "enrol": lambda session: session.enrol(enrolment(session)),
    "request_work": lambda session: session.request_work(1000.0),
    "heartbeat": lambda session: session.heartbeat(beat(session)),
    "watch": first_event,
}


def off_by(session: Session, seconds: float) -> None:
    session.clock.offset_s += seconds


@pytest.mark.parametrize("skew_s", [-HOUR_S, HOUR_S])
@pytest.mark.parametrize("name", CALLS)
async def test_a_clock_that_is_off_is_learnt_again(
    session: Session, name: str, skew_s: float
) -> None:
    await session.enrol(enrolment(session))
    off_by(session, skew_s)
    await CALLS[name](session)
    assert abs(session.now_s() - time.time()) < 5


async def test_an_appeal_too_and_its_own_refusal_comes_through(session: Session) -> None:
    await session.enrol(enrolment(session))
    off_by(session, -HOUR_S)
    with pytest.raises((NotFound, UsageError)):
        await session.appeal(bytes(16))
    assert abs(session.now_s() - time.time()) < 5


async def test_it_is_tried_once_and_is_nobodys_fault(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hello that does not help, as from a coordinator whose own clock steps about."""
    hellos = []

    async def hello() -> None:
        hellos.append(None)

    monkeypatch.setattr(session, "hello", hello)
    off_by(session, -HOUR_S)
    for call in CALLS.values():
        with pytest.raises(Stale, match="clock") as caught:
            await call(session)
        assert isinstance(caught.value, TransientError)
        assert not isinstance(caught.value, PeerFault)
    assert len(hellos) == len(CALLS)


async def test_what_is_refused_for_another_reason_says_no_hello(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hello() -> None:
        raise AssertionError("nobody asked for the clock")

    monkeypatch.setattr(session, "hello", hello)
    with pytest.raises(NotEnrolled):
        await session.request_work(1000.0)


def test_the_clock_that_deadlines_follow_does_not_stop_in_a_sleep() -> None:
    """Python's monotonic clock would; a sleep of this machine shows as the difference."""
    at_s = steady_s()
    assert at_s >= time.monotonic() - 0.1
    assert steady_s() >= at_s
