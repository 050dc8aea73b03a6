"""Whatever people try, in whatever order: the log has no leaf that a stranger's fold refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from acts_rig import CAMPAIGN, TREASURER, Acts, key, with_keys

from coordinator.crowd.book import Book
from coordinator.crowd.upkeep import due_outcome
from ledger.acts import open_act
from protocol.envelope import seal
from protocol.errors import PeerFault, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

STRANGER = key("stranger")
RUNS, ATTEMPTS = 12, 40
Pick = Callable[[Sequence[Any]], Any]
VISIBILITIES = [1, 2, 3] * 3 + [0, 9]


class Crowd:
    """Some people, honest and not, in one run."""

    def __init__(self, acts: Acts) -> None:
        self.acts = acts
        self.donors = [acts.rig.enrol(n).identity for n in (2, 3, 4)]
        self.keys = [*self.donors, *(key(f"new {n}") for n in range(3)), STRANGER]
        self.campaigns = [acts.zero]
        self.recorded = 0

    async def step(self, pick: Pick) -> None:
        """One attempt of somebody's."""
        kind = pick(sorted(STEPS))
        record, signer = STEPS[kind](self, pick)
        if pick(range(10)) == 0:
            signer = pick([*self.keys, CAMPAIGN, TREASURER])
        try:
            if kind in ORGANISERS:
                self.acts.record(record, signer)
            else:
                await self.acts.act(record, signer)
            self.recorded += 1
        except (PeerFault, UsageError) as error:
            assert str(error)

    def whose(self, pick: Pick) -> Identity:
        return pick([*self.donors * 3, *self.keys])

    def campaign(self, pick: Pick) -> bytes:
        return pick([*[self.acts.zero] * 12, *self.campaigns, bytes(16), b"x"])

    def pledge(self, pick: Pick) -> tuple[Any, Identity]:
        who = self.whose(pick)
        record = self.acts.pledge(
            who,
            pick("abcdef"),
            campaign=self.campaign(pick),
            revision=pick([0, 0, 0, 1, 1, 2, 9]),
            microcredits=pick([1000, 1, 1000, 0, 2**53, 2**64 - 1]),
            visibility=pick(VISIBILITIES),
        )
        return record, who

    def void(self, pick: Pick) -> tuple[Any, Identity]:
        size = self.acts.book.board.size
        leaf = pick([*range(8, size + 1)] * 2 + [0, 2**63])
        reason = pick(["mistake", "mistake", "Not a word", ""])
        return self.acts.void(leaf, reason), self.whose(pick)

    def treasurers_void(self, pick: Pick) -> tuple[Any, Identity]:
        return self.void(pick)[0], TREASURER

    def team(self, pick: Pick) -> tuple[Any, Identity]:
        who = self.whose(pick)
        return self.acts.team(who, pick("ab")), who

    def membership(self, pick: Pick) -> tuple[Any, Identity]:
        who = self.whose(pick)
        return self.acts.membership(who, pick(["a", "b", None])), who

    def key_change(self, pick: Pick) -> tuple[Any, Identity]:
        who, new = self.whose(pick), self.whose(pick)
        return self.acts.key_change(who, new), who

    def merge(self, pick: Pick) -> tuple[Any, Identity]:
        who, into = self.whose(pick), self.whose(pick)
        return self.acts.merge(who, into), who

    def terms(self, pick: Pick) -> tuple[Any, Identity]:
        name = pick("ab")
        record = self.acts.terms(
            name,
            revision=pick([0, 0, 1]),
            goal_microcredits=pick([1000, 1, 1000, 0]),
            ends_s=pick([0, 0, 1, self.acts.now_s + 50]),
            when_reached=pick(["continue", "close", "close", "explode"]),
        )
        self.campaigns.append(record.campaign)
        return record, CAMPAIGN

    def end(self, pick: Pick) -> tuple[Any, Identity]:
        record = wire.CampaignEnd(
            run_id=self.acts.run_id,
            campaign=self.campaign(pick),
            outcome=pick(["reached", "missed", "closed", "won"]),
            at_s=self.acts.now_s,
        )
        return record, CAMPAIGN

    def pool(self, pick: Pick) -> tuple[Any, Identity]:
        return self.acts.pool(self.whose(pick), campaign=self.campaign(pick)), TREASURER

    def donation(self, pick: Pick) -> tuple[Any, Identity]:
        record = self.acts.donation(
            pick("abcdef"),
            campaign=self.campaign(pick),
            donor=pick(["", "", "", "x", *(one.peer_id for one in self.keys)]),
            pool=pick(["", "", "", *(one.peer_id for one in self.keys)]),
            amount_minor=pick([5000, 1, 5000, 0, 2**53]),
            currency=pick(["EUR", "EUR", "USD", "eur"]),
            visibility=pick(VISIBILITIES),
        )
        return record, TREASURER


STEPS: dict[str, Callable[[Crowd, Pick], tuple[Any, Identity]]] = {
    name: getattr(Crowd, name)
    for name in (
        *("pledge", "void", "team", "membership", "key_change", "merge"),
        *("terms", "end", "pool", "donation", "treasurers_void"),
    )
}
ORGANISERS = ("terms", "end", "pool", "donation", "treasurers_void")


@pytest.mark.timeout(300)
def test_random_acts_leave_a_log_that_verifies(
    engine_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = make_manifest(verification=engine_rig.QUIET)
    recorded, done = 0, set[str]()
    for seed in range(RUNS):
        pick = random.Random(seed).choice
        with asyncio.Runner() as runner:
            rig = with_keys(engine_rig.Rig(tmp_path / str(seed), manifest))
            rig.folder.mkdir(exist_ok=True)
            runner.run(rig.boot())
            acts = Acts(rig)
            acts.appoint()
            crowd = Crowd(acts)
            for _ in range(ATTEMPTS):
                if pick(range(5)) == 0:
                    rig.now_s += pick([-5, 1, 60])
                    runner.run(rig.engine.keep_campaigns())
                runner.run(crowd.step(pick))
            recorded += crowd.recorded
            done.update(acts.kinds())
            acts.verify()
            rig.database.close()
    assert recorded >= RUNS * ATTEMPTS / 8  # it was not all refused
    assert len(done) >= 9, done


async def test_a_refusal_leaves_the_book_as_it_was(start_acts: Any) -> None:
    """A campaign whose time is over by the refused leaf's time is open again without it."""
    acts = await start_acts()
    acts.appoint()
    ada = acts.rig.enrol(2).identity
    terms = acts.terms(ends_s=acts.now_s + 60)
    acts.record(terms, CAMPAIGN)
    book = Book(acts.rig.log, acts.rig.manifest)
    with acts.rig.database.session() as session:
        book.follow(session)
        campaign = book.board.campaigns.campaigns[terms.campaign.hex()]
        late = open_act(seal(acts.pledge(ada, campaign=terms.campaign), ada))
        with pytest.raises(UsageError, match="is over"):
            book.check(session, late, acts.now_s + 61)
        assert (campaign.is_over, book.board.campaigns.current) == (False, campaign)
        book.check(session, late, acts.now_s + 59)
    assert due_outcome(campaign, acts.now_s + 60) is None
    assert due_outcome(campaign, acts.now_s + 61) == "missed"
