"""The worker's copy of the run's state: own outer steps, and what to do when they are wrong."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadRecord, TransientError
from protocol.model import parameter_spec
from protocol.state import StateDescriptor
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service
from worker.blob_fetch import BlobFetcher
from worker.config import Home
from worker.journal import Journal
from worker.session import Session
from worker.shards import BlobStore
from worker.sources import Sources
from worker.state_cache import StateCache, check_head


class Member:
    """State cache, blobs and journal of one worker."""

    def __init__(self, folder: Path, session: Session) -> None:
        home = Home(folder)
        home.prepare()
        self.journal = Journal(home.journal)
        self.blobs = BlobStore(home.blobs, home.scratch)
        self.sources = Sources(session)
        fetcher = BlobFetcher(self.blobs, self.sources)
        self.states = StateCache(session.greeting.manifest, fetcher, self.blobs, self.journal)

    def head(self, descriptor: StateDescriptor, served: Any) -> Signed[wire.RunHead]:
        """The head of a state held here, as the coordinator would sign it."""
        state = self.journal.state(descriptor.digest)
        assert state is not None and state.momentum_sha256 is not None
        record = wire.RunHead(
            run_id=served.link.run_id,
            round=descriptor.round,
            settled_rounds=descriptor.round,
            merged_tokens=descriptor.merged_tokens,
            state_digest=descriptor.digest,
            weights_root=descriptor.weights_root,
            momentum_root=descriptor.momentum_root,
            weights_sha256=state.weights_sha256,
            weights_bytes=self.blobs.path(state.weights_sha256).stat().st_size,
            momentum_sha256=state.momentum_sha256,
            momentum_bytes=self.blobs.path(state.momentum_sha256).stat().st_size,
        )
        return open_envelope(seal(record, served.run.keys.round), wire.RunHead)


class Holder:
    """A swarm with one holder of a state, reading another member's folder."""

    peer_id = "us"

    def __init__(self, other: Member) -> None:
        self._blobs = other.blobs

    async def weight_holders(self, _digest: bytes) -> list[str]:
        return ["holder"]

    async def blob_pieces(
        self, _peer: str, sha256: bytes, offset: int
    ) -> AsyncIterator[service.Piece]:
        data = await asyncio.to_thread(self._blobs.path(sha256).read_bytes)
        yield service.Piece(offset=offset, total_bytes=len(data), data=data[offset:])


def flip(path: Path) -> None:
    """Rot: one bit of the last value changes, size and time stay."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def member(session: Session, tmp_path: Path) -> Iterator[Member]:
    made = Member(tmp_path / "member", session)
    yield made
    made.journal.close()


@pytest.fixture
def other(session: Session, tmp_path: Path) -> Iterator[Member]:
    made = Member(tmp_path / "other", session)
    yield made
    made.journal.close()


def blobs_of(member: Member) -> int:
    return len(list(member.blobs.folder.iterdir()))


async def test_a_wrong_outer_step_is_dropped_and_the_run_s_state_fetched(
    served: Any, session: Session, member: Member, other: Member
) -> None:
    start = session.greeting.run_head
    assert start is not None
    elements = await asyncio.to_thread(member.states.elements)
    right, wrong = np.ones(elements, np.float32), np.zeros(elements, np.float32)
    truth = await other.states.advance(start, right, 64)
    head = other.head(truth, served)
    own = await member.states.advance(start, wrong, 64)
    assert own.digest != truth.digest

    # 1. The head contradicts what was computed here: that is gone.
    assert not await member.states.confirm(head)
    assert member.journal.state(own.digest) is None
    assert await other.states.confirm(head)

    # 2. The run's own state comes from whoever has it, and the next step is everybody's again.
    member.sources.swarm = Holder(other)  # type: ignore[assignment]
    following = await member.states.advance(head, right, 128)
    assert following == await other.states.advance(head, right, 128)
    assert await member.states.confirm(other.head(following, served))


async def test_old_states_are_deleted_also_fetched_ones(
    served: Any, session: Session, member: Member, other: Member
) -> None:
    head = session.greeting.run_head
    assert head is not None
    member.sources.swarm = Holder(other)  # type: ignore[assignment]
    update = np.ones(await asyncio.to_thread(other.states.elements), np.float32)
    for number in range(1, 5):
        descriptor = await other.states.advance(head, update, 64 * number)
        head = other.head(descriptor, served)
        await member.states.file(head, "weights")
        await member.states.file(head, "momentum")
    assert blobs_of(member) == blobs_of(other) == 4  # two states of two parts each


async def test_a_full_disk_or_a_head_that_contradicts_itself_leaves_the_state_alone(
    session: Session, member: Member, full_disk: Any
) -> None:
    start = session.greeting.run_head
    assert start is not None
    elements = await asyncio.to_thread(member.states.elements)
    await member.states.file(start, "weights")
    await member.states.file(start, "momentum")
    held = blobs_of(member)
    with full_disk(1000), pytest.raises(TransientError, match="free some disk"):
        await member.states.advance(start, np.ones(elements, np.float32), 64)
    assert blobs_of(member) == held
    bad = wire.RunHead()
    bad.CopyFrom(start.record)
    bad.merged_tokens += 1
    with pytest.raises(BadRecord, match="does not follow"):
        check_head(bad)


@pytest.mark.parametrize("part", ["weights", "momentum"])
async def test_a_file_that_rots_is_fetched_again_before_the_outer_step(
    served: Any, session: Session, member: Member, other: Member, part: str
) -> None:
    start = session.greeting.run_head
    assert start is not None
    update = np.ones(await asyncio.to_thread(member.states.elements), np.float32)
    head = other.head(await other.states.advance(start, update, 64), served)
    member.sources.swarm = Holder(other)  # type: ignore[assignment]
    paths = {name: await member.states.file(head, name) for name in ("weights", "momentum")}  # type: ignore[arg-type]
    flip(paths[part])
    assert await member.states.advance(head, update, 128) == await other.states.advance(
        head, update, 128
    )


@pytest.mark.parametrize("how", ["rot", "cut short", "deleted", "of another model"])
async def test_weights_that_go_to_the_trainer_are_right(
    session: Session, member: Member, how: str
) -> None:
    head = session.greeting.run_head
    assert head is not None
    path = await member.states.file(head, "weights")
    right = path.read_bytes()
    if how == "rot":
        flip(path)
    elif how == "cut short":
        os.truncate(path, 100)
    elif how == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"\0" * 8)
    path = await member.states.file(head, "weights", anew=True)
    assert path.read_bytes() == right


async def test_a_head_whose_file_has_other_values_is_refused_and_nothing_is_fetched_twice(
    served: Any, session: Session, member: Member, other: Member
) -> None:
    start = session.greeting.run_head
    assert start is not None
    update = np.ones(await asyncio.to_thread(member.states.elements), np.float32)
    descriptor = await other.states.advance(start, update, 64)
    head = other.head(descriptor, served)
    wrong = wire.RunHead()
    wrong.CopyFrom(head.record)
    wrong.weights_root = bytes(32)
    wrong.state_digest = StateDescriptor(
        descriptor.round, descriptor.merged_tokens, bytes(32), descriptor.momentum_root
    ).digest
    signed = open_envelope(seal(wrong, served.run.keys.round), wire.RunHead)
    member.sources.swarm = Holder(other)  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(BadRecord, match="not what it says"):
            await member.states.file(signed, "weights")
        member.sources.swarm = None
    assert await member.states.file(head, "weights")


async def test_a_run_that_was_restored_from_a_backup_goes_back_and_the_worker_with_it(
    served: Any, session: Session, member: Member, other: Member
) -> None:
    head = session.greeting.run_head
    assert head is not None
    update = np.ones(await asyncio.to_thread(other.states.elements), np.float32)
    lost, heads = [], [head]
    for number in range(1, 4):
        descriptor = await member.states.advance(heads[-1], update, 64 * number)
        heads.append(member.head(descriptor, served))
        lost.append(descriptor)
    again = await other.states.advance(head, update, 64)  # the backup's newest state
    assert again == lost[0]
    restored = other.head(again, served)
    member.sources.swarm = Holder(other)  # type: ignore[assignment]

    # It is older than both that are kept here, and stays while it is in use.
    weights = await member.states.file(restored, "weights")
    momentum = await member.states.file(restored, "momentum")
    assert weights.exists()
    assert momentum.exists()
    following = await member.states.advance(restored, 2 * update, 128)
    assert following.digest != lost[1].digest
    assert await member.states.confirm(member.head(following, served))
    # Nothing is left of the rounds that were lost.
    assert all(member.journal.state(state.digest) is None for state in lost[1:])
    assert blobs_of(member) <= 4


async def test_threads_that_need_the_model_at_once_load_it_once(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An anchor that starts in the middle of a round asks for it from several threads."""
    loads = []

    def counted(config: dict[str, Any]) -> Any:
        loads.append(threading.get_ident())
        return parameter_spec(config)

    monkeypatch.setattr("protocol.model.parameter_spec", counted)
    states = Member(tmp_path / "member", session).states
    ready = threading.Barrier(4)

    def elements() -> int:
        ready.wait()
        return states.elements()

    found = await asyncio.gather(*(asyncio.to_thread(elements) for _ in range(4)))
    assert len(set(found)) == 1
    assert len(loads) == 1
