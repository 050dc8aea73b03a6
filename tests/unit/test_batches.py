"""Requests that are answered together: each by itself, however many came at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from unittest.mock import patch

import pytest

from coordinator.batches import Batches
from protocol.errors import BadRecord, TransientError

ASYNCIO_SLEEP = asyncio.sleep


class Desk:
    """Answers with the request, and remembers which came together; the first batch can be held."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on = asyncio.Event()

    async def answer(self, requests: Sequence[str]) -> list[str | BadRecord]:
        self.batches.append(list(requests))
        await self.go_on.wait()
        if "away" in requests:
            raise TransientError("the database is away")
        if "bug" in requests:
            raise ZeroDivisionError
        return [BadRecord(each) if each == "bad" else each for each in requests]


async def ask_all(desk: Desk, requests: Sequence[str], most: int = 4) -> list[object]:
    """Ask while the first request is being answered."""
    batches = Batches[str, str](desk.answer, most)
    first = asyncio.create_task(batches.ask("first"))
    await asyncio.sleep(0)
    others = [asyncio.create_task(batches.ask(each)) for each in requests]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert desk.batches == [["first"]]
    desk.go_on.set()
    assert await first == "first"
    return await asyncio.gather(*others, return_exceptions=True)


async def test_what_gathered_is_answered_together_in_its_order_and_bounded() -> None:
    desk = Desk()
    asked = [str(number) for number in range(6)]
    assert await ask_all(desk, asked) == asked
    assert desk.batches == [["first"], asked[:4], asked[4:]]


async def test_in_a_crowd_the_first_waits_for_others() -> None:
    desk = Desk()
    desk.go_on.set()
    gathered = asyncio.Event()

    async def gather(_s: float) -> None:
        await gathered.wait()

    batches = Batches[str, str](desk.answer, 4, lambda: 0.1)
    with patch("coordinator.batches.asyncio.sleep", gather):
        first = asyncio.create_task(batches.ask("first"))
        await turns_of_the_loop()
        assert desk.batches == []
        second = asyncio.create_task(batches.ask("second"))
        await turns_of_the_loop()
        gathered.set()
        assert [await first, await second] == ["first", "second"]
    assert desk.batches == [["first", "second"]]


async def test_a_batch_that_is_full_waits_for_nobody() -> None:
    desk = Desk()
    desk.go_on.set()
    batches = Batches[str, str](desk.answer, 2, lambda: 3600.0)
    async with asyncio.timeout(60):
        assert await asyncio.gather(batches.ask("one"), batches.ask("two")) == ["one", "two"]
    assert desk.batches == [["one", "two"]]


async def turns_of_the_loop() -> None:
    """Let everything go on that can."""
    for _ in range(3):
        await ASYNCIO_SLEEP(0)


async def test_an_error_is_its_own_requests() -> None:
    desk = Desk()
    good, bad, other = await ask_all(desk, ["good", "bad", "other"])
    assert (good, other) == ("good", "other")
    assert isinstance(bad, BadRecord)
    assert len(desk.batches) == 2


async def test_an_error_of_ours_is_everybodys() -> None:
    desk = Desk()
    for outcome in await ask_all(desk, ["one", "away"]):
        assert isinstance(outcome, TransientError)
    assert len(desk.batches) == 2


async def test_after_a_bug_each_is_tried_alone() -> None:
    desk = Desk()
    one, bug, two = await ask_all(desk, ["one", "bug", "two"])
    assert (one, two) == ("one", "two")
    assert isinstance(bug, ZeroDivisionError)
    assert desk.batches[2:] == [["one"], ["bug"], ["two"]]


async def test_who_gets_no_answer_hears_of_a_bug_and_does_not_wait_for_ever() -> None:
    async def forget_the_last(requests: Sequence[str]) -> list[str]:
        return list(requests[: len(requests) - ("forgotten" in requests)])

    batches = Batches[str, str](forget_the_last, 4)
    async with asyncio.timeout(1):
        one, forgotten = await asyncio.gather(
            batches.ask("one"), batches.ask("forgotten"), return_exceptions=True
        )
    assert one == "one"
    assert isinstance(forgotten, RuntimeError)


async def test_who_hangs_up_before_its_turn_is_not_answered() -> None:
    desk = Desk()
    batches = Batches[str, str](desk.answer, 4)
    first = asyncio.create_task(batches.ask("first"))
    await asyncio.sleep(0)
    gone, waits = (asyncio.create_task(batches.ask(each)) for each in ("gone", "waits"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    desk.go_on.set()
    assert [await first, await waits] == ["first", "waits"]
    assert desk.batches == [["first"], ["waits"]]


async def test_who_hangs_up_in_the_middle_takes_nobody_along() -> None:
    desk = Desk()
    batches = Batches[str, str](desk.answer, 4)
    first = asyncio.create_task(batches.ask("first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    desk.go_on.set()
    assert await batches.ask("next") == "next"
