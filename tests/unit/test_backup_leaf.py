"""The leaf of a restore in the fold: what it may change, and what not."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from ledger.fold import Board, fold
from ledger.log import read_leaves
from ledger.records import RestoreLeaf
from ledger.tree import tree_size
from protocol.draw import CHAIN_ROUNDS
from protocol.errors import BadRecord


def leaves_of(history: Any) -> list[bytes]:
    with Session(history.engine) as session:
        return list(read_leaves(session, 0, tree_size(session)))


def restore_leaf(board: Board, number: int = 0, **changes: Any) -> RestoreLeaf:
    """Back to the state after the round ``number``."""
    state = board.rounds[number].leaf
    fields = {
        "run_id": board.run_id,
        "at_s": board.newest_s + 10,
        "log_size": board.size,
        "next_round": 1000,
        "settled_rounds": 1,
        "state_digest": state.state_digest,
        "merged_tokens": state.merged_tokens,
    }
    return RestoreLeaf(**{**fields, **changes})


@pytest.fixture
def board(history: Any) -> Board:
    return fold(leaves_of(history))


def test_a_restore_goes_back_to_a_state_of_the_record(board: Board) -> None:
    before = board.total.tokens
    leaf = restore_leaf(board)
    assert board.merged_tokens > leaf.merged_tokens
    board.apply(leaf.canonical())
    assert board.merged_tokens == leaf.merged_tokens
    assert board.total.tokens == before  # credit stands
    newest = board.rounds[2].leaf
    skipped = newest.model_copy(
        update={
            "round": 1000,
            "outcome": "skipped",
            "members": 0,
            "result_digest": None,
            "state_digest": leaf.state_digest,
            "merged_tokens": leaf.merged_tokens,
        }
    )
    for wrong in ({"round": 3}, {"round": 1001}, {"state_digest": newest.state_digest}):
        with pytest.raises(BadRecord):
            board.apply(skipped.model_copy(update=wrong).canonical())
    board.apply(skipped.canonical())
    board.check_merged()
    assert list(board.rounds) == [0, 1, 2, 1000]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"next_round": 2}, "again"),
        ({"next_round": 3}, "again"),
        ({"log_size": 10_000}, "there are only"),
        ({"merged_tokens": 1}, "no round of this record led to"),
        ({"state_digest": "7" * 64}, "no round of this record led to"),
    ],
)
def test_a_restore_does_not_use_numbers_again_nor_invent_a_state(
    board: Board, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadRecord, match=says):
        board.apply(restore_leaf(board, **changes).canonical())
    assert board.restores == []


def test_a_restore_stays_within_the_chain_of_draws(board: Board) -> None:
    with pytest.raises(ValueError, match="next_round"):
        restore_leaf(board, next_round=CHAIN_ROUNDS)


def test_what_a_restore_lost_is_final_and_waits_for_no_draw(board: Board) -> None:
    credits = board.accounts.credits
    lost = [credit for credit in credits.values() if credit.leaf.round == 2]
    assert {credit.status for credit in lost} == {"pending"}
    awaited = board.awaited_draws
    first = min(credit.index for credit in lost)
    board.apply(restore_leaf(board, log_size=first).canonical())
    assert {credit.status for credit in lost} == {"final"}
    assert {c.status for c in credits.values() if c.index < first} == {"pending"}
    assert board.awaited_draws == awaited - 1
    assert board.total.final_microcredits == sum(credit.leaf.microcredits for credit in lost)
