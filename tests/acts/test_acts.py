"""Acts of donors through the engine: what is recorded, what is refused, and that no more is."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from acts_rig import CAMPAIGN, DAY_S, TREASURER, Acts, id_of, key
from sqlalchemy import delete, event, select
from sqlalchemy.exc import OperationalError

from coordinator.context import EngineOptions
from coordinator.crowd.profiles import erase_person
from coordinator.database import Database
from coordinator.recovered_log import keep_acts
from coordinator.schema import WorkerRow
from ledger.log import read_leaves
from ledger.records import parse_leaf
from ledger.schema import ActRow, ErasedProfile, Profile, TeamProfile
from ledger.sources import DatabaseSource
from ledger.tree import tree_size
from protocol.envelope import seal
from protocol.errors import (
    BadRecord,
    BadSignature,
    Conflict,
    NotEnrolled,
    NotFound,
    RateLimited,
    Stale,
    TransientError,
    UsageError,
)
from protocol.wire import records_pb2 as wire

Start = Callable[..., Awaitable[Acts]]


def size_of(acts: Acts) -> int:
    with acts.rig.database.session() as session:
        return tree_size(session)


def row_of(acts: Acts, kind: type[Any], name: str) -> Any:
    with acts.rig.database.session() as session:
        session.expire_on_commit = False
        return session.get(kind, name)


async def test_each_act_of_a_donor_is_recorded_once(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob, eve = (acts.rig.enrol(n).identity for n in (2, 3, 4))
    new = key("new")
    for record, signer in (
        (acts.pledge(ada), ada),
        (acts.pledge(ada, revision=1, microcredits=500), ada),
        (acts.pledge(bob, "secret", visibility=wire.VISIBILITY_SECRET), bob),
        (acts.team(ada), ada),
        (acts.membership(ada), ada),
        (acts.membership(ada, None), ada),
        (acts.key_change(ada, new), ada),
        (acts.merge(bob, eve), bob),
    ):
        before = size_of(acts)
        first = await acts.act(record, signer)
        again = await acts.act(record, signer)
        assert (first.recorded, first.leaf_index) == (True, before)
        assert (again.recorded, again.leaf_index) == (True, before)
        assert "already" in again.message
        assert size_of(acts) == before + 1
    board = acts.board()
    assert board.people.owner_of(ada.peer_id) == new.peer_id
    assert board.people.keys_of(eve.peer_id) == (eve.peer_id, bob.peer_id)
    acts.verify()


async def test_the_log_says_of_an_unnamed_pledge_how_much_and_not_whose(start_acts: Start) -> None:
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    record = acts.pledge(ada, visibility=wire.VISIBILITY_PRIVATE)
    index = (await acts.act(record, ada)).leaf_index
    board = acts.board()
    assert board.crowd.pledges.pledges[record.pledge.hex()].leaf.donor is None
    with acts.rig.database.session() as session:
        row = session.get_one(ActRow, index)
        assert (row.public, row.signer) == (False, ada.peer_id)
    voided = await acts.act(acts.void(index), ada)
    with acts.rig.database.session() as session:
        assert not session.get_one(ActRow, voided.leaf_index).public
    acts.verify()


async def test_who_may_not_act(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob = acts.rig.enrol(2).identity, acts.rig.enrol(3).identity
    stranger = key("stranger")
    size = size_of(acts)
    with pytest.raises(NotEnrolled, match="enrol one first"):
        await acts.act(acts.pledge(stranger), stranger)
    with pytest.raises(NotEnrolled):
        await acts.act(acts.pledge(stranger, visibility=wire.VISIBILITY_SECRET), stranger)
    with pytest.raises(NotEnrolled):
        await acts.act(acts.profile(stranger), stranger)
    with pytest.raises(BadSignature):
        await acts.act(acts.pledge(ada), bob)
    with pytest.raises(BadSignature):
        await acts.act(acts.team(ada), bob)
    with pytest.raises(BadRecord, match="another run"):
        await acts.act(acts.pledge(ada, run_id=bytes(32)), ada)
    forged = seal(acts.pledge(ada), ada)
    forged.payload = forged.payload[:-1] + bytes([forged.payload[-1] ^ 1])
    with pytest.raises(BadSignature):
        await acts.act(forged, None)
    for record in (acts.terms(), acts.donation(), acts.pool(ada)):
        with pytest.raises(BadRecord, match="organisers only"):
            await acts.act(record, ada)
    assert size_of(acts) == size
    acts.rig.block(ada.peer_id, "sends spam")
    with pytest.raises(UsageError, match="blocked: sends spam"):
        await acts.act(acts.pledge(ada), ada)
    assert acts.kinds() == []
    acts.verify()


async def test_another_act_under_the_same_name_is_a_conflict(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob = acts.rig.enrol(2).identity, acts.rig.enrol(3).identity
    await acts.act(acts.pledge(ada), ada)
    with pytest.raises(Conflict, match="leaf"):
        await acts.act(acts.pledge(ada, microcredits=7), ada)
    with pytest.raises(Conflict):
        await acts.act(acts.pledge(bob), bob)
    await acts.act(acts.team(ada), ada)
    with pytest.raises(Conflict):
        await acts.act(acts.team(bob), bob)
    void = acts.void(size_of(acts) - 2)
    await acts.act(void, ada)
    with pytest.raises(Conflict):
        await acts.act(acts.void(void.leaf), ada)
    assert acts.kinds() == ["pledge", "team-founding", "voiding"]
    acts.verify()


@pytest.mark.parametrize("visibility", [wire.VISIBILITY_PUBLIC, wire.VISIBILITY_SECRET])
async def test_nobody_revises_or_voids_another_donors_pledge(
    start_acts: Start, visibility: wire.Visibility
) -> None:
    acts = await start_acts()
    ada, bob = acts.rig.enrol(2).identity, acts.rig.enrol(3).identity
    made = await acts.act(acts.pledge(ada, visibility=visibility), ada)
    with pytest.raises(BadSignature, match="somebody else"):
        await acts.act(acts.pledge(bob, revision=1, visibility=visibility), bob)
    with pytest.raises(BadSignature, match="somebody else"):
        await acts.act(acts.void(made.leaf_index), bob)
    new = key("new")  # the same person goes on with another key
    await acts.act(acts.key_change(ada, new), ada)
    revised = acts.pledge(new, revision=1, visibility=visibility)
    index = (await acts.act(revised, new)).leaf_index
    with pytest.raises(UsageError, match="given up"):
        await acts.act(acts.void(index), ada)
    await acts.act(acts.void(index), new)
    acts.verify()


async def test_donors_void_pledges_only(start_acts: Start) -> None:
    acts = await start_acts()
    acts.appoint()
    ada = acts.rig.enrol(2).identity
    donation = acts.record(acts.donation(donor=ada.peer_id), TREASURER)
    with pytest.raises(BadSignature, match="by its treasurer"):
        await acts.act(acts.void(donation), ada)
    with pytest.raises(UsageError, match="no pledge, donation or pool"):
        await acts.act(acts.void(0), ada)
    with pytest.raises(UsageError, match="no pledge, donation or pool"):
        await acts.act(acts.void(10_000), ada)
    acts.verify()


async def test_keys_join_by_consent_of_both(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob, eve = (acts.rig.enrol(n).identity for n in (2, 3, 4))
    new = key("new")
    size = size_of(acts)
    for record, problem in (
        (acts.merge(ada, bob, consent=wire.Envelope()), BadRecord),
        (acts.merge(ada, bob, consent=acts.consent(ada, bob, by=ada)), BadSignature),
        (acts.merge(ada, bob, consent=acts.consent(eve, bob)), BadRecord),
        (acts.key_change(ada, new, consent=acts.consent(bob, new)), BadRecord),
        (acts.key_change(ada, new, consent=acts.consent(ada, new, by=eve)), BadSignature),
    ):
        with pytest.raises(problem):
            await acts.act(record, ada)
    with pytest.raises(UsageError, match="merge them instead"):
        await acts.act(acts.key_change(ada, bob), ada)
    with pytest.raises(UsageError, match="not enrolled"):
        await acts.act(acts.merge(ada, new), ada)
    assert size_of(acts) == size
    acts.rig.block(bob.peer_id, "cheated")
    with pytest.raises(UsageError, match="stay apart"):
        await acts.act(acts.merge(ada, bob), ada)
    acts.verify()


async def test_a_block_holds_for_every_key_of_a_person(start_acts: Start) -> None:
    acts = await start_acts()
    device = acts.rig.enrol(2)
    ada, new = device.identity, key("new")
    await acts.act(acts.key_change(ada, new), ada)
    await device.lease()
    acts.rig.block(new.peer_id, "sends spam")
    with pytest.raises(UsageError, match="sends spam"):
        await device.request()
    with pytest.raises(UsageError, match="sends spam"):
        await acts.act(acts.pledge(new), new)
    assert set(acts.board().audits.blocked) == {ada.peer_id, new.peer_id}
    acts.verify()


async def test_a_person_acts_so_often_a_day_with_all_keys(start_acts: Start) -> None:
    acts = await start_acts(options=EngineOptions(acts_per_day=3))
    ada = acts.rig.enrol(2).identity
    keys = [ada, *(key(f"new {n}") for n in range(3))]
    for old, new in itertools.pairwise(keys):
        await acts.act(acts.key_change(old, new), old)
    last = keys[-1]
    with pytest.raises(RateLimited, match="3 acts of a person in a day") as caught:
        await acts.act(acts.pledge(last), last)
    assert caught.value.retry_after_s == pytest.approx(DAY_S / 3)
    with pytest.raises(RateLimited):
        await acts.act(acts.profile(last), last)
    acts.rig.now_s += DAY_S / 3 + 1
    await acts.act(acts.pledge(last), last)
    assert acts.kinds() == ["key-change"] * 3 + ["pledge"]
    acts.verify()


async def test_refused_acts_cost_nothing_of_the_day(start_acts: Start) -> None:
    acts = await start_acts(options=EngineOptions(acts_per_day=1))
    ada = acts.rig.enrol(2).identity
    for _ in range(3):
        with pytest.raises(UsageError):
            await acts.act(acts.membership(ada, "no such team"), ada)
    await acts.act(acts.pledge(ada), ada)


async def test_a_dated_act_is_told_again_but_not_done_again(start_acts: Start) -> None:
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    await acts.act(acts.team(ada), ada)
    joined, left = acts.membership(ada), acts.membership(ada, None)
    first = await acts.act(joined, ada)
    await acts.act(left, ada)
    assert (await acts.act(joined, ada)).leaf_index == first.leaf_index
    assert acts.board().crowd.teams.team_of(ada.peer_id) is None
    shown = acts.profile(ada)
    await acts.act(shown, ada)
    with pytest.raises(BadRecord, match="answered before"):
        await acts.act(shown, ada)
    acts.verify()


async def test_a_dated_act_that_failed_in_passing_is_taken_as_it_was_signed(
    start_acts: Start,
) -> None:
    """Whoever gets no answer sends the same bytes again: nothing was done, so it is done now."""
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    await acts.act(acts.team(ada), ada)
    joined = seal(acts.membership(ada), ada)

    def away(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("INSERT INTO act "):
            raise OperationalError(statement, parameters, Exception("the database is locked"))

    engine = acts.rig.database.engine
    event.listen(engine, "before_cursor_execute", away)
    with pytest.raises(TransientError, match="locked"):
        await acts.act(joined, ada)
    event.remove(engine, "before_cursor_execute", away)
    assert (await acts.act(joined, ada)).recorded
    stale = acts.membership(ada, None)
    stale.freshness.CopyFrom(acts.fresh(age_s=300))
    with pytest.raises(Stale):
        await acts.act(stale, ada)
    stale.freshness.CopyFrom(acts.fresh())
    stale.freshness.nonce = b"any text, for ever"
    with pytest.raises(BadRecord, match="16 random bytes"):
        await acts.act(stale, ada)
    acts.verify()


async def test_profiles_are_shown_and_erased(start_acts: Start) -> None:
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    reply = await acts.act(
        acts.profile(
            ada, display_name="A\u200bda\u202e", url="https://x.org", about="hi", show_devices=True
        ),
        ada,
    )
    assert (reply.recorded, reply.message) == (False, "shown from now on")
    row = row_of(acts, Profile, ada.peer_id)
    assert (row.display_name, row.url, row.about, row.show_devices) == (
        "A da",
        "https://x.org",
        "hi",
        True,
    )
    older = acts.profile(ada, display_name="Old", freshness=acts.fresh(age_s=60))
    assert "newer" in (await acts.act(older, ada)).message
    assert row_of(acts, Profile, ada.peer_id).display_name == "A da"
    acts.rig.now_s += 60
    await acts.act(acts.profile(ada, erase=True), ada)
    assert row_of(acts, Profile, ada.peer_id) is None
    assert row_of(acts, ErasedProfile, ada.peer_id).erased_at_s == acts.now_s
    acts.rig.now_s += 60
    await acts.act(acts.profile(ada, display_name="Ada again"), ada)
    assert row_of(acts, ErasedProfile, ada.peer_id) is None
    assert row_of(acts, Profile, ada.peer_id).display_name == "Ada again"


@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": ""},
        {"display_name": "\u202e\u200b"},
        {"display_name": "x" * 300},
        {"url": "javascript:alert(1)"},
        {"url": "https://x.org/" + "x" * 300},
        {"about": "x" * 600},
        {"about": "\x1b[2J"},
    ],
)
async def test_profiles_are_bounded(start_acts: Start, fields: dict[str, Any]) -> None:
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    with pytest.raises(BadRecord):
        await acts.act(acts.profile(ada, **fields), ada)
    assert row_of(acts, Profile, ada.peer_id) is None


async def test_a_team_is_shown_as_its_founder_says(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob, new = acts.rig.enrol(2).identity, acts.rig.enrol(3).identity, key("new")
    with pytest.raises(NotFound):
        await acts.act(acts.profile(ada, team=id_of("a")), ada)
    await acts.act(acts.team(ada), ada)
    with pytest.raises(BadSignature, match="founder"):
        await acts.act(acts.profile(bob, team=id_of("a")), bob)
    await acts.act(acts.key_change(ada, new), ada)
    await acts.act(acts.profile(new, team=id_of("a"), display_name="The club"), new)
    assert row_of(acts, TeamProfile, id_of("a").hex()).display_name == "The club"
    assert row_of(acts, Profile, new.peer_id) is None


async def test_erasing_a_person_takes_what_leads_to_it(start_acts: Start) -> None:
    acts = await start_acts()
    acts.appoint()
    device = acts.rig.enrol(2)
    ada, bob = device.identity, acts.rig.enrol(3).identity
    new = key("new")
    hidden = {"visibility": wire.VISIBILITY_PRIVATE}
    public = (await acts.act(acts.pledge(ada), ada)).leaf_index
    mine = [(await acts.act(acts.pledge(ada, "mine", **hidden), ada)).leaf_index]
    mine.append(acts.record(acts.donation("mine", donor=ada.peer_id, **hidden), TREASURER))
    kept = [(await acts.act(acts.pledge(bob, "bob", **hidden), bob)).leaf_index]
    kept.append(acts.record(acts.donation("bob", donor=bob.peer_id, **hidden), TREASURER))
    await acts.act(acts.key_change(ada, new), ada)
    await acts.act(acts.profile(new), new)
    with acts.rig.database.session() as session:
        session.get_one(WorkerRow, device.name).display_name = "Ada"
        session.get_one(WorkerRow, device.name).device_name = "Ada's laptop"
    before = acts.board()
    with acts.rig.database.session() as session:
        assert erase_person(session, ada.peer_id, acts.now_s) == sorted([ada.peer_id, new.peer_id])
    with acts.rig.database.session() as session:
        for index in mine:
            assert session.get_one(ActRow, index).envelope == b""
        assert session.get_one(ActRow, mine[0]).signer == ""
        assert all(session.get_one(ActRow, index).envelope for index in (*kept, public))
        row = session.get_one(WorkerRow, device.name)
        assert (row.display_name, row.device_name) == ("", "")
        assert session.scalars(select(Profile)).all() == []
        assert {e.subject for e in session.scalars(select(ErasedProfile))} == {
            ada.peer_id,
            new.peer_id,
        }
    acts.verify()
    assert acts.board().total == before.total
    with pytest.raises(UsageError, match="not known any more"):
        await acts.act(acts.void(mine[0]), new)
    revised = acts.pledge(new, "mine", revision=1, **hidden)
    with pytest.raises(UsageError, match="not known any more"):
        await acts.act(revised, new)


def test_what_was_erased_is_overwritten_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    who, told = key("ada").peer_id, "Zebrafinch"
    with database.session() as session:
        session.add(Profile(donor=who, display_name="Ada", about=told, updated_at_s=1))
    with database.session() as session:
        erase_person(session, who, 2.0)
    database.close()
    assert told.encode() not in file.read_bytes()


async def test_an_act_is_undone_with_its_transaction(start_acts: Start) -> None:
    """The disk fails when the act's row is written: no leaf stays, and the book forgets it."""
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    await acts.act(acts.team(ada), ada)
    size = size_of(acts)

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO act "):
            raise OSError("no space left")

    engine = acts.rig.database.engine
    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="no space"):
        await acts.act(acts.pledge(ada), ada)
    event.remove(engine, "before_cursor_execute", fail)
    assert size_of(acts) == size
    assert (await acts.act(acts.pledge(ada), ada)).leaf_index == size
    await acts.rig.reboot()
    assert (await acts.act(acts.pledge(ada), ada)).leaf_index == size
    acts.verify()


async def test_organisers_act_while_the_coordinator_runs(start_acts: Start) -> None:
    """Leaves that other programs write are followed before the next act is judged."""
    acts = await start_acts()
    acts.appoint()
    ada = acts.rig.enrol(2).identity
    terms = acts.terms()
    wanted = acts.pledge(ada, campaign=terms.campaign)
    with pytest.raises(UsageError, match="there is no campaign"):
        await acts.act(wanted, ada)
    acts.record(terms, CAMPAIGN)
    await acts.act(wanted, ada)
    end = wire.CampaignEnd(
        run_id=acts.run_id, campaign=terms.campaign, outcome="closed", at_s=acts.now_s
    )
    acts.record(end, CAMPAIGN)
    with pytest.raises(UsageError, match="is over"):
        await acts.act(acts.pledge(ada, "b", campaign=terms.campaign), ada)
    acts.verify()


async def test_treasurers_in_their_time_only(start_acts: Start) -> None:
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    for signer in (TREASURER, ada):
        with pytest.raises(BadSignature, match="never delegated"):
            acts.record(acts.donation(), signer)
    acts.vouch(wire.KEY_PURPOSE_CAMPAIGN, TREASURER)  # another purpose
    with pytest.raises(BadSignature, match="never delegated"):
        acts.record(acts.donation(), TREASURER)
    envelope = acts.vouch(wire.KEY_PURPOSE_TREASURER, TREASURER, valid_s=100)
    index = acts.record(acts.donation(), TREASURER)
    acts.rig.now_s += 101
    with pytest.raises(BadSignature, match="expired"):
        acts.record(acts.donation("b"), TREASURER)
    with pytest.raises(BadSignature, match="expired"):
        acts.record(acts.void(index), TREASURER)
    successor = key("successor")
    acts.vouch(wire.KEY_PURPOSE_TREASURER, successor)
    acts.record(acts.void(index), successor)
    serial = wire.Delegation.FromString(envelope.payload).serial
    revocation = wire.Revocation(run_id=acts.run_id, serial=serial, reason="gone")
    assert acts.store([], [seal(revocation, acts.rig.keys.root)]) == 1
    acts.verify()


async def test_what_the_root_did_not_sign_is_not_recorded(start_acts: Start) -> None:
    acts = await start_acts()
    size = size_of(acts)
    unknown = wire.Revocation(run_id=acts.run_id, serial=7, reason="of nothing")
    assert acts.store([], [seal(unknown, acts.rig.keys.root)]) == 0
    assert acts.store(acts.rig.keys.delegations) == 0  # they have theirs
    assert size_of(acts) == size
    acts.verify()


async def test_acts_come_back_from_a_copy_of_the_record(start_acts: Start) -> None:
    acts = await start_acts()
    ada = acts.rig.enrol(2).identity
    hidden = {"visibility": wire.VISIBILITY_SECRET}
    start = size_of(acts)
    await acts.act(acts.pledge(ada), ada)
    secret = (await acts.act(acts.pledge(ada, "b", **hidden), ada)).leaf_index
    await acts.act(acts.team(ada), ada)
    board = acts.board()
    with acts.rig.database.session() as session:
        leaves = [parse_leaf(data) for data in read_leaves(session, start, board.size)]
        source = DatabaseSource(session)
        before = {index: source.act(index) for index in range(start, board.size)}
        copy = SimpleNamespace(act=before.get)
        session.execute(delete(ActRow).where(ActRow.leaf_index >= start))
        with pytest.raises(BadRecord, match="not in the copy"):
            keep_acts(session, SimpleNamespace(act=lambda _: None), board, leaves, start)
        session.rollback()
    with acts.rig.database.session() as session:
        session.execute(delete(ActRow).where(ActRow.leaf_index >= start))
        keep_acts(session, copy, board, leaves, start)
    acts.verify()
    assert (await acts.act(acts.pledge(ada), ada)).leaf_index == start  # the same answer as ever
    with pytest.raises(UsageError, match="not known any more"):
        await acts.act(acts.void(secret), ada)
