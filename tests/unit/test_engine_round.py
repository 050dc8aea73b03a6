"""Whole rounds through the engine: real keys, real encodings, no network."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from coordinator.leases import consumed_batches
from protocol.errors import NotFound
from protocol.model import initial_weights
from protocol.outer import outer_step
from protocol.state import describe
from protocol.update import decode_update
from protocol.wire import records_pb2 as wire


async def test_two_members_settle_and_agree_with_the_coordinator(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    anchor, ada, bob = rig.enrol(1, anchor=True), rig.enrol(2), rig.enrol(3)
    before = rig.head()
    for member in (ada, bob):
        await member.lease()
        member.train()
    assert (await ada.commit()).first
    assert rig.phase() == "TRAINING"
    assert (await bob.commit()).first
    assert rig.phase() == "GATHER"
    roster, _ = rig.roster()
    assert [m.worker for m in roster.members] == [ada.name, bob.name]
    assert [r.reducer for r in roster.reducers] == [anchor.name]
    await rig.gather()
    assert rig.phase() == "BROADCAST"
    pieces = rig.results()
    assert list((await rig.submit(pieces[:2])).missing) == list(range(2, rig.layout.count))
    assert not (await rig.submit(pieces[2:])).missing
    digest = _member_digest(rig, [p.encoded for p in pieces], ada, bob)
    assert not (await ada.report(digest)).settled
    assert await rig.engine.settle()
    assert not await rig.engine.settle()
    await rig.engine.evaluate()

    head = rig.head()
    assert (head.round, head.settled_rounds) == (before.round + 1, before.settled_rounds + 1)
    assert head.state_digest == digest != before.state_digest
    reply = await bob.report(digest)
    assert reply.settled
    assert reply.agrees
    board = rig.board()
    assert board.merged_tokens == head.merged_tokens == 2 * 10 * rig.manifest.tokens_per_step
    assert board.total.contributions == 2
    assert board.total.chunks == rig.layout.count
    with rig.database.session() as session:
        assert consumed_batches(session) == 20


def _member_digest(rig: Any, encoded: list[bytes], *members: Any) -> bytes:
    """What a member computes from the pieces alone."""
    weights = initial_weights(rig.manifest)
    mean = decode_update(tuple(encoded), rig.layout, rig.manifest.update.codec)
    weights, momentum = outer_step(weights, np.zeros_like(weights), mean, rig.manifest.outer)
    tokens = sum(m.assignment.steps for m in members) * rig.manifest.tokens_per_step
    descriptor = describe(
        weights,
        momentum,
        round_=1,
        merged_tokens=tokens,
        chunk_elements=rig.layout.chunk_elements,
    )
    return descriptor.digest


async def test_a_report_that_differs_is_told_so_and_decides_nothing(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await rig.play_round(ada)
    reply = await ada.report(b"\x01" * 32)
    assert reply.settled
    assert not reply.agrees
    assert rig.head().settled_rounds == 1


async def test_rounds_follow_each_other_on_the_settled_state(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada, bob = rig.enrol(2), rig.enrol(3)
    digests = {rig.head().state_digest}
    for expected in (1, 2, 3):
        await rig.play_round(ada, bob)
        head = rig.head()
        digests.add(head.state_digest)
        assert head.settled_rounds == head.round == expected
    assert len(digests) == 4
    assert ada.assignment.tokens_base == 2 * 20 * rig.manifest.tokens_per_step
    assert len(rig.board().rounds) == 3


async def test_a_partial_contribution_gives_its_rest_back(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    first = await ada.lease()
    ada.train()
    await ada.commit(steps=4)
    await rig.gather()
    await rig.submit(rig.results())
    await rig.engine.settle()
    await rig.engine.evaluate()
    assert rig.board().merged_tokens == 4 * rig.manifest.tokens_per_step
    second = await ada.lease()
    batch = rig.manifest.inner.sequences_per_batch
    assert second.start_sequence == first.start_sequence + 4 * batch


async def test_nobody_waits_for_a_straggler_beyond_the_grace(boot: Any) -> None:
    rig = await boot(round={"grace_s": 5.0})
    rig.enrol(1, anchor=True)
    ada, slow = rig.enrol(2), rig.enrol(3)
    for member in (ada, slow):
        await member.lease()
        member.train()
    await ada.commit()
    await rig.pass_time(10.0)
    assert rig.phase() == "COMMITTING"
    await rig.pass_time(5.0)
    assert rig.phase() == "GATHER"
    roster, _ = rig.roster()
    assert [m.worker for m in roster.members] == [ada.name]


async def test_a_late_joiner_gets_a_lease_for_the_rest_of_the_round(boot: Any) -> None:
    rig = await boot(inner={"max_steps": 100})
    ada, late = rig.enrol(2), rig.enrol(3)
    speed = 10.0 * rig.manifest.tokens_per_step
    assert (await ada.lease(speed)).steps == 90
    await rig.pass_time(6.0)
    assert (await late.lease(speed)).steps == 36
    await rig.pass_time(3.95)
    assert (await rig.enrol(4).request(speed)).wait.code == "round_closing"


async def test_too_few_members_skip_and_free_their_data(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    before = rig.head()
    first = await ada.lease()
    ada.train()
    await ada.commit()
    assert (await ada.request()).wait.code == "committed"
    await rig.pass_time(10.0)
    after = rig.head()
    assert after.round == before.round + 1
    assert after.state_digest == before.state_digest
    assert rig.board().rounds[0].leaf.outcome == "skipped"
    with pytest.raises(NotFound, match="not merged"):
        await rig.engine.receipt(first.assignment_id)
    assert (await ada.lease()).start_sequence == first.start_sequence


async def test_the_run_finishes_after_its_rounds(boot: Any) -> None:
    rig = await boot(round={"max_rounds": 1})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await rig.play_round(ada)
    assert (await ada.request()).wait.code == "finished"


async def test_pause_gives_no_leases_but_finishes_the_round(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada, bob = rig.enrol(2), rig.enrol(3)
    await ada.lease()
    await rig.engine.set_paused(True)
    assert (await bob.request()).wait.code == "paused"
    assert (await bob.beat()).action == 3  # ACTION_PAUSE
    assert (await ada.beat(assignment_id=ada.assignment.assignment_id)).action == 1  # KEEP
    ada.train()
    await ada.commit()
    await rig.gather()
    await rig.submit(rig.results())
    assert await rig.engine.settle()
    assert (await ada.request()).wait.code == "paused"
    await rig.engine.set_paused(False)
    assert (await bob.lease()).round == 1


async def test_the_command_line_pauses_through_the_database(boot: Any) -> None:
    from coordinator.schema import ControlRow

    rig = await boot()
    ada = rig.enrol(2)
    with rig.database.session() as session:
        session.get_one(ControlRow, 1).paused = True
    await rig.pass_time(1.0)
    assert (await ada.request()).wait.code == "paused"


async def test_watching_shows_the_whole_round(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    seen = []
    async with rig.engine.subscribe(ada.name) as events:
        await rig.play_round(ada)
        async for event in events:
            seen.append((event.phase, event.WhichOneof("event")))
            assert event.sequence == len(seen)
            if event.phase == "OPEN" and len(seen) > 1:
                break
    assert seen == [
        ("OPEN", "run_head"),
        ("TRAINING", "notice"),
        ("GATHER", "roster"),
        ("BROADCAST", "inclusion_set"),
        ("SETTLED", "notice"),
        ("OPEN", "run_head"),
    ]


async def test_a_receipt_verifies(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await rig.play_round(ada)
    receipt = await rig.engine.receipt(ada.assignment.assignment_id)
    assert ada.name.encode() in receipt.leaf
    with pytest.raises(NotFound):
        await rig.engine.receipt(b"\x00" * 16)


async def test_validation_loss_is_logged_and_does_not_hold_up_the_next_round(boot: Any) -> None:
    gate = asyncio.Event()

    async def evaluate(weights: np.ndarray) -> float:
        await gate.wait()
        return 4.25 if weights.any() else float("nan")

    rig = await boot(rig={"evaluate": evaluate})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    await ada.commit()
    await rig.gather()
    await rig.submit(rig.results())
    await rig.engine.settle()
    assert rig.board().rounds == {}
    assert (await ada.lease()).round == 1
    gate.set()
    while await rig.engine.evaluate():
        pass
    assert rig.board().rounds[0].leaf.validation_loss_micronats == 4_250_000


async def test_run_drives_everything_by_itself(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    async with rig.engine.subscribe(ada.name) as events, asyncio.timeout(20):
        running = asyncio.ensure_future(rig.engine.run())
        await ada.lease()
        ada.train()
        await ada.commit()
        await rig.gather()
        await rig.submit(rig.results())
        async for event in events:
            if event.WhichOneof("event") == "run_head" and event.round == 1:
                break
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert wire.RunHead.FromString(event.run_head.payload).settled_rounds == 1


async def test_the_next_roster_gives_a_slow_reducer_fewer_chunks(boot: Any) -> None:
    rig = await boot()
    fast, slow, ada = rig.enrol(1, anchor=True), rig.enrol(2, anchor=True), rig.enrol(3)
    shares = []
    for _ in range(2):
        await ada.lease()
        ada.train()
        await ada.commit()
        roster, _ = rig.roster()
        shares.append({r.reducer: r.end_chunk - r.first_chunk for r in roster.reducers})
        await rig.gather()
        for reducer, taken_s in ((fast, 4), (slow, 8)):
            rig.now_s += taken_s
            pieces = [p for p in rig.results() if p.result.signatures[0].keyid == reducer.name]
            await rig.submit(pieces)
        assert await rig.engine.settle()
    evenly, by_speed = shares
    assert abs(evenly[fast.name] - evenly[slow.name]) <= 1
    # Twelve seconds against four: a quarter of the chunks.
    assert by_speed[slow.name] == pytest.approx(rig.layout.count / 4, abs=1)
