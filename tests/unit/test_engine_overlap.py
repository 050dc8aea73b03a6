"""``overlap = lag1`` through the engine: a round is reduced while the next one is trained."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from coordinator.audit import base_weights
from coordinator.audit.base_weights import BaseWeights
from coordinator.checkpoints import CheckpointStore
from coordinator.leases import consumed_batches
from coordinator.lost_rounds import go_on
from coordinator.opening import newest_state
from coordinator.schema import AssignmentRow, RoundRow
from ledger.tree import tree_size
from protocol.envelope import open_envelope
from protocol.errors import TooLate
from protocol.model import initial_weights
from protocol.outer import outer_step
from protocol.state import describe
from protocol.update import decode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2


async def train(*members: Any) -> None:
    """Lease and commit; the last one closes the round, if nothing holds it."""
    for member in members:
        await member.lease()
    for member in members:
        member.train()
        await member.commit()


async def reduce(rig: Any) -> list[service_pb2.ResultPiece]:
    """As far as the results, which are brought to nobody yet."""
    await rig.gather()
    pieces: list[service_pb2.ResultPiece] = rig.results()
    return pieces


async def settle(rig: Any, pieces: list[service_pb2.ResultPiece]) -> None:
    await rig.submit(pieces)
    assert await rig.engine.settle()
    await rig.engine.evaluate()


def rows(rig: Any) -> dict[int, tuple[str, int, int | None]]:
    """Phase, the state it is trained from, the state after it; by round."""
    with rig.database.session() as session:
        found = session.query(RoundRow).all()
        return {row.number: (row.phase, row.settled_rounds, row.settled_after) for row in found}


def newest_digest(rig: Any) -> bytes:
    with rig.database.session() as session:
        return bytes(newest_state(session).digest)


@pytest.fixture
def begin(boot: Any) -> Callable[..., Awaitable[Any]]:
    async def start(**manifest: Any) -> Any:
        rig = await boot(overlap="lag1", **{"round": {"min_members": 2}, **manifest})
        rig.enrol(1, anchor=True)
        rig.ada, rig.bob = rig.enrol(2), rig.enrol(3)
        return rig

    return start


async def test_a_round_trains_from_the_state_before_the_mean_that_it_does_not_wait_for(
    begin: Any,
) -> None:
    rig = await begin()
    first = rig.head()
    await train(rig.ada, rig.bob)
    assert rows(rig) == {0: ("GATHER", 0, None), 1: ("OPEN", 0, None)}
    head = rig.head()
    assert (head.round, head.state_digest) == (1, first.state_digest)

    pieces = await reduce(rig)
    before = await rig.ada.lease()
    await settle(rig, pieces)
    assert rig.head() == head, "a head that was signed stays"
    after = await rig.bob.lease()
    for assignment in (before, after):
        assert (assignment.round, assignment.tokens_base) == (1, 0)
        assert assignment.state_digest == first.state_digest

    rig.ada.train()
    rig.bob.train()
    await rig.ada.commit()
    await rig.bob.commit()
    roster, _ = rig.roster()
    assert roster.round == 1
    assert (rig.head().round, rig.head().state_digest) == (2, roster.state_digest)
    later = await reduce(rig)
    await settle(rig, later)

    # Each mean in turn, applied to the newest state.
    weights = initial_weights(rig.manifest)
    momentum = np.zeros_like(weights)
    for number, results in enumerate((pieces, later), start=1):
        encoded = tuple(piece.encoded for piece in results)
        mean = decode_update(encoded, rig.layout, rig.manifest.update.codec)
        weights, momentum = outer_step(weights, momentum, mean, rig.manifest.outer)
        described = describe(
            weights,
            momentum,
            round_=number,
            merged_tokens=number * 20 * rig.manifest.tokens_per_step,
            chunk_elements=rig.layout.chunk_elements,
        )
        if number == 1:
            assert described.digest == rig.head().state_digest
    assert newest_digest(rig) == described.digest
    assert rows(rig)[0] == ("SETTLED", 0, 1)
    assert rows(rig)[1] == ("SETTLED", 0, 2)
    assert rows(rig)[2] == ("OPEN", 1, None)
    board = rig.board()
    assert [board.rounds[n].leaf.merged_tokens for n in (0, 1)] == [
        20 * rig.manifest.tokens_per_step,
        40 * rig.manifest.tokens_per_step,
    ]
    with rig.database.session() as session:
        assert consumed_batches(session) == 40


async def test_a_round_that_is_ready_closes_with_the_end_of_the_one_before(begin: Any) -> None:
    rig = await begin()
    await train(rig.ada, rig.bob)
    pieces = await reduce(rig)
    await train(rig.ada, rig.bob)
    assert rows(rig)[1][0] == "TRAINING"
    await rig.pass_time(rig.manifest.round.duration_s + 1, heard=[rig.ada, rig.bob])
    assert rows(rig)[1][0] == "TRAINING", "or its mean had no state to be applied to"
    await settle(rig, pieces)
    assert {n: row[0] for n, row in rows(rig).items()} == {0: "SETTLED", 1: "GATHER", 2: "OPEN"}
    assert rig.head().state_digest == newest_digest(rig)
    await settle(rig, await reduce(rig))
    assert rig.board().total.contributions == 4


async def test_a_reduce_that_fails_costs_the_round_beside_it_nothing(begin: Any) -> None:
    rig = await begin(round={"min_members": 2, "max_attempts": 1})
    first = rig.head()
    await train(rig.ada, rig.bob)
    await train(rig.ada, rig.bob)
    while rows(rig)[0][0] != "SKIPPED":
        await rig.pass_time(200, heard=rig.members.values())
    assert rows(rig)[0] == ("SKIPPED", 0, 0)
    assert rows(rig)[1][0] == "GATHER", "it is ready, so it closed in the same moment"
    with rig.database.session() as session:
        status = {row.round: row.status for row in session.query(AssignmentRow).all()}
    assert status == {0: "unmerged", 1: "committed"}
    assert rig.head().state_digest == first.state_digest
    await settle(rig, await reduce(rig))
    assert rows(rig)[1] == ("SETTLED", 0, 1)
    assert [entry.leaf.outcome for entry in rig.board().rounds.values()] == ["skipped", "settled"]


async def test_killed_in_the_overlap_it_goes_on_with_both_rounds(begin: Any) -> None:
    rig = await begin()
    await train(rig.ada, rig.bob)
    pieces = await reduce(rig)
    await rig.submit(pieces[:1])
    await rig.ada.lease()
    rig.ada.train()
    await rig.ada.commit()
    leased = await rig.bob.lease()

    await rig.reboot(downtime_s=3600.0)
    assert {n: row[0] for n, row in rows(rig).items()} == {0: "BROADCAST", 1: "TRAINING"}
    assert await rig.bob.lease() == leased
    await rig.submit(pieces[1:])
    await rig.reboot()  # every result is held, and nothing is made of them yet
    assert await rig.engine.settle()
    rig.bob.train()
    await rig.bob.commit()
    await settle(rig, await reduce(rig))
    assert [row[2] for row in rows(rig).values()] == [1, 2, None]
    assert rig.board().total.contributions == 4


async def test_the_last_round_is_not_followed_by_another(begin: Any) -> None:
    rig = await begin(round={"min_members": 2, "max_rounds": 1})
    await train(rig.ada, rig.bob)
    assert (await rig.ada.request()).wait.code == "round_closing"
    await settle(rig, await reduce(rig))
    assert (await rig.ada.request()).wait.code == "finished"


async def test_a_last_round_that_fails_is_followed_by_another(begin: Any) -> None:
    limits = {"min_members": 2, "max_rounds": 1, "max_attempts": 1}
    rig = await begin(round=limits)
    await train(rig.ada, rig.bob)
    assert (await rig.ada.request()).wait.code == "round_closing"
    while rows(rig)[0][0] != "SKIPPED":
        await rig.pass_time(200, heard=rig.members.values())
    assert (await rig.ada.lease()).round == 1


async def test_who_comes_in_the_overlap_hears_of_both_rounds(begin: Any) -> None:
    rig = await begin()
    await train(rig.ada, rig.bob)
    await rig.gather()
    found = await rig.snapshot()
    head, roster = wire.RunHead(), wire.Roster()
    head.ParseFromString(found["run_head"].payload)
    roster.ParseFromString(found["roster"].payload)
    assert (head.round, roster.round) == (1, 0)
    inclusion = open_envelope(found["inclusion_set"], wire.InclusionSet).record
    assert inclusion.round == 0
    async with rig.watching() as events:
        event = await anext(events)
        assert (event.round, event.phase, event.running_from) == (1, "OPEN", 0)
        for _ in range(2):
            await anext(events)
        await rig.submit(rig.results())
        assert await rig.engine.settle()
        event = await anext(events)
        assert (event.round, event.phase, event.running_from) == (0, "SETTLED", 1)


async def test_heartbeats_keep_what_is_reduced_and_silence_ends_what_is_trained(
    begin: Any,
) -> None:
    rig = await begin()
    await train(rig.ada, rig.bob)
    reduced = rig.ada.assignment.assignment_id
    reply = await rig.ada.beat(assignment_id=reduced)
    assert reply.action == service_pb2.ACTION_KEEP
    pieces = await reduce(rig)
    await rig.ada.lease()
    await rig.pass_time(rig.options.silent_after_s + 1, heard=[rig.bob])
    with rig.database.session() as session:
        found = {(row.round, row.worker): row.status for row in session.query(AssignmentRow)}
    assert found[1, rig.ada.name] == "expired"
    assert found[0, rig.ada.name] == "committed"
    await settle(rig, pieces)
    assert rig.board().total.contributions == 2


async def test_a_report_and_a_late_commit_are_about_their_own_round(begin: Any) -> None:
    rig = await begin()
    cid = rig.enrol(4)
    late = await cid.lease()
    cid.train()
    await train(rig.ada, rig.bob)
    await rig.pass_time(rig.manifest.round.duration_s + 1, heard=rig.members.values())
    await rig.pass_time(rig.manifest.round.grace_s + 1, heard=rig.members.values())
    assert rows(rig)[0][0] == "GATHER"
    with pytest.raises(TooLate, match="round 0 closed"):
        await cid.commit()
    assert late.round == 0
    pieces = await reduce(rig)
    reply = await rig.ada.report(bytes(32))
    assert list(reply.missing) == list(range(rig.layout.count))
    assert not reply.settled
    await settle(rig, pieces)
    assert (await rig.ada.report(bytes(32))).settled


async def test_after_a_restore_both_rounds_are_given_up(begin: Any) -> None:
    rig = await begin()
    await train(rig.ada, rig.bob)
    await rig.ada.lease()
    with rig.database.session() as session:
        went_on = go_on(
            rig.engine.context, session, skip=5, log_size=tree_size(session), now_s=rig.now_s
        )
    assert (went_on.lost_round, went_on.next_round) == (1, 7)
    await rig.reboot()
    with rig.database.session() as session:
        assert {row.status for row in session.query(AssignmentRow)} == {"unmerged", "expired"}
    await train(rig.ada, rig.bob)
    await settle(rig, await reduce(rig))
    assert rows(rig)[7] == ("SETTLED", 0, 1)
    assert list(rig.board().rounds) == [7]


async def test_audits_replay_from_what_was_trained_from(start_audits: Any) -> None:
    rig = await start_audits(overlap="lag1")
    for _ in range(3):
        await train(*rig.workers)
        await settle(rig, await reduce(rig))
        rig._keep_weights()
    await rig.audit()
    # From the states 0, 0 and 1: each round was trained from the one before the newest.
    assert [row[1] for row in rows(rig).values()] == [0, 0, 1, 2]
    assert {row["verdict"] for row in rig.audits()} == {"passed"}
    assert len(rig.audits()) == 6
    assert {row["verdict"] for row in rig.reducer_audits()} == {"passed"}
    rig.board()


async def test_weights_of_an_overlapped_run_are_rebuilt_from_its_means(begin: Any) -> None:
    rig = await begin()
    for _ in range(4):
        await train(rig.ada, rig.bob)
        await settle(rig, await reduce(rig))
    store = CheckpointStore(str(rig.folder / "blobs"), rig.manifest)
    with rig.database.session() as session:
        target = newest_state(session)
        plan = base_weights.plan(session, target.digest)
        sha256 = target.weights_sha256
    expected = store.load_weights(sha256)
    assert len(plan.ancestors) == 4
    first = plan.ancestors[-1].saved
    store.prune((first,), frozenset())
    assert np.array_equal(BaseWeights(store, rig.manifest).load(plan), expected)
