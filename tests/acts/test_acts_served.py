"""Acts over the network, and devices that work for a pool's key."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest

from coordinator.crowd.pools import new_pool_key, vouch
from ledger.fold import Board, fold
from ledger.log import latest_head, read_leaves
from ledger.schema import Profile
from protocol.envelope import parse_envelope, seal
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire


@pytest.fixture
async def served(run_rig: ModuleType, tmp_path: Path) -> AsyncIterator[Any]:
    """A run that is served, with limits that a test reaches."""
    run_rig.make_dataset(tmp_path / "data")
    text = f"{run_rig.RUN_TOML}\n[server.limits]\nacts_per_donor_per_day = 3\n"
    await asyncio.to_thread(run_rig.make_run, tmp_path / "data", tmp_path / "run", text)
    async with run_rig.serving(tmp_path / "run") as started:
        yield started


def board_of(served: Any) -> Board:
    """What a stranger folds: nothing beyond the signed head."""
    with served.database.session() as session:
        head = latest_head(session)
        assert head is not None
        return fold(read_leaves(session, 0, head.tree_size))


def pledge(client: Any, donor: Identity, **fields: Any) -> wire.Pledge:
    run_id = client.link.run_id
    given = {
        "run_id": run_id,
        "campaign": run_id[:16],
        "pledge": secrets.token_bytes(16),
        "donor": donor.peer_id,
        "microcredits": 7,
        "until_s": 4_000_000_000,
        "visibility": wire.VISIBILITY_PUBLIC,
        "salt": secrets.token_bytes(16),
    }
    return wire.Pledge(**(given | fields))


async def refused(run_rig: ModuleType, call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return run_rig.reason(caught.value), str(caught.value.details())


async def test_acts_over_the_network(served: Any, run_rig: ModuleType) -> None:
    async with served.client() as ada:
        me = ada.identity
        early = ada.stub.Act(seal(pledge(ada, me), me))
        assert (await refused(run_rig, early))[0] == "NOT_ENROLLED"
        await ada.enrol()
        first = seal(pledge(ada, me, pledge=bytes(16)), me)
        reply = await ada.stub.Act(first)
        assert (await ada.stub.Act(first)).leaf_index == reply.leaf_index
        assert board_of(served).crowd.pledges.pledges[bytes(16).hex()].leaf_index == (
            reply.leaf_index
        )
        other = seal(pledge(ada, me, pledge=bytes(16), microcredits=9), me)
        assert (await refused(run_rig, ada.stub.Act(other)))[0] == "CONFLICT"
        elsewhere = seal(pledge(ada, me, run_id=bytes(32)), me)
        assert (await refused(run_rig, ada.stub.Act(elsewhere)))[0] == "UNKNOWN_RUN"
        stale = wire.ProfileUpdate(
            run_id=ada.link.run_id,
            donor=me.peer_id,
            display_name="Ada",
            freshness=ada.freshness(age_s=300),
        )
        assert (await refused(run_rig, ada.stub.Act(seal(stale, me))))[0] == "STALE"
        huge = seal(
            wire.ProfileUpdate(run_id=ada.link.run_id, donor=me.peer_id, about="x" * 100_000), me
        )
        assert (await refused(run_rig, ada.stub.Act(huge)))[0] == "BAD_RECORD"
        for _ in range(2):
            await ada.stub.Act(seal(pledge(ada, me), me))
        reason, said = await refused(run_rig, ada.stub.Act(seal(pledge(ada, me), me)))
        assert reason == "RATE_LIMITED"
        assert "3 acts of a person in a day" in said


async def test_devices_of_a_pool(served: Any, run_rig: ModuleType, tmp_path: Path) -> None:
    """Several devices of one donor, which is no device itself; each by its own delegation."""
    pool = new_pool_key(tmp_path)
    devices = []
    for number in range(3):
        async with served.client() as device:
            worker = device.identity
            line = vouch(pool, worker.public, 4_000_000_000)
            envelope = parse_envelope(base64.urlsafe_b64decode(line.partition(":")[2]))
            reply = await device.enrol(
                donor=pool.peer_id, device_delegation=envelope, display_name=f"rented {number}"
            )
            assert reply.admitted
            again = await device.enrol(donor=pool.peer_id, device_delegation=envelope)
            assert (again.admitted, again.message) == (True, "welcome back")
            devices.append(worker.peer_id)
            if number:
                continue
            stolen = await refused(
                run_rig,
                device.enrol(donor=pool.peer_id, device_delegation=_for_another(pool)),
            )
            assert stolen[0] == "BAD_RECORD"
    board = board_of(served)
    assert board.donors[pool.peer_id].workers == devices
    async with served.client() as organiser:  # the pool's key is a donor's like any other
        reply = await organiser.stub.Act(seal(pledge(organiser, pool), pool))
    assert reply.recorded


def _for_another(pool: Identity) -> wire.Envelope:
    record = wire.DeviceDelegation(
        donor=pool.peer_id, worker=Identity.generate().peer_id, not_after_s=4_000_000_000
    )
    return seal(record, pool)


async def test_a_key_that_was_given_up_gets_no_new_device(
    served: Any, run_rig: ModuleType, tmp_path: Path
) -> None:
    async with served.client() as ada, served.client() as laptop:
        me, new = ada.identity, Identity.generate()
        await ada.enrol()
        consent = wire.KeyConsent(run_id=ada.link.run_id, of=me.peer_id, into=new.peer_id)
        change = wire.KeyChange(
            run_id=ada.link.run_id,
            old=me.peer_id,
            new=new.peer_id,
            consent=seal(consent, new),
        )
        await ada.stub.Act(seal(change, me))
        assert (await ada.enrol()).message == "welcome back"  # what works goes on

        def vouched(donor: Identity) -> dict[str, Any]:
            record = wire.DeviceDelegation(
                donor=donor.peer_id,
                worker=laptop.identity.peer_id,
                not_after_s=4_000_000_000,
            )
            return {"donor": donor.peer_id, "device_delegation": seal(record, donor)}

        reason, said = await refused(run_rig, laptop.enrol(**vouched(me)))
        assert (reason, f"given up for {new.peer_id}" in said) == ("USAGE", True)
        assert (await laptop.enrol(**vouched(new))).admitted
    board = board_of(served)
    assert board.people.owner_of(me.peer_id) == new.peer_id
    assert board.donors[new.peer_id].workers == [laptop.identity.peer_id]


async def test_a_name_comes_back_by_the_persons_word_only(served: Any) -> None:
    """What a device calls itself does not overwrite a profile, nor undo an erasure."""

    def name() -> str | None:
        with served.database.session() as session:
            row = session.get(Profile, ada.identity.peer_id)
            return None if row is None else row.display_name

    async def show(**fields: Any) -> None:
        record = wire.ProfileUpdate(
            run_id=ada.link.run_id,
            donor=ada.identity.peer_id,
            freshness=ada.freshness(),
            **fields,
        )
        await ada.stub.Act(seal(record, ada.identity))

    async with served.client() as ada:
        await ada.enrol(display_name="laptop")
        assert name() == "laptop"
        await show(display_name="Ada Lovelace")
        await ada.enrol(display_name="laptop")
        assert name() == "Ada Lovelace"
        await show(erase=True)
        await ada.enrol(display_name="laptop 2")
        assert name() is None
