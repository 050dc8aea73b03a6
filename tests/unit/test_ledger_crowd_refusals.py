"""What may follow what: every leaf of an act that the fold refuses, with its reason.

Each case prepares a record, then offers an act. It is refused with the words, whoever signed it,
and changes nothing: the fold goes on afterwards as if it had never come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from ledger.fold import Board
from ledger.log import read_leaves
from ledger.standing import standings
from protocol.audit_policy import Verdict
from protocol.errors import BadRecord
from protocol.wire import records_pb2 as wire

Case = Callable[[Any, Any], tuple[Any, Any]]
"""Prepares a record; gives an act and its signer."""

CASES: dict[str, tuple[str, Case]] = {}


def case(words: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[function.__name__] = (words, function)
        return function

    return add


def campaigner(crowd: Any) -> Any:
    return crowd.keys.CAMPAIGNER


def treasurer(crowd: Any) -> Any:
    return crowd.keys.TREASURER


def unknown() -> bytes:
    return bytes(16)


# ---- campaigns ----


@case("still open")
def a_second_open_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    return crowd.terms("two"), campaigner(crowd)


@case("as the manifest says")
def a_revision_of_campaign_zero(crowd: Any, _history: Any) -> tuple[Any, Any]:
    record = crowd.terms("one")
    record.campaign = crowd.zero
    return record, campaigner(crowd)


@case("never began")
def a_campaign_that_begins_with_a_revision(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.terms("one", revision=1), campaigner(crowd)


@case("comes after 0")
def a_revision_that_skips_one(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    return crowd.terms("one", revision=2), campaigner(crowd)


@case("comes after 0")
def a_campaign_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    return crowd.terms("one", title="Other words"), campaigner(crowd)


@case("is over")
def a_revision_of_a_campaign_that_ended(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    crowd.end("one")
    return crowd.terms("one", revision=1), campaigner(crowd)


@case("is over")
def a_revision_past_the_end_that_closes(crowd: Any, history: Any) -> tuple[Any, Any]:
    crowd.campaign("one", ends_s=history.now_s + 1, when_missed="close")
    history.now_s += 2
    return crowd.terms("one", revision=1, ends_s=history.now_s + 999), campaigner(crowd)


def end(crowd: Any, name: str, outcome: str, campaign: bytes | None = None) -> Any:
    return wire.CampaignEnd(
        run_id=crowd.run_id,
        campaign=campaign or crowd.keys.name_id(name),
        outcome=outcome,
        at_s=crowd.history.now_s + 1,
    )


@case("no campaign")
def the_end_of_an_unknown_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return end(crowd, "none", "closed"), campaigner(crowd)


@case("has no end")
def the_end_of_campaign_zero(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return end(crowd, "", "closed", crowd.zero), campaigner(crowd)


@case("ended this campaign")
def a_second_end(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    crowd.end("one")
    return end(crowd, "one", "closed"), campaigner(crowd)


@case("were reached; 0 are final")
def a_goal_that_was_not_reached(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    return end(crowd, "one", "reached"), campaigner(crowd)


@case("when its time is over")
def a_goal_that_is_missed_too_soon(crowd: Any, history: Any) -> tuple[Any, Any]:
    crowd.campaign("one", ends_s=history.now_s + 100)
    return end(crowd, "one", "missed"), campaigner(crowd)


@case("when its time is over")
def a_goal_that_is_missed_without_an_end(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    return end(crowd, "one", "missed"), campaigner(crowd)


@case("no campaign")
def news_of_an_unknown_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    record = wire.CampaignNews(
        run_id=crowd.run_id, campaign=unknown(), news=unknown(), title="News"
    )
    return record, campaigner(crowd)


# ---- pledges ----


@case("no campaign")
def a_pledge_to_an_unknown_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.pledged("p", "ada", campaign=unknown()), "ada"


@case("is over")
def a_pledge_to_a_campaign_that_ended(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    crowd.end("one")
    return crowd.pledged("p", "ada", campaign=crowd.keys.name_id("one")), "ada"


@case("not enrolled")
def a_pledge_of_a_stranger(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.pledged("p", "eve"), "eve"


@case("was given up")
def a_pledge_of_a_key_that_was_given_up(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.rotate("ada", "ada2")
    return crowd.pledged("p", "ada"), "ada"


@case("never made")
def a_pledge_that_begins_with_a_revision(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.pledged("p", "ada", revision=1), "ada"


@case("withdraws a pledge that was never made")
def a_pledge_of_nothing(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.pledged("p", "ada", microcredits=0), "ada"


@case("comes after 0")
def a_pledge_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pledge("p", "ada")
    return crowd.pledged("p", "ada", microcredits=2), "ada"


@case("comes after 0")
def a_pledge_whose_revision_skips_one(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pledge("p", "ada")
    return crowd.pledged("p", "ada", revision=2), "ada"


@case("of another donor")
def a_revision_of_somebody_elses_pledge(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pledge("p", "ada")
    return crowd.pledged("p", "bob", revision=1), "bob"


@case("keeps its campaign")
def a_pledge_that_changes_its_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    crowd.pledge("p", "ada")
    return crowd.pledged("p", "ada", revision=1, campaign=crowd.keys.name_id("one")), "ada"


@case("its visibility")
def a_pledge_that_hides(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pledge("p", "ada")
    return crowd.pledged("p", "ada", revision=1, visibility="secret"), "ada"


@case("made this pledge void")
def a_revision_of_a_void_pledge(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.void(crowd.pledge("p", "ada"), "ada")
    return crowd.pledged("p", "ada", revision=1), "ada"


@case("made 100 pledges before")
def too_many_pledges(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.write_all([(crowd.pledged(f"p{n}", "ada"), "ada") for n in range(100)])
    return crowd.pledged("one more", "ada"), "ada"


# ---- money ----


@case("no campaign")
def a_gift_to_an_unknown_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.gift("g", campaign=unknown()), treasurer(crowd)


@case("is over")
def a_gift_to_a_campaign_that_ended(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.campaign("one")
    crowd.end("one")
    return crowd.gift("g", campaign=crowd.keys.name_id("one")), treasurer(crowd)


@case("is over")
def a_gift_when_the_time_is_over(crowd: Any, history: Any) -> tuple[Any, Any]:
    crowd.campaign("one", ends_s=history.now_s + 1, when_missed="close")
    history.now_s += 2
    return crowd.gift("g", campaign=crowd.keys.name_id("one")), treasurer(crowd)


@case("was recorded before")
def a_gift_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.donate("g")
    return crowd.gift("g", amount_minor=2), treasurer(crowd)


@case("not enrolled")
def a_gift_of_a_stranger_by_name(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.gift("g", "eve"), treasurer(crowd)


@case("was given up")
def a_gift_of_a_key_that_was_given_up(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.merge("ada", "bob")
    return crowd.gift("g", "ada"), treasurer(crowd)


@case("there is no pool")
def a_gift_to_an_unknown_pool(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.gift("g", "", "pool"), treasurer(crowd)


@case("gives USD to a pool of EUR")
def a_gift_in_another_currency(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pool("pool")
    return crowd.gift("g", "", "pool", currency="USD"), treasurer(crowd)


@case("made the pool")
def a_gift_to_a_void_pool(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.void(crowd.pool("pool"))
    return crowd.gift("g", "", "pool"), treasurer(crowd)


@case("it gives no money")
def a_gift_of_a_pool(crowd: Any, history: Any) -> tuple[Any, Any]:
    crowd.pool("pool")
    history.enrol("rented", donor="pool")
    return crowd.gift("g", "pool", "pool"), treasurer(crowd)


@case("made a pool before")
def a_pool_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pool("pool")
    return crowd.pooled("pool", currency="USD"), treasurer(crowd)


@case("joined with others")
def a_pool_with_two_keys(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.merge("ada", "bob")
    return crowd.pooled("bob"), treasurer(crowd)


@case("joined with others")
def a_pool_of_a_key_that_was_given_up(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.merge("ada", "bob")
    return crowd.pooled("ada"), treasurer(crowd)


@case("it is no pool")
def a_pool_that_gave_money(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.donate("g", "ada")
    return crowd.pooled("ada"), treasurer(crowd)


@case("no campaign")
def a_pool_of_an_unknown_campaign(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.pooled("pool", campaign=unknown()), treasurer(crowd)


# ---- voids ----


@case("nothing to make void")
def a_void_of_a_round(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.voiding(7), treasurer(crowd)


@case("nothing to make void")
def a_void_of_what_is_not_there_yet(crowd: Any, history: Any) -> tuple[Any, Any]:
    return crowd.voiding(history.size()), treasurer(crowd)


@case("nothing to make void")
def a_void_of_a_team(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.voiding(crowd.team("red", "ada")), "ada"


@case("made it void before")
def a_void_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    index = crowd.donate("g")
    crowd.void(index)
    record = crowd.voiding(index, "refunded")
    return record, treasurer(crowd)


@case("revised it")
def a_void_of_an_older_revision(crowd: Any, _history: Any) -> tuple[Any, Any]:
    index = crowd.pledge("p", "ada")
    crowd.pledge("p", "ada", revision=1)
    return crowd.voiding(index), "ada"


# ---- teams ----


@case("founded before")
def a_team_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.team("red", "ada")
    return crowd.founding("red", "bob"), "bob"


@case("not enrolled")
def a_team_of_a_stranger(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.founding("red", "eve"), "eve"


@case("there is no team")
def a_member_of_no_team(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.membership("ada", "red"), "ada"


@case("of that team already")
def a_member_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.team("red", "ada")
    crowd.join("ada", "red")
    return crowd.membership("ada", "red"), "ada"


@case("of no team already")
def a_member_that_leaves_nothing(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.membership("ada"), "ada"


@case("was given up")
def a_member_by_an_old_key(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.team("red", "bob")
    crowd.rotate("ada", "ada2")
    return crowd.membership("ada", "red"), "ada"


# ---- keys ----


@case("joins a key to itself")
def a_merge_with_itself(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.account_merge("ada", "ada"), "ada"


@case("not enrolled")
def a_merge_of_a_stranger(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.account_merge("eve", "bob"), "eve"


@case("not enrolled")
def a_merge_into_a_stranger(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.account_merge("ada", "eve"), "ada"


@case("was given up")
def a_merge_back(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.merge("ada", "bob")
    return crowd.account_merge("bob", "ada"), "bob"


@case("was given up")
def a_merge_of_what_was_merged(crowd: Any, history: Any) -> tuple[Any, Any]:
    history.enrol("cleo")
    crowd.merge("ada", "bob")
    return crowd.account_merge("ada", "cleo"), "ada"


@case("was given up")
def a_rotation_of_an_old_key(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.rotate("ada", "ada2")
    return crowd.key_change("ada", "ada3"), "ada"


@case("has an account")
def a_rotation_onto_somebody_else(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return crowd.key_change("ada", "bob"), "ada"


@case("has an account")
def a_rotation_back(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.rotate("ada", "ada2")
    return crowd.key_change("ada2", "ada"), "ada2"


@case("has devices already")
def a_pool_of_a_key_that_has_devices(crowd: Any, history: Any) -> tuple[Any, Any]:
    history.enrol("rented", donor="pool")
    return crowd.pooled("pool"), treasurer(crowd)


@case("is a pool")
def a_merge_of_a_pool(crowd: Any, history: Any) -> tuple[Any, Any]:
    crowd.pool("pool")
    history.enrol("rented", donor="pool")
    return crowd.account_merge("pool", "ada"), "pool"


@case("is a pool")
def a_rotation_onto_a_pool(crowd: Any, _history: Any) -> tuple[Any, Any]:
    crowd.pool("pool")
    return crowd.key_change("ada", "pool"), "ada"


@case("its keys stay apart")
def a_merge_of_somebody_convicted(crowd: Any, history: Any) -> tuple[Any, Any]:
    history.judge(0, 1, Verdict.FAILED)
    return crowd.account_merge("bob", "ada"), "bob"


@case("its keys stay apart")
def a_rotation_of_somebody_convicted(crowd: Any, history: Any) -> tuple[Any, Any]:
    history.judge(0, 1, Verdict.FAILED)
    return crowd.key_change("bob", "bob2"), "bob"


@case("its keys stay apart")
def a_merge_into_somebody_convicted(crowd: Any, history: Any) -> tuple[Any, Any]:
    history.judge(0, 1, Verdict.FAILED)
    return crowd.account_merge("ada", "bob"), "ada"


@case("its keys stay apart")
def a_rotation_of_a_person_whose_older_key_is_blocked(crowd: Any, history: Any) -> tuple[Any, Any]:
    crowd.rotate("ada", "ada2")
    history.block(0)
    return crowd.key_change("ada2", "ada3"), "ada2"


# ---- delegations ----


@case("was recorded before")
def a_delegation_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    envelope = crowd.delegation(crowd.keys.identity("new"), wire.KEY_PURPOSE_TREASURER, 9)
    crowd.delegated(envelope)
    again = crowd.delegation(crowd.keys.identity("newer"), wire.KEY_PURPOSE_TREASURER, 9)
    return wire.Delegation.FromString(again.payload), crowd.keys.ROOT


@case("never recorded")
def a_revocation_of_an_unknown_serial(crowd: Any, _history: Any) -> tuple[Any, Any]:
    return wire.Revocation(run_id=crowd.run_id, serial=99, reason="x"), crowd.keys.ROOT


@case("revoked before")
def a_revocation_twice(crowd: Any, _history: Any) -> tuple[Any, Any]:
    envelope = crowd.delegation(crowd.keys.identity("new"), wire.KEY_PURPOSE_TREASURER, 9)
    crowd.delegated(envelope)
    crowd.revoked(9)
    return wire.Revocation(run_id=crowd.run_id, serial=9, reason="other"), crowd.keys.ROOT


@pytest.mark.parametrize("name", CASES)
def test_a_leaf_is_refused_and_changes_nothing(
    crowd: Any, crowd_history: Any, history: Any, name: str
) -> None:
    words, prepare = CASES[name]
    crowd.keys = crowd_history
    record, signer = prepare(crowd, history)
    history.now_s += 1
    leaf = crowd.leaf(record, signer)
    board = Board()
    with Session(history.engine) as session:
        for data in read_leaves(session, 0, history.size()):
            board.apply(data)
    before = (list(standings(board)), board.size, board.campaigns.current)
    with pytest.raises(BadRecord, match=words):
        board.check_act(leaf)
    with pytest.raises(BadRecord, match=f"leaf {board.size}: .*{words}"):
        board.apply(leaf.canonical())
    assert (list(standings(board)), board.size, board.campaigns.current) == before
    crowd.news("The record goes on")
    with Session(history.engine) as session:
        board.apply(next(read_leaves(session, board.size, board.size + 1)))


def test_the_same_act_is_recorded_once(crowd: Any, history: Any) -> None:
    crowd.team("red", "bob")
    record = crowd.membership("ada", "red")
    crowd.write(record, "ada")
    crowd.join("ada")
    board = crowd.board()
    with pytest.raises(BadRecord, match="the same signed act"):
        board.check_act(crowd.leaf(record, "ada"))


def test_a_key_that_was_given_up_gets_no_new_device(crowd: Any, history: Any) -> None:
    crowd.rotate("ada", "ada2")
    history.enrol("ada-laptop", donor="ada")
    with pytest.raises(BadRecord, match="was given up for"):
        crowd.board()


def test_an_overturned_conviction_hinders_nobody(crowd: Any, history: Any) -> None:
    history.judge(0, 1, Verdict.FAILED)
    history.judge(0, 1, Verdict.OVERTURNED, why="appeal")
    crowd.merge("bob", "ada")
    assert len(list(crowd.board().people.owners())) == 1


def test_a_withdrawal_is_welcome_after_the_campaign(crowd: Any, crowd_history: Any) -> None:
    crowd.campaign("one")
    where = crowd_history.name_id("one")
    crowd.pledge("p", "ada", campaign=where)
    crowd.end("one")
    crowd.pledge("p", "ada", campaign=where, revision=1, microcredits=0)
    (pledge,) = crowd.board().crowd.pledges.pledges.values()
    assert pledge.state(0) == "withdrawn"
