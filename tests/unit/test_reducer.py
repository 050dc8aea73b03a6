"""The reducer, fed frame by frame: what it keeps, what it refuses, what it reports."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import numpy as np
import pytest

from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadRecord, PeerFault, TransientError
from protocol.identity import Identity
from protocol.update import ChunkLayout, EncodedUpdate, decode_chunk, encode_update
from protocol.wire import records_pb2 as wire
from worker import frames
from worker.group import Group
from worker.reducer import MOST_FAULTS, Reducer

RUN = b"r" * 32
LAYOUT = ChunkLayout(2000, 256)  # 8 chunks
ROUND_KEY, REDUCER, OTHER, *SENDERS = (Identity.from_seed(bytes([i]) * 32) for i in range(6))
FIRST, END = 2, 6  # of REDUCER; the rest is OTHER's


def updates() -> dict[str, EncodedUpdate]:
    rng = np.random.default_rng(1)
    return {
        sender.peer_id: encode_update(
            rng.standard_normal(LAYOUT.elements).astype(np.float32),
            LAYOUT,
            "int8",
            run_id=RUN,
            round_=1,
            worker=sender.peer_id,
        )
        for sender in SENDERS
    }


UPDATES = updates()


def roster_record() -> wire.Roster:
    return wire.Roster(
        run_id=RUN,
        round=1,
        attempt=1,
        members=[
            wire.RosterMember(worker=name, weight=10, commitment_root=update.root)
            for name, update in UPDATES.items()
        ],
        reducers=[
            wire.ReducerRange(reducer=OTHER.peer_id, first_chunk=0, end_chunk=FIRST),
            wire.ReducerRange(reducer=REDUCER.peer_id, first_chunk=FIRST, end_chunk=END),
            wire.ReducerRange(reducer=SENDERS[0].peer_id, first_chunk=END, end_chunk=8),
        ],
        codec="int8",
        combine="mean",
        vector_elements=LAYOUT.elements,
        chunk_elements=LAYOUT.chunk_elements,
        chunk_count=LAYOUT.count,
        gather_deadline_ms=1,
        broadcast_deadline_ms=2,
    )


def signed(record: wire.Roster) -> Signed[wire.Roster]:
    return open_envelope(seal(record, ROUND_KEY), wire.Roster)


GROUP = Group.of(signed(roster_record()))
GID = GROUP.group_id


def statement(sender: Identity, update: EncodedUpdate, **changes: object) -> frames.Frame:
    fields = {
        "group_id": GID,
        "attempt": 1,
        "sender": sender.peer_id,
        "reducer": REDUCER.peer_id,
        "first_chunk": FIRST,
        "end_chunk": END,
        "frames_sha256": hashlib.sha256(b"".join(update.chunks[FIRST:END])).digest(),
    }
    return frames.statement(GID, seal(wire.GatherStatement(**(fields | changes)), sender))


def script(sender: Identity, start: int = FIRST, end: int = END) -> list[frames.Frame]:
    """The frames of an honest sender, whole or in part."""
    update = UPDATES[sender.peer_id]
    chunks = [
        frames.chunk(GID, i, LAYOUT.chunk_size(i), update.chunks[i]) for i in range(start, end)
    ]
    closing = [statement(sender, update)] if end == END else []
    return [*frames.leaves(GID, update.leaf_hashes), *chunks, *closing]


async def feed(
    reducer: Reducer, sender: Identity, messages: Iterable[frames.Frame]
) -> list[frames.Frame]:
    async def stream() -> AsyncIterator[frames.Frame]:
        for message in messages:
            yield message

    incoming = stream()
    first = await anext(incoming)
    return [reply async for reply in reducer.receive(sender.peer_id, first, incoming)]


def kinds(replies: list[frames.Frame]) -> list[str]:
    return [reply.tensor_part.dtype for reply in replies]


@pytest.fixture
def reducer() -> Reducer:
    return Reducer(GROUP, REDUCER)


async def test_an_honest_sender_is_complete(reducer: Reducer) -> None:
    ready, done = await feed(reducer, SENDERS[0], script(SENDERS[0]))
    assert frames.parse_ready(ready, GID, FIRST, END) == FIRST
    frames.parse_done(done, GID)
    inbox = reducer.inboxes[SENDERS[0].peer_id]
    assert [inbox.chunks[i] for i in range(FIRST, END)] == list(
        UPDATES[SENDERS[0].peer_id].chunks[FIRST:END]
    )


async def test_a_broken_stream_is_resumed_where_it_broke(reducer: Reducer) -> None:
    assert kinds(await feed(reducer, SENDERS[0], script(SENDERS[0], end=4))) == ["ready", "refused"]
    assert reducer.inboxes[SENDERS[0].peer_id].reason == "incomplete"
    ready, done = await feed(reducer, SENDERS[0], script(SENDERS[0], start=4))
    assert frames.parse_ready(ready, GID, FIRST, END) == 4
    frames.parse_done(done, GID)


async def test_a_complete_sender_may_ask_again_for_its_acknowledgement(reducer: Reducer) -> None:
    await feed(reducer, SENDERS[0], script(SENDERS[0]))
    assert kinds(await feed(reducer, SENDERS[0], script(SENDERS[0], start=END))) == [
        "ready",
        "done",
    ]


async def test_a_newer_stream_takes_over(reducer: Reducer) -> None:
    held = asyncio.Event()
    messages = script(SENDERS[0])

    async def stalling() -> AsyncIterator[frames.Frame]:
        for message in messages[1:3]:
            yield message
        await held.wait()
        for message in messages[3:]:
            yield message

    older = reducer.receive(SENDERS[0].peer_id, messages[0], stalling())
    await anext(older)  # ready
    pending = asyncio.ensure_future(anext(older))
    assert kinds(await feed(reducer, SENDERS[0], script(SENDERS[0])))[-1] in {"done", "refused"}
    held.set()
    assert (await pending).tensor_part.dtype == "refused"
    assert not reducer.inboxes[SENDERS[0].peer_id].refused


def bad_scripts() -> dict[str, list[frames.Frame]]:
    sender, update = SENDERS[0], UPDATES[SENDERS[0].peer_id]
    good = script(sender)
    foreign = list(frames.leaves(GID, UPDATES[SENDERS[1].peer_id].leaf_hashes))
    falsified = frames.chunk(GID, 3, 256, bytes(len(update.chunks[3])))
    return {
        "leaves of another": [*foreign, *good[1:]],
        "too few leaves": [*frames.leaves(GID, update.leaf_hashes[:-1]), *good[1:]],
        "falsified chunk": [good[0], good[1], falsified, *good[3:]],
        "chunk left out": [good[0], *good[2:]],
        "chunk twice": [good[0], good[1], *good[1:]],
        "no statement": [*good[:-1], good[1]],
        "statement of another sender": [*good[:-1], statement(SENDERS[1], update)],
        "statement about other bytes": [*good[:-1], statement(sender, update, frames_sha256=b"x")],
        "statement to another reducer": [
            *good[:-1],
            statement(sender, update, reducer=OTHER.peer_id),
        ],
        "statement of another attempt": [*good[:-1], statement(sender, update, attempt=2)],
    }


async def feed_until_refused(
    reducer: Reducer, sender: Identity, messages: list[frames.Frame]
) -> None:
    """Send what breaks the protocol again and again, as a sender would that cannot do better."""
    for fault in range(1, MOST_FAULTS + 1):
        last = (await feed(reducer, sender, messages))[-1]
        final = fault == MOST_FAULTS
        assert last.code == (frames.PROTOCOL_VIOLATION if final else frames.CANCELLED)


@pytest.mark.parametrize("name", bad_scripts())
async def test_what_breaks_the_protocol_again_and_again_is_refused_for_good(
    reducer: Reducer, name: str
) -> None:
    await feed_until_refused(reducer, SENDERS[0], bad_scripts()[name])
    inbox = reducer.inboxes[SENDERS[0].peer_id]
    assert inbox.refused
    assert inbox.statement is None
    with pytest.raises(frames.Refused):
        frames.parse_ready((await feed(reducer, SENDERS[0], script(SENDERS[0])))[0], GID, 0, 8)
    assert kinds(await feed(reducer, SENDERS[1], script(SENDERS[1]))) == ["ready", "done"]


async def test_a_stream_that_was_garbled_once_may_be_sent_again(reducer: Reducer) -> None:
    sender = SENDERS[0]
    (_, refused) = await feed(reducer, sender, bad_scripts()["falsified chunk"])
    with pytest.raises(TransientError):
        frames.parse_done(refused, GID)
    start = FIRST + len(reducer.inboxes[sender.peer_id].chunks)
    assert start > FIRST, "what was right is kept"
    again = [
        message
        for message in script(sender)
        if message.tensor_part.dtype != frames.CHUNK or message.tensor_part.chunks >= start
    ]
    ready, done = await feed(reducer, sender, again)
    assert frames.parse_ready(ready, GID, FIRST, END) == start
    frames.parse_done(done, GID)
    inbox = reducer.inboxes[sender.peer_id]
    assert (bool(inbox.statement), inbox.refused) == (True, "")


async def test_a_commitment_to_values_that_are_not_finite_is_refused() -> None:
    chunks = list(UPDATES[SENDERS[0].peer_id].chunks)
    chunks[3] = np.float16(np.nan).tobytes() + chunks[3][2:]
    poisoned = EncodedUpdate.of(tuple(chunks))
    record = roster_record()
    record.members[0].commitment_root = poisoned.root
    group = Group.of(signed(record))
    gid = group.group_id
    messages = [
        *frames.leaves(gid, poisoned.leaf_hashes),
        *(frames.chunk(gid, i, 256, poisoned.chunks[i]) for i in range(FIRST, END)),
    ]
    reducer = Reducer(group, REDUCER)
    await feed_until_refused(reducer, SENDERS[0], messages)
    assert reducer.inboxes[SENDERS[0].peer_id].refused == "bad_record"


async def test_a_stranger_is_turned_away(reducer: Reducer) -> None:
    (reply,) = await feed(reducer, OTHER, script(SENDERS[0]))
    assert reply.code == frames.BAD_GROUP_ID
    assert not reducer.inboxes[SENDERS[0].peer_id].chunks


async def test_own_chunks_pass_the_same_checks() -> None:
    own = SENDERS[0]
    reducer = Reducer(GROUP, own)
    await reducer.receive_own(UPDATES[own.peer_id])
    assert reducer.inboxes[own.peer_id].statement is not None
    other = replace(UPDATES[own.peer_id], chunks=UPDATES[SENDERS[1].peer_id].chunks)
    with pytest.raises(PeerFault):
        await Reducer(GROUP, own).receive_own(other)


async def test_reports_grow_and_end(reducer: Reducer) -> None:
    reports = reducer.reports(lambda: 60.0)
    await feed(reducer, SENDERS[0], script(SENDERS[0]))
    first = open_envelope(await anext(reports), wire.ReducerReport, signer=REDUCER.peer_id).record
    assert [(o.complete, o.reason) for o in first.outcomes] == [
        (True, ""),
        (False, "absent"),
        (False, "absent"),
    ]
    await feed_until_refused(reducer, SENDERS[1], bad_scripts()["leaves of another"])
    await feed(reducer, SENDERS[2], script(SENDERS[2]))
    (last,) = [open_envelope(e, wire.ReducerReport).record async for e in reports]
    assert last.revision == 2
    assert [(o.complete, o.reason) for o in last.outcomes] == [
        (True, ""),
        (False, "bad_digest"),
        (True, ""),
    ]


async def test_a_last_report_comes_at_the_deadline(reducer: Reducer) -> None:
    (last,) = [
        open_envelope(e, wire.ReducerReport).record async for e in reducer.reports(lambda: -1)
    ]
    assert {o.reason for o in last.outcomes} == {"absent"}


async def test_combining_needs_every_included_member(reducer: Reducer) -> None:
    await feed(reducer, SENDERS[0], script(SENDERS[0]))
    names = [sender.peer_id for sender in SENDERS]
    inclusion = wire.InclusionSet(run_id=RUN, round=1, attempt=1, group_id=GID, members=names[:1])
    made = open_envelope(seal(inclusion, ROUND_KEY), wire.InclusionSet)
    results = [piece async for piece in reducer.combine(made)]
    chunks = [open_envelope(p.result, wire.ResultChunk).record.chunk for p in results]
    assert chunks == list(range(FIRST, END))
    (envelope,) = reducer.screener.records(1, REDUCER)  # measured on the way
    screening = open_envelope(envelope, wire.Screening, signer=REDUCER.peer_id).record
    assert (screening.group_id, screening.attempt, screening.reducer) == (GID, 1, REDUCER.peer_id)
    assert (screening.first_chunk, screening.end_chunk, screening.members) == (FIRST, END, 1)
    values = UPDATES[names[0]].chunks[FIRST]
    norm = np.linalg.norm(decode_chunk("int8", values, 256).astype(np.float64))
    assert np.frombuffer(screening.norms, "<f4")[0] == pytest.approx(norm)
    assert np.frombuffer(screening.cosines, "<f4") == pytest.approx([1] * (END - FIRST))
    assert [piece async for piece in reducer.combine(made, skip=range(8))] == []
    inclusion.members[:] = names[:2]
    with pytest.raises(TransientError):
        await anext(reducer.combine(open_envelope(seal(inclusion, ROUND_KEY), wire.InclusionSet)))
    inclusion.members[:] = [names[1], names[0]]
    with pytest.raises(BadRecord):
        await anext(reducer.combine(open_envelope(seal(inclusion, ROUND_KEY), wire.InclusionSet)))


def broken_rosters() -> dict[str, wire.Roster]:
    broken = {}

    def add(name: str) -> wire.Roster:
        broken[name] = roster_record()
        return broken[name]

    add("chunk size").chunk_elements = 255
    add("chunk count").chunk_count = 9
    add("no elements").vector_elements = 0
    add("codec").codec = "zip"
    add("rule").combine = "median"
    add("deadlines").broadcast_deadline_ms = 1
    del add("no members").members[:]
    add("member twice").members.append(roster_record().members[0])
    add("no weight").members[0].weight = 0
    add("no commitment").members[0].commitment_root = b""
    add("no name").members[0].worker = "nobody"
    add("gap").reducers[1].first_chunk += 1
    add("not to the end").reducers[2].end_chunk = 7
    add("two ranges").reducers[2].reducer = OTHER.peer_id
    add("addresses").reducers[0].multiaddrs.extend(["/ip4/127.0.0.1/tcp/1"] * 17)
    return broken


@pytest.mark.parametrize("name", broken_rosters())
def test_a_roster_that_contradicts_itself_is_refused(name: str) -> None:
    with pytest.raises(BadRecord):
        Group.of(signed(broken_rosters()[name]))


def test_each_chunk_has_its_reducer() -> None:
    names = [GROUP.reducer_of(chunk) for chunk in range(LAYOUT.count)]
    assert names == [OTHER.peer_id] * 2 + [REDUCER.peer_id] * 4 + [SENDERS[0].peer_id] * 2
