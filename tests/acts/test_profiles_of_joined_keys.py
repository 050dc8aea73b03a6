"""A person's profile goes where the person goes, and is erased under every key that it had."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from acts_rig import Acts, key
from sqlalchemy import select

from coordinator.crowd.profiles import take_name
from ledger.schema import ErasedProfile, Profile

Start = Callable[..., Awaitable[Acts]]


def names(acts: Acts) -> dict[str, str]:
    with acts.rig.database.session() as session:
        return {row.donor: row.display_name for row in session.scalars(select(Profile))}


async def test_a_profile_follows_a_changed_key(start_acts: Start) -> None:
    acts = await start_acts()
    ada, new = acts.rig.enrol(2).identity, key("new")
    await acts.act(acts.profile(ada, display_name="Ada"), ada)
    await acts.act(acts.key_change(ada, new), ada)
    assert names(acts) == {new.peer_id: "Ada"}


async def test_in_a_merge_the_profile_of_the_key_that_takes_stands(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob, eve = (acts.rig.enrol(n).identity for n in (2, 3, 4))
    await acts.act(acts.profile(ada, display_name="Ada"), ada)
    await acts.act(acts.profile(bob, display_name="Bob"), bob)
    await acts.act(acts.merge(ada, bob), ada)
    assert names(acts) == {bob.peer_id: "Bob"}
    await acts.act(acts.merge(bob, eve), bob)
    assert names(acts) == {eve.peer_id: "Bob"}


async def test_who_erases_is_forgotten_under_every_key(start_acts: Start) -> None:
    acts = await start_acts()
    ada, bob, other = (acts.rig.enrol(n).identity for n in (2, 3, 4))
    await acts.act(acts.merge(ada, bob), ada)
    await acts.act(acts.profile(bob, display_name="Bob"), bob)
    await acts.act(acts.profile(other, display_name="Other"), other)
    with acts.rig.database.session() as session:  # as a device that goes on under its old key says
        session.add(Profile(donor=ada.peer_id, display_name="Ada", updated_at_s=int(acts.now_s)))
    acts.rig.now_s += 60
    await acts.act(acts.profile(bob, erase=True), bob)
    assert names(acts) == {other.peer_id: "Other"}
    with acts.rig.database.session() as session:
        gone = set(session.scalars(select(ErasedProfile.subject)))
    assert gone == {ada.peer_id, bob.peer_id}


async def test_what_was_erased_stays_so_under_a_new_key(start_acts: Start) -> None:
    acts = await start_acts()
    ada, new = acts.rig.enrol(2).identity, key("new")
    await acts.act(acts.profile(ada, erase=True), ada)
    await acts.act(acts.key_change(ada, new), ada)
    with acts.rig.database.session() as session:  # as the enrolment of a device does
        take_name(session, new.peer_id, "Ada", "", acts.rig.now_s)
    assert names(acts) == {}
    acts.rig.now_s += 60
    await acts.act(acts.profile(new, display_name="Ada again"), new)
    assert names(acts) == {new.peer_id: "Ada again"}
