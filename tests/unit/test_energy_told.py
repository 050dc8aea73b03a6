"""Energy that a device tells everybody: only if its owner wants, bounded, forgotten with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest

from coordinator.crowd.profiles import erase_person
from ledger.log import read_leaves
from ledger.published import EnergyTold, Erased, Profiles, load_profiles
from ledger.schema import DeviceEnergy
from ledger.tree import tree_size
from protocol.energy import MAX_ENERGY_MWH, check_energy
from protocol.errors import BadRecord, TransientError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker import energy_told
from worker.config import Home, WorkerConfig
from worker.energy_book import EnergyBook
from worker.energy_told import tell_again, told_energy

ADA, BOB, DEVICE = (Identity.from_seed(bytes([n]) * 32).peer_id for n in (1, 2, 3))
LINK = "barnraise://127.0.0.1:7443/" + "ab" * 32 + "#root=" + ADA


def device(energy_mwh: int = 0, energy_tokens: int = 0) -> wire.Device:
    return wire.Device(device_class="cpu", energy_mwh=energy_mwh, energy_tokens=energy_tokens)


# ---- the device ------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    book = EnergyBook(total_j=9000.0, verified_j=7200.0, verified_tokens=50_000)
    book.save(home.energy)
    return home


def test_nothing_is_told_unless_the_owner_wants(home: Home) -> None:
    assert told_energy(home, WorkerConfig(LINK)) == {}
    wanted = WorkerConfig(LINK, publish_energy=True)
    assert told_energy(home, wanted) == {"energy_mwh": 2000, "energy_tokens": 50_000}


@pytest.mark.parametrize(
    "book",
    [EnergyBook(), EnergyBook(9.0, 1e-9, 50), EnergyBook(9e9, 9e9, 50), EnergyBook(9.0, 0.0, 0)],
)
def test_nothing_is_told_that_would_be_refused(home: Home, book: EnergyBook) -> None:
    book.save(home.energy)
    assert told_energy(home, WorkerConfig(LINK, publish_energy=True)) == {}


async def test_it_is_told_again_whatever_became_of_the_last_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(energy_told, "AGAIN_S", 0.0)
    told = []

    class Enough(Exception): ...

    async def enrol() -> None:
        told.append(len(told))
        if len(told) == 3:
            raise Enough
        raise TransientError("away")

    await tell_again(WorkerConfig(LINK), enrol)
    assert told == []
    with pytest.raises(Enough):
        await tell_again(WorkerConfig(LINK, publish_energy=True), enrol)


# ---- the coordinator -------------------------------------------------------------------

Serve = Callable[..., AbstractAsyncContextManager[Any]]


def kept(served: Any) -> list[tuple[str, int, int]]:
    with served.database.session() as session:
        rows = session.query(DeviceEnergy).all()
        return [(row.worker, row.milliwatt_hours, row.tokens) for row in rows]


async def test_the_newest_enrolment_counts_and_the_record_says_nothing(
    run_rig: ModuleType, run_folder: Path
) -> None:
    async with run_rig.serving(run_folder) as served, served.client() as client:
        who = client.identity.peer_id
        await client.enrol(device=device(2000, 50_000))
        assert kept(served) == [(who, 2000, 50_000)]
        await client.enrol(device=device(3000, 60_000))
        assert kept(served) == [(who, 3000, 60_000)]
        with served.database.session() as session:
            leaves = b"".join(read_leaves(session, 0, tree_size(session)))
            (published,) = load_profiles(session).energy
        assert b"energy" not in leaves
        assert (published.donor, published.tokens) == (who, 60_000)
        await client.enrol()
        assert kept(served) == []


async def test_who_is_erased_is_forgotten_and_not_brought_back_by_a_device(
    run_rig: ModuleType, run_folder: Path
) -> None:
    async with run_rig.serving(run_folder) as served, served.client() as client:
        await client.enrol(device=device(2000, 50_000))
        with served.database.session() as session:
            erase_person(session, client.identity.peer_id, 1.0)
            session.commit()
        assert kept(served) == []
        await client.enrol(device=device(2000, 50_000))
        assert kept(served) == []


ABSURD = [
    (1, 0),
    (0, 1),
    (1001, 1),
    (MAX_ENERGY_MWH + 1, 1 << 52),
    (1, 1 << 53),
    ((1 << 64) - 1, 1),
]


@pytest.mark.parametrize(("energy_mwh", "tokens"), ABSURD)
def test_absurd_numbers(energy_mwh: int, tokens: int) -> None:
    with pytest.raises(BadRecord):
        check_energy(energy_mwh, tokens)


async def test_an_enrolment_with_absurd_numbers_is_refused(
    run_rig: ModuleType, run_folder: Path
) -> None:
    async with run_rig.serving(run_folder) as served, served.client() as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.enrol(device=device((1 << 64) - 1, 1))
        assert run_rig.reason(refused.value) == "BAD_RECORD"
        assert kept(served) == []


# ---- copies of the record --------------------------------------------------------------


def told(worker: str, donor: str, told_at_s: int = 100) -> EnergyTold:
    return EnergyTold(worker=worker, donor=donor, milliwatt_hours=5, tokens=7, told_at_s=told_at_s)


def test_a_copy_forgets_the_energy_of_who_is_erased() -> None:
    held = Profiles(erased=(Erased(subject=ADA, erased_at_s=100),))
    offered = Profiles(energy=(told(DEVICE, ADA), told(BOB, BOB)))
    assert [row.donor for row in offered.after(held).energy] == [BOB]


def test_profiles_without_energy_are_as_they_were() -> None:
    assert Profiles.parse(Profiles().dump()) == Profiles()
    assert b"energy" not in Profiles().dump()
    some = Profiles(energy=(told(DEVICE, ADA),))
    assert Profiles.parse(some.dump()) == some


def test_a_device_tells_once() -> None:
    twice = Profiles.model_construct(energy=(told(DEVICE, ADA), told(DEVICE, BOB)))
    with pytest.raises(BadRecord, match="twice"):
        Profiles.parse(twice.dump())
