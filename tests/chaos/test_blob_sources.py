"""Blobs from real peers of which some lie, stall, die or do not have them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from chaos_blob_rig import Change, Field, end, open_field
from chaos_injector import Action, Fault

from protocol.errors import TransientError
from worker import blob_transfer
from worker.partial_blob import BLOCK_BYTES
from worker.sources import COORDINATOR

pytestmark = [pytest.mark.swarm, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for seconds does not make a peer look stalled here."""
    monkeypatch.setattr(blob_transfer, "PATIENCE_S", 60.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def field(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Field]:
    async with open_field(tmp_path_factory.mktemp("field")) as opened:
        yield opened


def whole(path: Path) -> Path:
    return path


def nothing(_path: Path) -> None:
    return None


def zeros(path: Path) -> Path:
    path.write_bytes(bytes(path.stat().st_size))
    return path


def shorter(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-1])
    return path


def bad_block(block: int, value: bytes = b"other bytes") -> Change:
    def change(path: Path) -> Path:
        with path.open("r+b") as file:
            file.seek(block * BLOCK_BYTES + 1000)
            file.write(value)
        return path

    return change


# ---- honest ones


async def test_peers_alone_give_a_blob_and_hardly_a_byte_twice(field: Field) -> None:
    first, second = await field.peers(whole, whole)
    sources = field.sources(first, second)
    sources.gate(first, after=2)
    fetched = await field.fetch(field.store(), sources)
    assert set(fetched.givers) == {first, second}
    assert sources.asked[COORDINATOR] == 0
    # At the end both fetch the last block that is under way: so much may be wasted.
    received = sum(sources.received_bytes.values())
    assert received <= field.wanted.total_bytes + 2 * BLOCK_BYTES


async def test_the_coordinator_alone_is_enough(field: Field) -> None:
    sources = field.sources()
    fetched = await field.fetch(field.store(), sources)
    assert fetched.givers == (COORDINATOR,)
    assert sources.received_bytes[COORDINATOR] == field.wanted.total_bytes


async def test_who_does_not_hold_it_is_not_asked_again(field: Field) -> None:
    without, holder = await field.peers(nothing, whole)
    sources = field.sources(without, holder)
    for _ in range(2):
        fetched = await field.fetch(field.store(), sources)
        assert fetched.givers == (holder,)
    assert sources.asked[without] == 1
    assert sources.bad == []


# ---- liars


async def test_who_lies_is_found_among_several_and_the_honest_stay(field: Field) -> None:
    liar, honest, other = await field.peers(zeros, whole, whole)
    sources = field.sources(liar, honest, other)
    sources.gate(liar, after=2)
    fetched = await field.fetch(field.store(), sources)
    assert sources.bad == [liar]
    assert liar not in fetched.givers
    # It is asked for nothing any more; the others are.
    asked = sources.asked[liar]
    fetched = await field.fetch(field.store(), sources)
    assert sources.asked[liar] == asked
    assert set(fetched.givers) <= {honest, other}


async def test_one_wrong_block_in_the_middle_is_enough(field: Field) -> None:
    liar, honest = await field.peers(bad_block(5), whole)
    sources = field.sources(liar, honest)
    sources.gate(liar, after=7)
    await field.fetch(field.store(), sources)
    assert sources.bad == [liar]


async def test_when_every_peer_lies_the_coordinator_is_right(field: Field) -> None:
    liar, other = await field.peers(zeros, bad_block(6))
    sources = field.sources(liar, other)
    sources.gate(liar, after=1)
    fetched = await field.fetch(field.store(), sources)
    assert COORDINATOR in fetched.givers
    assert liar in sources.bad
    assert set(sources.bad) <= {liar, other}


async def test_a_peer_that_claims_another_size_is_dropped_at_its_first_piece(field: Field) -> None:
    liar, honest = await field.peers(shorter, whole)
    sources = field.sources(liar)
    fetched = await field.fetch(field.store(), sources)
    assert fetched.givers == (COORDINATOR,)
    assert sources.bad == [liar]
    sources.anchor_ids = (liar, honest)
    fetched = await field.fetch(field.store(), sources)
    assert fetched.givers == (honest,)


async def test_a_damaged_copy_at_the_coordinator_is_survived(field: Field) -> None:
    (peer,) = await field.peers(whole)
    right = field.shard.read_bytes()
    bad_block(2)(field.shard)
    try:
        with pytest.raises(TransientError, match="damaged"):
            await field.fetch(field.store(), field.sources())
        fetched = await field.fetch(field.store(), field.sources(peer))
        assert fetched.givers == (peer,)
    finally:
        field.shard.write_bytes(right)


# ---- stalls and deaths


async def test_a_stalled_peer_loses_its_block_to_another(field: Field) -> None:
    fault = Fault("blob.serve", Action.STOP, where={"offset": 4 * BLOCK_BYTES})
    stalled, process = await field.faulty_peer(fault)
    (other,) = await field.peers(whole)
    sources = field.sources(stalled, other)
    sources.gate(stalled)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sources.open_when_struck(process))
        fetched = await field.fetch(field.store(), sources)
    assert set(fetched.givers) == {stalled, other}
    assert sources.bad == []


async def test_the_coordinator_takes_over_from_a_lone_peer_that_stalls(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_transfer, "PATIENCE_S", 0.5)
    fault = Fault("blob.serve", Action.STOP, where={"offset": 0})
    stalled, _ = await field.faulty_peer(fault)
    fetched = await field.fetch(field.store(), field.sources(stalled))
    assert fetched.givers == (COORDINATOR,)


async def test_what_a_peer_gave_before_it_was_killed_is_not_fetched_again(field: Field) -> None:
    fault = Fault("blob.serve", Action.KILL, where={"offset": 4 * BLOCK_BYTES})
    dying, process = await field.faulty_peer(fault)
    (other,) = await field.peers(whole)
    sources = field.sources(dying, other)
    sources.gate(dying)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sources.open_when_struck(process))
        fetched = await field.fetch(field.store(), sources)
    assert process.wait() == -signal.SIGKILL
    assert set(fetched.givers) == {dying, other}
    # Less than two of the four blocks that it sent lay in buffers when it was killed.
    assert sources.received_bytes[other] <= field.wanted.total_bytes - 2 * BLOCK_BYTES
    assert sources.bad == []


@pytest.mark.parametrize("rotten", [0, 1], ids=["as it was left", "changed on the disk"])
async def test_a_download_survives_kill_9(field: Field, rotten: int) -> None:
    (peer,) = await field.peers(whole)
    store = field.store()
    fault = Fault("blob.kept", Action.KILL, where={"block": 4})
    name, size = field.wanted.sha256.hex(), str(field.wanted.total_bytes)
    process = field.start(
        *("fetch", store.folder.parent, fault),
        *("--sha256", name, "--bytes", size, "--source", peer),
    )
    try:
        assert await asyncio.to_thread(process.wait, 90) == -signal.SIGKILL
    finally:
        end(process)
    if rotten:
        bad_block(2)(store.partial(field.wanted.sha256))
    sources = field.sources(peer)
    await field.fetch(store, sources)
    kept_bytes = (5 - rotten) * BLOCK_BYTES
    received_bytes = sum(sources.received_bytes.values())
    assert field.wanted.total_bytes - kept_bytes <= received_bytes
    # A stream that meets what is here ends: at most one piece of it came already.
    assert received_bytes <= field.wanted.total_bytes - kept_bytes + rotten * BLOCK_BYTES
    assert sources.bad == []
