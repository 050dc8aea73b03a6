"""Campaigns, pledges, money, teams and joined keys: what the fold makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from ledger.campaigns import progress
from ledger.pools import largest_remainder
from ledger.sources import DatabaseSource
from ledger.standing import anonymous, standing, standings, take_touched
from ledger.tally import Amounts
from ledger.verify import verify
from protocol.audit_policy import Verdict
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire

ADA, BOB, LAPTOP = 0, 1, 2
DAY_S = 86_400


@pytest.fixture
def peer(crowd_history: Any) -> Any:
    """``peer("ada")``: the key of a donor."""

    def of(name: str) -> PeerId:
        key: PeerId = crowd_history.identity(name).peer_id
        return key

    return of


def finish(history: Any, worker: int, round_: int) -> None:
    """Make what a device was credited for a round final: an audit passes it, and a week passes."""
    history.publish_draw(round_)
    history.judge(round_, worker)
    history.now_s += 8 * DAY_S
    history.finish(worker, history.credits_of(worker, round_))


# ---- largest remainder ----


@pytest.mark.parametrize(
    ("amount", "weights", "shares"),
    [
        (0, [5, 1], [0, 0]),
        (10, [1], [10]),
        (10, [1, 1, 1], [4, 3, 3]),  # ties go to the earlier one
        (11, [1, 1, 1], [4, 4, 3]),
        (100, [2500, 5000, 1000], [29, 59, 12]),  # 29.41, 58.82, 11.76: the last two gain
        (1, [1, 2**53 - 1], [0, 1]),
        (2**53 - 1, [2**53 - 1, 1], [2**53 - 2, 1]),
    ],
)
def test_parts_by_largest_remainder(amount: int, weights: list[int], shares: list[int]) -> None:
    assert largest_remainder(amount, weights) == shares


# ---- people ----


def test_a_merged_person_has_what_both_keys_have(crowd: Any, peer: Any) -> None:
    before = {person.owner: person for person in standings(crowd.board())}
    crowd.merge("ada", "bob")
    board = crowd.board()
    assert list(board.people.owners()) == [peer("bob")]
    assert board.people.owner_of(peer("ada")) == peer("bob")
    assert board.people.keys_of(peer("bob")) == (peer("bob"), peer("ada"))
    assert board.people.keys_of(peer("ada")) == ()
    person = standing(board, peer("bob"))
    assert person.total_microcredits == sum(p.total_microcredits for p in before.values())
    assert person.own.tokens == board.total.tokens
    assert len(person.workers) == 3
    assert board.donors[peer("ada")].tally.tokens == before[peer("ada")].own.tokens


def test_a_key_that_was_given_up_is_still_paid_for_what_is_under_way(
    crowd: Any, history: Any, peer: Any
) -> None:
    had = standing(crowd.board(), peer("ada")).total_microcredits
    crowd.rotate("ada", "ada2")
    crowd.rotate("ada2", "ada3")
    history.settle({ADA: 10})
    board = crowd.board()
    person = standing(board, peer("ada3"))
    assert person.keys == (peer("ada3"), peer("ada2"), peer("ada"))
    assert person.total_microcredits > had
    assert person.enrolled_s == board.donors[peer("ada")].enrolled_s
    assert peer("ada3") in set(board.people.owners())


def test_devices_come_to_a_new_key(crowd: Any, history: Any, peer: Any) -> None:
    crowd.rotate("ada", "ada2")
    history.enrol("ada", donor="ada2")
    history.settle({3: 10})
    board = crowd.board()
    assert board.donors[peer("ada2")].tally.tokens
    person = standing(board, peer("ada2"))
    assert person.workers == (peer("ada"),)
    assert person.own.tokens == sum(board.donors[peer(k)].tally.tokens for k in ("ada", "ada2"))


# ---- teams ----


def test_credit_counts_for_the_team_of_its_moment(crowd: Any, history: Any, peer: Any) -> None:
    crowd.team("red", "ada")
    crowd.team("blue", "bob")
    history.settle({ADA: 10})  # of no team: a founder joins as others do
    crowd.join("ada", "red")
    history.settle({ADA: 10})
    crowd.join("ada", "blue")
    crowd.rotate("ada", "ada2")
    history.settle({ADA: 10, BOB: 1})
    crowd.join("ada2")
    history.settle({ADA: 10})
    board = crowd.board()
    red, blue = board.crowd.teams.teams.values()
    step = history.manifest.tokens_per_step
    assert (red.tally.tokens, blue.tally.tokens) == (10 * step, 10 * step)
    assert blue.by_donor[peer("ada")].tokens == 10 * step
    assert red.members == blue.members == set()
    assert standing(board, peer("ada2")).team is None


def test_a_merged_person_is_of_the_team_of_the_key_that_takes(crowd: Any, peer: Any) -> None:
    crowd.team("red", "ada")
    crowd.join("ada", "red")
    crowd.merge("ada", "bob")
    board = crowd.board()
    assert standing(board, peer("bob")).team is None
    assert next(iter(board.crowd.teams.teams.values())).members == set()


# ---- campaigns ----


def test_campaign_zero_is_the_manifests_own(crowd: Any) -> None:
    state = progress(crowd.board())
    assert state is not None
    assert state.campaign == crowd.run_id[:16].hex()
    assert (state.title, state.state, state.outcome) == ("A tiny run", "open", None)
    assert state.goal_microcredits == 5000


def test_credit_counts_for_a_campaign_while_it_is_open(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    crowd.campaign("more", starts_s=history.now_s + 700)
    announced = progress(crowd.board(), crowd_history.name_id("more").hex())
    history.settle({ADA: 10})  # before it starts
    history.settle({ADA: 10})
    crowd.campaign("more", revision=1, goal_microcredits=7, starts_s=history.now_s)
    history.settle({BOB: 10})
    crowd.end("more")
    history.settle({BOB: 10})
    board = crowd.board()
    campaign = board.campaigns.campaigns[crowd_history.name_id("more").hex()]
    assert announced is not None
    assert announced.state == "announced"
    assert campaign.tally.tokens == 20 * history.manifest.tokens_per_step
    assert (campaign.goal_microcredits, campaign.outcome) == (7, "closed")
    assert board.campaigns.zero.tally.tokens == board.total.tokens
    state = progress(board, campaign.campaign)
    assert state is not None
    assert (state.state, state.rate_microcredits_per_day, state.title) == ("over", None, None)


@pytest.mark.parametrize(("word", "counts"), [("close", False), ("continue", True)])
def test_when_missed(crowd: Any, crowd_history: Any, history: Any, word: str, counts: bool) -> None:
    crowd.campaign("late", ends_s=history.now_s + 300, when_missed=word)
    history.settle({ADA: 10})  # its leaves come 600 s later
    campaign = crowd.board().campaigns.campaigns[crowd_history.name_id("late").hex()]
    assert bool(campaign.tally.tokens) is counts
    assert (campaign.is_over, campaign.outcome) == (not counts, None if counts else "missed")


@pytest.mark.parametrize(("word", "counts"), [("close", False), ("continue", True)])
def test_when_reached(
    crowd: Any, crowd_history: Any, history: Any, word: str, counts: bool
) -> None:
    crowd.campaign("small", goal_microcredits=1, when_reached=word)
    history.settle({ADA: 10})
    finish(history, ADA, 3)
    before = crowd.board().campaigns.campaigns[crowd_history.name_id("small").hex()]
    assert before.is_reached
    history.settle({ADA: 10})
    after = crowd.board().campaigns.campaigns[crowd_history.name_id("small").hex()]
    assert (after.tally.tokens > before.tally.tokens) is counts
    assert after.outcome == (None if counts else "reached")


def test_another_campaign_follows_one_that_ended_by_its_terms(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    crowd.campaign("first", ends_s=history.now_s + 300, when_missed="close")
    history.now_s += 301
    crowd.campaign("second")
    crowd.end("first", "missed")
    board = crowd.board()
    assert (
        board.campaigns.current is board.campaigns.campaigns[crowd_history.name_id("second").hex()]
    )


# ---- pledges ----


def test_a_pledge_is_delivered_by_later_credit_of_the_person(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    crowd.pledge("p", "ada", microcredits=10**6, until_s=history.now_s + 2000)
    history.settle({ADA: 10, BOB: 5})
    crowd.merge("ada", "bob")
    history.settle({BOB: 5})
    crowd.pledge("p", "bob", revision=1, microcredits=3, until_s=history.now_s + 700)
    history.settle({BOB: 5})
    history.settle({BOB: 5})  # too late
    board = crowd.board()
    pledge = board.crowd.pledges.pledges[crowd_history.name_id("p").hex()]
    assert pledge.tally.tokens == 20 * history.manifest.tokens_per_step
    assert pledge.state(board.newest_s) == "delivered"
    assert pledge.outstanding_microcredits(board.newest_s) == 0
    assert [leaf.microcredits for _, leaf in pledge.revisions] == [10**6, 3]


def test_credit_delivers_one_pledge_and_the_oldest_first(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    crowd.pledge("first", "ada", microcredits=1)
    crowd.pledge("second", "ada", microcredits=10**6)
    history.settle({ADA: 10})
    board = crowd.board()
    first, second = board.crowd.pledges.pledges.values()
    assert first.tally.contributions == 1
    assert second.tally.chunks == 9  # the reducing credit, which came next
    assert second.tally.contributions == 0


def test_sums_of_a_campaigns_pledges(crowd: Any, history: Any) -> None:
    crowd.pledge("open", "ada", microcredits=10**9)
    crowd.pledge("hidden", "bob", microcredits=500, visibility="secret")
    crowd.pledge("gone", "bob", microcredits=7)
    crowd.pledge("gone", "bob", revision=1, microcredits=0)
    crowd.void(crowd.pledge("wrong", "bob", microcredits=9), "bob")
    crowd.pledge("short", "bob", microcredits=11, until_s=history.now_s)
    history.settle({ADA: 10})
    state = progress(crowd.board())
    assert state is not None
    delivered = state.pledges.delivered_microcredits
    assert delivered > 0
    assert state.pledges.pledges == 3
    assert state.pledged_microcredits == 10**9 + 500 + 11
    assert state.outstanding_microcredits == 10**9 - delivered + 500


def test_forfeited_credit_delivers_nothing(crowd: Any, crowd_history: Any, history: Any) -> None:
    crowd.pledge("p", "bob", microcredits=10**6)
    history.settle({BOB: 10})
    failed = history.judge(3, BOB, Verdict.FAILED)
    history.reverse(BOB, history.credits_of(BOB, 3), failed)
    pledge = crowd.board().crowd.pledges.pledges[crowd_history.name_id("p").hex()]
    assert pledge.tally.forfeited_microcredits > 0
    assert pledge.delivered_microcredits == 0


# ---- money ----


def test_credit_of_a_pool_is_divided_among_who_gave(crowd: Any, history: Any, peer: Any) -> None:
    crowd.pool("pool")
    pool = history.enrol("rented", donor="pool")
    history.settle({pool: 3})  # before any gift: the pool keeps it
    kept = standing(crowd.board(), peer("pool")).net
    crowd.donate("a", "ada", "pool", amount_minor=2500)
    crowd.donate("b", "bob", "pool", amount_minor=5000)
    crowd.donate("c", "", "pool", amount_minor=1000, visibility="private")
    history.settle({pool: 7})
    board = crowd.board()
    tally = board.crowd.pools.pools[peer("pool")].stretches[0].tally
    shares = largest_remainder(tally.pending_microcredits, [2500, 5000, 1000])
    assert standing(board, peer("ada")).sponsored.pending_microcredits == shares[0]
    assert standing(board, peer("bob")).sponsored.pending_microcredits == shares[1]
    assert anonymous(board).pending_microcredits == shares[2]
    person = standing(board, peer("pool"))
    assert person.is_pool
    assert person.net == kept
    assert person.own.pending_microcredits == kept.pending_microcredits + sum(shares)


def test_a_gift_shares_only_in_what_came_after_it(crowd: Any, history: Any, peer: Any) -> None:
    crowd.pool("pool")
    pool = history.enrol("rented", donor="pool")
    first = crowd.donate("a", "ada", "pool")
    history.settle({pool: 4})
    crowd.donate("b", "bob", "pool", amount_minor=1)
    history.settle({pool: 4})
    crowd.void(first)
    history.settle({pool: 4})
    board = crowd.board()
    ada, bob = (standing(board, peer(name)).sponsored for name in ("ada", "bob"))
    each = [Amounts.of(s.tally) for s in board.crowd.pools.pools[peer("pool")].stretches]
    assert len(each) == 3
    second = largest_remainder(each[1].pending_microcredits, [1000, 1])
    assert ada.pending_microcredits == each[0].pending_microcredits + second[0]
    assert bob.pending_microcredits == second[1] + each[2].pending_microcredits


def test_each_status_is_divided_apart(crowd: Any, history: Any, peer: Any) -> None:
    crowd.pool("pool")
    pool = history.enrol("rented", donor="pool")
    crowd.donate("a", "ada", "pool", amount_minor=1)
    crowd.donate("b", "bob", "pool", amount_minor=2)
    history.settle({pool: 4})
    history.settle({pool: 5})
    history.settle({pool: 6})
    finish(history, pool, 3)
    lost = history.judge(4, pool, Verdict.UNAVAILABLE)
    history.reverse(pool, history.credits_of(pool, 4, "training"), lost, reason="unavailable")
    failed = history.judge(5, pool, Verdict.FAILED)
    history.reverse(pool, history.credits_of(pool, 5), failed)
    history.settle({pool: 9})
    board = crowd.board()
    tally = board.crowd.pools.pools[peer("pool")].stretches[0].tally
    assert 0 not in Amounts.of(tally).by_status()
    parts = [largest_remainder(amount, [1, 2]) for amount in Amounts.of(tally).by_status()]
    assert standing(board, peer("ada")).sponsored == Amounts(*(part[0] for part in parts))
    assert standing(board, peer("bob")).sponsored == Amounts(*(part[1] for part in parts))
    assert standing(board, peer("pool")).net == Amounts()


def test_a_void_pool_keeps_what_it_earns_from_there_on(crowd: Any, history: Any, peer: Any) -> None:
    made = crowd.pool("pool")
    pool = history.enrol("rented", donor="pool")
    crowd.donate("a", "ada", "pool")
    history.settle({pool: 4})
    given = standing(crowd.board(), peer("ada")).sponsored
    crowd.void(made)
    history.settle({pool: 4})
    board = crowd.board()
    assert standing(board, peer("ada")).sponsored == given != Amounts()
    assert standing(board, peer("pool")).net.pending_microcredits > 0


def test_sponsored_credit_follows_the_person(crowd: Any, history: Any, peer: Any) -> None:
    crowd.pool("pool")
    pool = history.enrol("rented", donor="pool")
    crowd.donate("a", "ada", "pool")
    history.settle({pool: 4})
    crowd.merge("ada", "bob")
    board = crowd.board()
    assert standing(board, peer("bob")).sponsored.pending_microcredits > 0
    assert [d.leaf.donor for d in board.crowd.pools.donations_of(peer("bob"))] == [peer("ada")]


def test_money_of_a_campaign_by_currency(crowd: Any) -> None:
    crowd.donate("a", amount_minor=100)
    crowd.donate("b", amount_minor=50, currency="USD", visibility="secret")
    crowd.void(crowd.donate("c", amount_minor=7))
    state = progress(crowd.board())
    assert state is not None
    assert state.raised_minor == {"EUR": 100, "USD": 50}


# ---- keeping up ----


def test_only_those_are_touched_whose_standing_may_have_changed(
    crowd: Any, history: Any, peer: Any
) -> None:
    crowd.pool("pool")
    pool = history.enrol("rented", donor="pool")
    crowd.donate("a", "ada", "pool")
    board = crowd.board()
    assert take_touched(board) == {peer(name) for name in ("ada", "bob", "pool")}
    assert take_touched(board) == set()

    def grow() -> set[PeerId]:
        with Session(history.engine) as session:
            for data in DatabaseSource(session).entries(history.size()):
                if data not in seen:
                    board.apply(data)
                    seen.add(data)
        return take_touched(board)

    with Session(history.engine) as session:
        seen = set(DatabaseSource(session).entries(history.size()))
    crowd.news("Nothing for anybody")
    assert grow() == set()
    history.settle({BOB: 1})
    assert grow() == {peer("bob")}
    history.settle({pool: 1})
    assert grow() == {peer("ada"), peer("pool")}
    crowd.merge("ada", "bob")
    assert grow() == {peer("ada"), peer("bob")}
    assert board.people.is_given_up(peer("ada"))


def test_the_whole_verifies(crowd: Any, crowd_history: Any, history: Any) -> None:
    new = crowd_history.identity("new")
    crowd.delegated(crowd.delegation(new, wire.KEY_PURPOSE_TREASURER, 9))
    crowd.revoked(9)
    crowd.campaign("more", goal_minor=500_00, currency="EUR")
    crowd.news("Hello")
    crowd.pool("pool")
    history.enrol("rented", donor="pool")
    crowd.donate("a", "ada", "pool")
    crowd.void(crowd.donate("b", "", "pool", visibility="secret"))
    crowd.pledge("p", "bob")
    crowd.pledge("q", "bob", visibility="private")
    crowd.team("red", "ada")
    crowd.join("bob", "red")
    crowd.rotate("ada", "ada2")
    crowd.merge("ada2", "bob")
    history.settle({ADA: 1, 3: 2})
    with Session(history.engine) as session:
        report = verify(DatabaseSource(session), root=history.manifest.root)
    assert (report.crowd.acts, report.crowd.unnamed) == (11, 3)
    assert report.donors == 2
    assert (report.crowd.campaigns, report.crowd.pledges, report.crowd.teams) == (2, 2, 1)
