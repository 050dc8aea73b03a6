"""Answers to challenges: exactly what was asked for, proven, once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from coordinator.audit.challenges import retain_from_round
from coordinator.schema import EvidenceRow
from protocol.errors import BadDigest, BadRecord, Conflict, NotFound, ProtocolError, TooLate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

Start = Callable[..., Awaitable[Any]]
PROJECT = service_pb2.CHALLENGE_KIND_PROJECT


async def asked(rig: Any, kind: int = PROJECT) -> service_pb2.Challenge:
    """The first challenge of a kind that the anchor is asked."""
    await rig.engine.audit()
    reply = await rig.anchor.beat()
    return next(challenge for challenge in reply.challenges if challenge.kind == kind)


async def opening(rig: Any, case_rig: ModuleType) -> service_pb2.Challenge:
    """The anchor is asked to open chunks of a worker."""
    await rig.engine.audit()
    for challenge in (await rig.anchor.beat()).challenges:
        if challenge.kind == PROJECT:
            await rig.anchor.show(*case_rig.honest(rig.anchor, challenge))
    while rig.auditors[0].work():
        pass
    await rig.engine.audit()
    return await asked(rig, service_pb2.CHALLENGE_KIND_OPEN)


async def give(rig: Any, who: Any, record: wire.ChallengeAnswer, chunks: Any = ()) -> Any:
    return await rig.engine.answer_challenge(who.sign(record), list(chunks))


async def test_a_challenge_comes_with_each_heartbeat_until_it_is_answered(
    start_audits: Start, case_rig: ModuleType
) -> None:
    rig = await start_audits()
    await rig.play_round(*rig.workers)
    assert not (await rig.anchor.beat()).challenges
    challenge = await asked(rig)
    assert challenge == await asked(rig)
    assert len(challenge.challenge_id) == 16
    assert len(challenge.projection_seed) == 32
    assert (challenge.first_chunk, challenge.end_chunk) == (0, rig.layout.count)
    record, _ = case_rig.honest(rig.anchor, challenge)
    assert (await give(rig, rig.anchor, record)).valid
    assert challenge not in (await rig.anchor.beat()).challenges
    # The same answer again gets the same reply, another one is evidence.
    assert (await give(rig, rig.anchor, record)).valid
    values = np.frombuffer(record.projections, "<f4") * 2
    other = rig.anchor.answer(challenge, projections=values.astype("<f4").tobytes())
    with pytest.raises(Conflict):
        await give(rig, rig.anchor, other)
    with rig.database.session() as session:
        (row,) = session.query(EvidenceRow).all()
        assert (row.kind, row.signer) == ("challenge", rig.anchor.name)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"projections": b""}, BadRecord),
        ({"projections": bytes(255)}, BadRecord),
        ({"projections": b"\xff" * 256}, BadRecord),  # not finite
        ({"projections": bytes(256), "chunk_sha256": [bytes(32)]}, BadRecord),
        ({"unavailable": "a sentence, with spaces"}, BadRecord),
        ({"unavailable": "x" * 65}, BadRecord),
        ({"unavailable": "gone", "projections": bytes(256)}, BadRecord),
        ({"challenge_id": bytes(15)}, BadRecord),
        ({"challenge_id": bytes(16), "projections": bytes(256)}, NotFound),
    ],
)
async def test_projections_are_of_exactly_what_was_asked(
    start_audits: Start, fields: dict[str, Any], error: type[ProtocolError]
) -> None:
    rig = await start_audits(auditors=0)
    await rig.play_round(*rig.workers)
    challenge = await asked(rig)
    record = rig.anchor.answer(challenge)
    for name, value in fields.items():
        if name == "projections":
            value *= rig.layout.count
        if isinstance(value, list):
            getattr(record, name).extend(value)
        else:
            setattr(record, name, value)
    with pytest.raises(error):
        await give(rig, rig.anchor, record)
    # Nothing of it was kept: the right answer is still welcome.
    assert challenge == await asked(rig)


async def test_only_who_was_asked_may_answer(start_audits: Start, case_rig: ModuleType) -> None:
    rig = await start_audits(auditors=0)
    await rig.play_round(*rig.workers)
    challenge = await asked(rig)
    record, _ = case_rig.honest(rig.workers[0], challenge)
    with pytest.raises(BadRecord, match="somebody else"):
        await give(rig, rig.workers[0], record)


async def test_opened_chunks_are_exactly_those_and_proven(
    start_audits: Start, case_rig: ModuleType
) -> None:
    rig = await start_audits()
    await rig.play_round(*rig.workers)
    challenge = await opening(rig, case_rig)
    record, chunks = case_rig.honest(rig.anchor, challenge)
    assert len(chunks) >= 2
    for shown, error in (
        (chunks[:1], BadRecord),
        ([*chunks, chunks[0]], BadRecord),
        ([chunks[0]] * len(chunks), BadRecord),
        (chunks[::-1], BadDigest),
        ([_but(chunks[0], encoded=chunks[0].encoded + b"\0"), *chunks[1:]], BadRecord),
        ([_but(chunks[0], encoded=bytes(len(chunks[0].encoded))), *chunks[1:]], BadDigest),
        ([_but(chunks[0], member=rig.anchor.name), *chunks[1:]], BadRecord),
        ([_but(chunks[0], proof=[bytes(32)] * 40), *chunks[1:]], BadRecord),
    ):
        with pytest.raises(error):
            await give(rig, rig.anchor, record, shown)
    assert not rig.openings()
    assert (await give(rig, rig.anchor, record, chunks)).valid
    assert {row["chunk"] for row in rig.openings()} == set(challenge.chunks)


def _but(chunk: wire.OpenedChunk, **fields: Any) -> wire.OpenedChunk:
    named = {"chunk": chunk.chunk, "encoded": chunk.encoded, "proof": chunk.proof}
    return wire.OpenedChunk(**{**named, "member": chunk.member, **fields})


async def test_a_bad_proof_is_refused_and_the_worker_asked(
    start_audits: Start, case_rig: ModuleType
) -> None:
    rig = await start_audits()
    await rig.play_round(*rig.workers)
    challenge = await opening(rig, case_rig)
    record, chunks = case_rig.honest(rig.anchor, challenge)
    chunks[0].proof[0] = bytes(32)
    assert not (await give(rig, rig.anchor, record, chunks)).valid
    assert not rig.openings()
    await rig.engine.audit()
    (worker,) = (rig.members[name] for name in challenge.members)
    kinds = [challenge.kind for challenge in (await worker.beat()).challenges]
    assert kinds == [service_pb2.CHALLENGE_KIND_OPEN]


async def test_answers_to_what_is_over_are_dropped(
    start_audits: Start, case_rig: ModuleType
) -> None:
    rig = await start_audits()
    await rig.play_round(*rig.workers)
    challenge = await asked(rig)
    rig.anchor.silent = True
    for _ in range(4):
        await rig.wait(rig.options.audit.answer_s + 1)
    assert set(rig.verdicts().values()) == {"passed"}
    record, _ = case_rig.honest(rig.anchor, challenge)
    with pytest.raises((NotFound, TooLate)):
        await give(rig, rig.anchor, record)
    assert PROJECT not in [c.kind for c in (await rig.anchor.beat()).challenges]


async def test_bytes_are_retained_from_the_oldest_round_that_may_need_them(
    start_audits: Start,
) -> None:
    rig = await start_audits(auditors=0)
    await rig.play_round(*rig.workers)
    await rig.play_round(*rig.workers)
    with rig.database.session() as session:
        assert retain_from_round(session) == 0
    await rig.engine.audit()
    assert (await rig.anchor.beat()).retain_from_round == 0
