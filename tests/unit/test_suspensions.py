"""What a round says of its reducers, and for how long they are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from coordinator.audit.schema import SuspensionRow
from coordinator.database import Database
from coordinator.round import tick
from coordinator.round_state import Phase, Policy, Round, SettleDone, Tick
from coordinator.schema import WorkerRow
from coordinator.suspensions import (
    FIRST_ROUNDS,
    MOST_ROUNDS,
    lone_lacks,
    suspended,
    suspension_rounds,
    take_note,
    withheld,
)
from ledger.schema import Base

POLICY = Policy(
    duration_s=10,
    grace_s=1,
    gather_s=10,
    broadcast_s=10,
    min_members=2,
    max_members=9,
    max_attempts=3,
)
MEMBERS = ("m0", "m1", "m2")
LATE_S = 1e6


def gathering(number: int = 0, **complete: tuple[str, ...]) -> Round:
    return Round(
        number=number,
        policy=POLICY,
        phase=Phase.GATHER,
        deadline_s=100.0,
        broadcast_deadline_s=110.0,
        committed=MEMBERS,
        attempt=1,
        reducers=("anchor", "r1", "r2"),
        complete=tuple(complete.items()),
    )


def broadcasting(number: int = 0, *delivered: str) -> Round:
    state = gathering(number, anchor=MEMBERS, r1=MEMBERS, r2=MEMBERS)
    return replace(
        state, phase=Phase.BROADCAST, deadline_s=110.0, inclusion=MEMBERS, delivered=delivered
    )


def after_deadline(state: Round) -> Round:
    return tick(state, Tick(), LATE_S)[0]


def test_who_did_not_deliver_has_withheld() -> None:
    state = broadcasting(0, "anchor")
    assert withheld(state, after_deadline(state)) == {"r1", "r2"}
    # Also when it was the last attempt, and the round is skipped.
    last = replace(state, attempt=3)
    assert after_deadline(last).phase is Phase.SKIPPED
    assert withheld(last, after_deadline(last)) == {"r1", "r2"}


def test_a_round_that_goes_on_says_nothing() -> None:
    state = broadcasting(0, "anchor")
    assert withheld(state, state) == frozenset()
    assert lone_lacks(state, state) == {}
    assert withheld(state, tick(state, Tick(), 0.0)[0]) == frozenset()
    settling = replace(state, delivered=state.reducers, settling=True)
    assert withheld(settling, tick(settling, SettleDone(), 0.0)[0]) == frozenset()


def test_who_was_silent_while_others_were_served_has_withheld() -> None:
    state = gathering(0, anchor=MEMBERS, r1=MEMBERS)
    assert withheld(state, after_deadline(state)) == {"r2"}
    # Where nobody was served the members may have gone: nobody's fault.
    alone = gathering(0, anchor=("m0",), r1=("m0",))
    assert withheld(alone, after_deadline(alone)) == frozenset()


def test_lone_lacks() -> None:
    state = gathering(0, anchor=MEMBERS, r1=MEMBERS, r2=("m0", "m1"))
    assert lone_lacks(state, after_deadline(state)) == {"r2": {"m2"}}
    both = gathering(0, anchor=MEMBERS, r1=("m0", "m1"), r2=("m0", "m1"))
    assert lone_lacks(both, after_deadline(both)) == {}
    single = replace(gathering(0, anchor=("m0", "m1")), reducers=("anchor",))
    assert lone_lacks(single, after_deadline(single)) == {}


@given(
    held=st.dictionaries(
        st.sampled_from(("anchor", "r1", "r2")),
        st.lists(st.sampled_from(MEMBERS), unique=True).map(tuple),
    )
)
def test_nobody_lacks_alone_what_another_lacks_too(held: dict[str, tuple[str, ...]]) -> None:
    state = gathering(0, **held)
    found = lone_lacks(state, after_deadline(state))
    for reducer, lacked in found.items():
        assert not lacked & set(held.get(reducer, ()))
        others = [r for r in state.reducers if r != reducer]
        assert all(lacked <= set(held.get(other, ())) for other in others)
    lacked_by = [member for lacked in found.values() for member in lacked]
    assert len(lacked_by) == len(set(lacked_by))


def test_suspensions_double_up_to_a_bound() -> None:
    assert [suspension_rounds(times) for times in range(6)] == [0, 0, 4, 8, 16, 32]
    assert suspension_rounds(10**9) == MOST_ROUNDS
    assert FIRST_ROUNDS == 4


# ---- with the database ----


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    database = Database(f"sqlite:///{tmp_path / 's.db'}")
    Base.metadata.create_all(database.engine)
    with database.session() as opened:
        for name in ("anchor", "r1", "r2", *MEMBERS):
            opened.add(
                WorkerRow(
                    worker=name,
                    donor="both" if name in ("m1", "m2") else name,
                    device_class="cpu",
                    anchor=name == "anchor",
                    enrolled_at_s=0.0,
                )
            )
        opened.flush()
        yield opened
    database.close()


def note(session: Session, state: Round) -> None:
    take_note(session, state, after_deadline(state))


def row(session: Session, worker: str) -> SuspensionRow:
    found = session.get(SuspensionRow, worker)
    assert found is not None
    return found


def test_the_second_withheld_reduce_in_a_row_suspends_and_anchors_never_are(
    session: Session,
) -> None:
    everybody = ("anchor", "r1", "r2")
    note(session, broadcasting(0, "r2"))
    assert suspended(session, 1, everybody) == set()
    note(session, broadcasting(1, "r2"))
    assert suspended(session, 2, everybody) == {"r1"}
    assert row(session, "r1").until_round == 6
    assert suspended(session, 5, everybody) == {"r1"}
    assert suspended(session, 6, everybody) == set()
    note(session, broadcasting(6, "anchor", "r2"))
    assert row(session, "r1").until_round == 6 + 1 + 8
    assert session.get(SuspensionRow, "anchor") is None


def test_a_delivered_reduce_begins_the_count_anew(session: Session) -> None:
    note(session, broadcasting(0, "anchor", "r2"))
    done = replace(broadcasting(1), delivered=("anchor", "r1", "r2"), settling=True)
    take_note(session, done, tick(done, SettleDone(), 0.0)[0])
    assert row(session, "r1").withheld == 0
    note(session, broadcasting(2, "anchor", "r2"))
    assert suspended(session, 3, ("r1",)) == set()


def test_members_of_two_donors_that_one_reducer_lacks_count_at_once(session: Session) -> None:
    note(session, gathering(0, anchor=MEMBERS, r1=MEMBERS, r2=("m2",)))
    assert row(session, "r2").withheld == 1
    assert row(session, "r2").reason == "censored_members"


def test_one_donor_that_one_reducer_lacks_counts_in_the_second_round(session: Session) -> None:
    for number, expected in ((0, 0), (1, 1), (2, 2)):
        note(session, gathering(number, anchor=MEMBERS, r1=MEMBERS, r2=("m0",)))
        assert row(session, "r2").withheld == expected
    assert suspended(session, 3, ("r1", "r2")) == {"r2"}


def test_a_censor_is_not_forgiven_by_the_round_that_it_censored(session: Session) -> None:
    for number in range(3):
        note(session, gathering(number, anchor=MEMBERS, r1=MEMBERS, r2=("m0", "m1")))
        done = replace(broadcasting(number), delivered=("anchor", "r1", "r2"), settling=True)
        take_note(session, done, tick(done, SettleDone(), 0.0)[0])
    assert suspended(session, 3, ("r2",)) == {"r2"}


def test_a_silent_reducer_is_counted_once(session: Session) -> None:
    note(session, gathering(0, anchor=MEMBERS, r1=MEMBERS))
    assert row(session, "r2").withheld == 1
