"""Answers to audits: from what is on disk, the same each time, never an exception."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import merkle
from protocol.envelope import Signed, open_envelope, seal
from protocol.identity import Identity
from protocol.limits import MAX_GRPC_MESSAGE_BYTES
from protocol.manifest import RunManifest
from protocol.projection import project_update
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.evidence import MALFORMED, MOST_SHOWN_BYTES, NOT_KEPT, TOO_LARGE, Evidence
from worker.group import Group
from worker.heartbeat import HEARTBEAT_S, interval_s
from worker.kept_inputs import write_inputs
from worker.reducer import Inbox, Reducer
from worker.retained import Retained
from worker.updates import UpdateName

ME, ROUND_KEY, ANA, BEN = (Identity.from_seed(bytes([i]) * 32) for i in range(4))
UNIT, SEED = b"u" * 16, b"s" * 32
ELEMENTS, COUNT = 5 * 4096 + 100, 6
FIRST, END = 1, 4  # of what we reduce


@pytest.fixture
def manifest(make_manifest: Callable[..., RunManifest]) -> RunManifest:
    return make_manifest(update={"codec": "int8", "chunk_elements": 4096})


def update_of(worker: Identity, manifest: RunManifest) -> EncodedUpdate:
    rng = np.random.default_rng(worker.public.raw[0])
    return encode_update(
        rng.standard_normal(ELEMENTS).astype(np.float32),
        ChunkLayout(ELEMENTS, manifest.update.chunk_elements),
        manifest.update.codec,
        run_id=manifest.run_id,
        round_=2,
        worker=worker.peer_id,
    )


class Desk:
    """A home folder, a group of three that we are a reducer of, and our own update."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self.manifest = manifest
        for name in ("updates", "inputs", "answers"):
            (folder / name).mkdir()
        self.folder = folder
        self.updates = {worker.peer_id: update_of(worker, manifest) for worker in (ME, ANA, BEN)}
        group = Group.of(self._roster())
        self.group_id = group.group_id
        reducer = Reducer(group, ME)
        for name, update in self.updates.items():
            chunks = {i: update.chunks[i] for i in range(FIRST, END)}
            inbox = Inbox(list(update.leaf_hashes), chunks, statement=wire.Envelope())
            reducer.inboxes[name] = inbox
        self.reducer, self.inclusion = reducer, self._inclusion()
        write_inputs(folder / "inputs" / f"2-{group.group_id.hex()}", reducer, self.inclusion)
        own = self.updates[ME.peer_id]
        self.own = folder / "updates" / str(UpdateName(2, UNIT, own.root))
        self.own.write_bytes(b"".join(own.chunks))

    def _roster(self) -> Signed[wire.Roster]:
        record = wire.Roster(
            run_id=self.manifest.run_id,
            round=2,
            members=[
                wire.RosterMember(worker=name, weight=1, commitment_root=update.root)
                for name, update in self.updates.items()
            ],
            reducers=[
                wire.ReducerRange(reducer=ANA.peer_id, first_chunk=0, end_chunk=FIRST),
                wire.ReducerRange(reducer=ME.peer_id, first_chunk=FIRST, end_chunk=END),
                wire.ReducerRange(reducer=BEN.peer_id, first_chunk=END, end_chunk=COUNT),
            ],
            codec="int8",
            combine="mean",
            vector_elements=ELEMENTS,
            chunk_elements=4096,
            chunk_count=COUNT,
            gather_deadline_ms=1,
            broadcast_deadline_ms=2,
        )
        return open_envelope(seal(record, ROUND_KEY), wire.Roster)

    def _inclusion(self) -> Signed[wire.InclusionSet]:
        record = wire.InclusionSet(
            run_id=self.manifest.run_id,
            round=2,
            group_id=self.group_id,
            members=list(self.updates),
        )
        return open_envelope(seal(record, ROUND_KEY), wire.InclusionSet)

    def evidence(self) -> Evidence:
        """As after a restart."""
        retained = Retained(self.folder / "updates", self.folder / "inputs")
        return Evidence(ME, self.manifest, retained, self.folder / "answers", lambda: ELEMENTS)

    def ask(self, kind: api.ChallengeKind, number: int = 0, **fields: object) -> api.Challenge:
        challenge = {"challenge_id": bytes([number]) * 16, "kind": kind, "group_id": self.group_id}
        return api.Challenge(**cast(dict[str, bytes], challenge | fields))

    def answer(self, challenge: api.Challenge) -> api.AnswerChallengeRequest:
        answer = self.evidence().answer(challenge)
        assert answer is not None
        return answer


@pytest.fixture
def desk(tmp_path: Path, manifest: RunManifest) -> Desk:
    return Desk(tmp_path, manifest)


def record(answer: api.AnswerChallengeRequest) -> wire.ChallengeAnswer:
    return open_envelope(answer.answer, wire.ChallengeAnswer, signer=ME.peer_id).record


def check_shown(
    desk: Desk, answer: api.AnswerChallengeRequest, expected: Iterable[tuple[str, int]]
) -> None:
    shown = list(answer.chunks)
    assert [(chunk.member, chunk.chunk) for chunk in shown] == list(expected)
    for chunk, digest in zip(shown, record(answer).chunk_sha256, strict=True):
        assert hashlib.sha256(chunk.encoded).digest() == digest
        leaf, root = merkle.leaf_hash(chunk.encoded), desk.updates[chunk.member].root
        merkle.verify_inclusion(leaf, chunk.chunk, COUNT, list(chunk.proof), root)


PROJECT, OPEN, INPUTS = (
    api.CHALLENGE_KIND_PROJECT,
    api.CHALLENGE_KIND_OPEN,
    api.CHALLENGE_KIND_INPUTS,
)


@pytest.mark.parametrize(
    ("member", "first", "end"), [(ANA, FIRST, END), (ME, FIRST, END), (ME, 0, COUNT), (BEN, 2, 3)]
)
def test_chunks_are_projected(desk: Desk, member: Identity, first: int, end: int) -> None:
    challenge = desk.ask(
        PROJECT,
        members=[member.peer_id],
        assignment_id=UNIT if member is ME else b"a" * 16,
        first_chunk=first,
        end_chunk=end,
        projection_seed=SEED,
    )
    answer = desk.answer(challenge)
    layout = ChunkLayout(ELEMENTS, 4096)
    chunks = desk.updates[member.peer_id].chunks[first:end]
    assert record(answer).projections == project_update(chunks, "int8", layout, SEED, first)
    assert record(answer).challenge_id == challenge.challenge_id
    assert (record(answer).run_id, record(answer).worker) == (desk.manifest.run_id, ME.peer_id)
    assert not answer.chunks
    assert not record(answer).unavailable


def test_chunks_are_opened(desk: Desk) -> None:
    for number, (member, unit, chunks) in enumerate(
        [(ANA, b"a" * 16, [3, 1]), (ME, UNIT, [0, 5, 2]), (ME, b"gone" * 4, [2])]
    ):
        challenge = desk.ask(
            OPEN, number, members=[member.peer_id], assignment_id=unit, chunks=chunks
        )
        answer = desk.answer(challenge)
        check_shown(desk, answer, [(member.peer_id, chunk) for chunk in chunks])


def test_a_unit_that_was_never_reduced_is_shown_too(desk: Desk) -> None:
    challenge = desk.ask(OPEN, group_id=b"", assignment_id=UNIT, chunks=[4])
    check_shown(desk, desk.answer(challenge), [(ME.peer_id, 4)])


def test_inputs_of_all_members_are_shown(desk: Desk) -> None:
    members = list(desk.updates)
    answer = desk.answer(desk.ask(INPUTS, members=members, chunks=[2, 1]))
    check_shown(desk, answer, [(member, chunk) for member in members for chunk in (2, 1)])
    assert answer.ByteSize() < MAX_GRPC_MESSAGE_BYTES


def test_the_same_answer_is_sent_again_and_never_another(desk: Desk) -> None:
    challenge = desk.ask(OPEN, 1, assignment_id=UNIT, chunks=[0])
    projecting = desk.ask(
        PROJECT, 2, assignment_id=UNIT, first_chunk=0, end_chunk=6, projection_seed=SEED
    )
    first, projected = desk.answer(challenge), desk.answer(projecting)
    assert desk.answer(challenge) == first
    desk.own.unlink()
    # Chunks that are gone cannot be sent, and "unavailable" would contradict the first answer.
    assert desk.evidence().answer(challenge) is None
    assert desk.answer(projecting) == projected
    # What was not here stays so, even if it turns up.
    lost = desk.ask(OPEN, 3, assignment_id=UNIT, chunks=[0])
    missing = desk.answer(lost)
    assert record(missing).unavailable == NOT_KEPT
    desk.own.write_bytes(b"".join(desk.updates[ME.peer_id].chunks))
    assert desk.answer(lost) == missing


def test_an_answer_is_no_worse_without_a_note_of_it(desk: Desk) -> None:
    challenge = desk.ask(OPEN, assignment_id=UNIT, chunks=[0])
    first = desk.answer(challenge)
    (noted,) = (desk.folder / "answers").iterdir()
    noted.write_bytes(b"damaged")
    assert desk.answer(challenge) == first
    noted.unlink()
    (desk.folder / "answers").rmdir()
    assert desk.answer(challenge) == first


def test_what_is_still_being_written_is_answered_later(desk: Desk) -> None:
    evidence = desk.evidence()
    evidence.retained.keep(desk.reducer, desk.inclusion)
    challenge = desk.ask(OPEN, members=[ANA.peer_id], chunks=[1])
    assert evidence.answer(challenge) is None


def malformed(desk: Desk) -> dict[str, tuple[api.Challenge, str]]:
    me, stranger = [ME.peer_id], [Identity.from_seed(b"x" * 32).peer_id]
    seen = {"projection_seed": SEED, "end_chunk": COUNT, "assignment_id": UNIT}
    return {
        "no kind": (desk.ask(cast(api.ChallengeKind, 0)), MALFORMED),
        "kind of a later version": (desk.ask(cast(api.ChallengeKind, 99)), MALFORMED),
        "nothing to open": (desk.ask(OPEN, members=me), MALFORMED),
        "of nobody": (desk.ask(INPUTS, chunks=[1]), MALFORMED),
        "of two": (desk.ask(OPEN, members=me * 2, chunks=[1]), MALFORMED),
        "chunk out of range": (desk.ask(OPEN, assignment_id=UNIT, chunks=[6]), MALFORMED),
        "empty range": (desk.ask(PROJECT, **seen | {"end_chunk": 0}), MALFORMED),
        "range beyond the end": (desk.ask(PROJECT, **seen | {"end_chunk": 7}), MALFORMED),
        "endless range": (desk.ask(PROJECT, **seen | {"end_chunk": 2**32 - 1}), TOO_LARGE),
        "short seed": (desk.ask(PROJECT, **seen | {"projection_seed": b"s"}), MALFORMED),
        "another's range": (desk.ask(OPEN, members=[ANA.peer_id], chunks=[0]), NOT_KEPT),
        "a stranger's": (desk.ask(OPEN, members=stranger, chunks=[1]), NOT_KEPT),
        "unknown group": (desk.ask(OPEN, group_id=b"g" * 20, members=me, chunks=[1]), NOT_KEPT),
        "unknown unit": (desk.ask(OPEN, group_id=b"", assignment_id=SEED, chunks=[1]), NOT_KEPT),
        "too much": (desk.ask(OPEN, assignment_id=UNIT, chunks=[0] * 1000), TOO_LARGE),
    }


def test_what_makes_no_sense_has_an_answer_too(desk: Desk) -> None:
    for number, (name, (challenge, word)) in enumerate(malformed(desk).items()):
        challenge.challenge_id = bytes([number]) * 16
        answer = desk.answer(challenge)
        assert (name, record(answer).unavailable) == (name, word)
        assert not answer.chunks
        assert not record(answer).projections
    assert MOST_SHOWN_BYTES < 1000 * 4096


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(data=st.data())
def test_no_challenge_raises(desk: Desk, data: st.DataObject) -> None:
    number = st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1))
    challenge = api.Challenge(
        challenge_id=data.draw(st.binary(min_size=15, max_size=17)),
        kind=cast(api.ChallengeKind, data.draw(st.integers(-1, 4))),
        group_id=data.draw(st.sampled_from([desk.group_id, b"", b"*"]) | st.binary(max_size=24)),
        assignment_id=data.draw(st.sampled_from([UNIT, b""]) | st.binary(max_size=24)),
        members=data.draw(
            st.lists(st.sampled_from([ME.peer_id, ANA.peer_id]) | st.text(), max_size=3)
        ),
        first_chunk=data.draw(number),
        end_chunk=data.draw(number),
        chunks=data.draw(st.lists(number, max_size=4)),
        projection_seed=data.draw(st.sampled_from([SEED, b""]) | st.binary(max_size=40)),
    )
    for noted in (desk.folder / "answers").iterdir():  # to another challenge of this id
        noted.unlink()
    answer = desk.evidence().answer(challenge)
    assert (answer is None) == (len(challenge.challenge_id) != 16)
    if answer is not None:
        assert desk.evidence().answer(challenge) == answer


def test_the_coordinator_sets_the_pace_within_bounds() -> None:
    paces = [interval_s(milliseconds) for milliseconds in (0, 1, 300, 7000, 2**31)]
    assert paces == [HEARTBEAT_S, 0.1, 0.3, 7, 60]


def test_old_answers_are_forgotten(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.evidence._MOST_ANSWERS", 3)
    for number in range(5):
        desk.answer(desk.ask(OPEN, number, chunks=[99], assignment_id=UNIT))
    assert len(list((desk.folder / "answers").iterdir())) == 3
