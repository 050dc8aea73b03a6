"""Inputs on disk: whole or not there, for as long as they are needed, within a bound."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from protocol import merkle
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import NotFound, TransientError
from protocol.identity import Identity
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from worker import frames
from worker.group import Group
from worker.reducer import Reducer
from worker.retained import Retained
from worker.updates import UpdateName

RUN = b"r" * 32
LAYOUT = ChunkLayout(2000, 256)  # 8 chunks, the last one short
ROUND_KEY, REDUCER, OTHER, *SENDERS = (Identity.from_seed(bytes([i]) * 32) for i in range(6))
FIRST, END = 2, 8  # of REDUCER; the rest is OTHER's
GENEROUS = 1 << 30


def update_of(sender: Identity) -> EncodedUpdate:
    rng = np.random.default_rng(sender.public.raw[0])
    values = rng.standard_normal(LAYOUT.elements).astype(np.float32)
    return encode_update(values, LAYOUT, "int8", run_id=RUN, round_=1, worker=sender.peer_id)


UPDATES = {sender.peer_id: update_of(sender) for sender in SENDERS}
NAMES = list(UPDATES)


def roster(round_: int, attempt: int = 1) -> Signed[wire.Roster]:
    record = wire.Roster(
        run_id=RUN,
        round=round_,
        attempt=attempt,
        members=[
            wire.RosterMember(worker=name, weight=10, commitment_root=update.root)
            for name, update in UPDATES.items()
        ],
        reducers=[
            wire.ReducerRange(reducer=OTHER.peer_id, first_chunk=0, end_chunk=FIRST),
            wire.ReducerRange(reducer=REDUCER.peer_id, first_chunk=FIRST, end_chunk=END),
        ],
        codec="int8",
        combine="mean",
        vector_elements=LAYOUT.elements,
        chunk_elements=LAYOUT.chunk_elements,
        chunk_count=LAYOUT.count,
        gather_deadline_ms=1,
        broadcast_deadline_ms=2,
    )
    return open_envelope(seal(record, ROUND_KEY), wire.Roster)


def inclusion(group: Group, names: list[str]) -> Signed[wire.InclusionSet]:
    record = wire.InclusionSet(
        run_id=RUN,
        round=group.record.round,
        attempt=group.record.attempt,
        group_id=group.group_id,
        members=names,
    )
    return open_envelope(seal(record, ROUND_KEY), wire.InclusionSet)


async def gathered(
    round_: int, names: list[str], attempt: int = 1
) -> tuple[Reducer, Signed[wire.InclusionSet]]:
    """A reducer to which these members have sent everything; all three are included."""
    group = Group.of(roster(round_, attempt))
    reducer = Reducer(group, REDUCER)
    for sender in SENDERS:
        if sender.peer_id in names:
            await send(reducer, sender)
    return reducer, inclusion(group, NAMES)


async def send(reducer: Reducer, sender: Identity) -> None:
    group, update = reducer.group, UPDATES[sender.peer_id]
    statement = wire.GatherStatement(
        group_id=group.group_id,
        attempt=group.record.attempt,
        sender=sender.peer_id,
        reducer=REDUCER.peer_id,
        first_chunk=FIRST,
        end_chunk=END,
    )
    digest = frames_digest(update)
    statement.frames_sha256 = digest
    messages = [
        *frames.leaves(group.group_id, update.leaf_hashes),
        *(
            frames.chunk(group.group_id, i, LAYOUT.chunk_size(i), update.chunks[i])
            for i in range(FIRST, END)
        ),
        frames.statement(group.group_id, seal(statement, sender)),
    ]

    async def stream() -> AsyncIterator[frames.Frame]:
        for message in messages:
            yield message

    incoming = stream()
    first = await anext(incoming)
    replies = [reply async for reply in reducer.receive(sender.peer_id, first, incoming)]
    assert replies[-1].tensor_part.dtype == "done"


def frames_digest(update: EncodedUpdate) -> bytes:
    return hashlib.sha256(b"".join(update.chunks[FIRST:END])).digest()


def opened(folder: Path, most_bytes: int = GENEROUS) -> Retained:
    for name in ("updates", "inputs"):
        (folder / name).mkdir(exist_ok=True)
    return Retained(folder / "updates", folder / "inputs", most_bytes)


async def test_inputs_are_read_back_after_a_restart_and_prove_themselves(tmp_path: Path) -> None:
    reducer, included = await gathered(1, NAMES)
    opened(tmp_path).write(reducer, included)
    kept = opened(tmp_path).group(reducer.group.group_id, REDUCER.peer_id)
    assert (kept.first, kept.end) == (FIRST, END)
    for name in NAMES:
        file = kept.of(name)
        shown = file.show([7, 2])
        assert [chunk.encoded for chunk in shown] == [UPDATES[name].chunks[i] for i in (7, 2)]
        for chunk in shown:
            leaf = merkle.leaf_hash(chunk.encoded)
            merkle.verify_inclusion(leaf, chunk.chunk, 8, chunk.proof, UPDATES[name].root)
        with pytest.raises(NotFound):
            file.read(1)  # another reducer's
    with pytest.raises(NotFound):
        kept.of(OTHER.peer_id)
    written = [path for path in (tmp_path / "inputs").rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"roster", "inclusion", "0000", "0001", "0002"}


async def test_a_member_that_never_sent_everything_is_not_kept(tmp_path: Path) -> None:
    reducer, included = await gathered(1, NAMES[:2])
    retained = opened(tmp_path)
    retained.write(reducer, included)
    kept = retained.group(reducer.group.group_id, REDUCER.peer_id)
    kept.of(NAMES[1])
    with pytest.raises(NotFound):
        kept.of(NAMES[2])


async def test_a_later_attempt_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    retained = opened(tmp_path)
    groups = []
    for attempt in (1, 2):
        reducer, included = await gathered(4, NAMES, attempt)
        retained.write(reducer, included)
        retained.write(reducer, included)  # of a worker that was restarted in between
        groups.append(reducer.group.group_id)
    with pytest.raises(NotFound):
        retained.group(groups[0], REDUCER.peer_id)
    retained.group(groups[1], REDUCER.peer_id)


async def test_what_no_audit_needs_goes(tmp_path: Path) -> None:
    retained = opened(tmp_path)
    groups = []
    for round_ in (1, 2, 3):
        reducer, included = await gathered(round_, NAMES)
        retained.write(reducer, included)
        name = UpdateName(round_, bytes([round_]) * 16, bytes(32))
        (retained.updates / str(name)).write_bytes(b"chunks")
        groups.append(reducer.group.group_id)
    (retained.updates / "unrelated").touch()

    def held() -> list[int]:
        return [
            round_
            for round_, group_id in enumerate(groups, 1)
            if retained.update(bytes([round_]) * 16) is not None
            and (retained.group(group_id, REDUCER.peer_id))
        ]

    retained.tidy(0, 3)
    assert held() == [1, 2, 3]
    retained.tidy(2, 3)
    assert len(list(retained.inputs.iterdir())) == 2
    assert retained.update(bytes([1]) * 16) is None
    # However far ahead the coordinator is, the round under way is not over.
    retained.tidy(99, 3)
    assert [path.name[:10] for path in retained.inputs.iterdir()] == ["0000000003"]
    assert retained.update(bytes([3]) * 16) is not None
    assert (retained.updates / "unrelated").exists()


async def test_the_oldest_goes_when_the_bound_is_reached(tmp_path: Path) -> None:
    reducer, included = await gathered(1, NAMES)
    opened(tmp_path).write(reducer, included)
    (folder,) = (tmp_path / "inputs").iterdir()
    size = sum(path.stat().st_size for path in folder.iterdir())
    retained = opened(tmp_path, most_bytes=2 * size + 500)
    retained.current_round = 9
    old = retained.updates / str(UpdateName(0, bytes(16), bytes(32)))
    old.write_bytes(bytes(size))
    for round_ in (2, 3):
        reducer, included = await gathered(round_, NAMES)
        retained.write(reducer, included)
    assert not old.exists()
    rounds = sorted(int(path.name[:10]) for path in retained.inputs.iterdir())
    assert rounds == [2, 3]


async def test_what_does_not_fit_is_not_kept_and_takes_nothing_with_it(tmp_path: Path) -> None:
    retained = opened(tmp_path, most_bytes=1000)
    needed = retained.updates / str(UpdateName(5, bytes(16), bytes(32)))
    needed.write_bytes(bytes(5000))
    retained.current_round = 5
    reducer, included = await gathered(5, NAMES)
    with pytest.raises(TransientError, match="disk bound"):
        retained.write(reducer, included)
    retained.tidy(0, 5)
    assert needed.exists()
    assert list(retained.inputs.iterdir()) == []


async def test_a_disk_that_fails_is_a_passing_failure(
    tmp_path: Path,
    full_disk,  # type: ignore[no-untyped-def]
) -> None:
    retained = opened(tmp_path)
    reducer, included = await gathered(1, NAMES)
    with full_disk(1000), pytest.raises(TransientError, match="cannot write"):
        retained.write(reducer, included)
    assert list(retained.inputs.iterdir()) == []
    retained.write(reducer, included)
    assert retained.group(reducer.group.group_id, REDUCER.peer_id).of(NAMES[0]).read(FIRST)


@pytest.mark.parametrize("file", ["roster", "0000"])
async def test_what_was_damaged_on_disk_is_not_here(tmp_path: Path, file: str) -> None:
    retained = opened(tmp_path)
    reducer, included = await gathered(1, NAMES)
    retained.write(reducer, included)
    (path,) = retained.inputs.glob(f"*/{file}")
    data, whole = path.read_bytes(), range(FIRST, END)
    for changed in (data[: len(data) // 3], data[:40] + bytes([data[40] ^ 1]) + data[41:], b""):
        path.write_bytes(changed)
        with pytest.raises(NotFound):
            retained.group(reducer.group.group_id, REDUCER.peer_id).of(NAMES[0]).show(whole)
    path.write_bytes(data)
    kept = retained.group(reducer.group.group_id, REDUCER.peer_id)
    assert len(kept.of(NAMES[0]).show(whole)) == len(whole)


async def test_half_made_folders_of_a_killed_process_go_at_the_next_start(tmp_path: Path) -> None:
    part = tmp_path / "inputs" / "0000000001-00.part"
    part.mkdir(parents=True)
    (part / "roster").touch()
    assert list(opened(tmp_path).inputs.iterdir()) == []


async def test_no_room_is_made_where_the_disk_is_nearly_full(tmp_path: Path) -> None:
    retained = opened(tmp_path)
    (retained.updates / str(UpdateName(0, bytes(16), bytes(32)))).write_bytes(bytes(1000))
    assert 1000 < retained.limit_bytes() <= GENEROUS
    assert opened(tmp_path, most_bytes=10).limit_bytes() == 10
    free = shutil.disk_usage(tmp_path).free
    assert opened(tmp_path, most_bytes=1 << 60).limit_bytes() == pytest.approx(free / 10, rel=0.01)


async def test_writing_is_a_task_of_its_own_and_bounded(tmp_path: Path) -> None:
    retained = opened(tmp_path)
    made = [await gathered(round_, NAMES[:1]) for round_ in range(1, 6)]
    for reducer, included in made:
        retained.keep(reducer, included)
    waiting = [retained.is_writing(reducer.group.group_id) for reducer, _ in made]
    assert waiting == [True, True, True, False, False]
    await retained.write_waiting()
    assert len(list(retained.inputs.iterdir())) == 3
