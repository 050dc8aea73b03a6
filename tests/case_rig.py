"""Audits without a network: members that really train and answer, auditors that really replay.

Everything honest unless a test makes it otherwise. Above ``tests/engine_rig.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from engine_rig import Member, Rig  # the conftest has loaded it

from coordinator.audit import jobs
from coordinator.audit.replays import ReplayStore
from coordinator.audit.schema import (
    AuditJobRow,
    AuditorRow,
    AuditRow,
    BlockRow,
    ChallengeRow,
    OpeningRow,
    ReducerAuditRow,
    ToleranceRow,
)
from coordinator.context import AuditOptions, EngineOptions
from coordinator.schema import RosterRow
from protocol import merkle
from protocol.envelope import open_envelope, seal
from protocol.errors import NotFound, TooLate
from protocol.identity import Identity
from protocol.projection import project_update
from protocol.tolerance import Bounds, Entry, Measured, ToleranceTable
from protocol.training import Execution, Unit, train
from protocol.update import EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

VERIFICATION = {
    "probation_steps": 0,
    "reducer_passes": 0,
    "opened_chunks": 2,
    "p_second_auditor": 0,
}
"""Everybody is new, so everything is audited; and whoever can be reached may reduce."""

OPTIONS = EngineOptions(audit=AuditOptions(answer_s=10.0, patience_s=1000.0, appeal_s=5000.0))

BOUNDS = Bounds(
    pooled_pass=0.01, pooled_fail=0.05, chunk_pass=0.02, chunk_fail=0.1, projection=0.05
)
_MEASURED = Measured(comparisons=1)

_UNITS: dict[tuple[bytes, str, tuple[int, int, int]], np.ndarray] = {}
"""Updates by all that they follow from; without dropout, seeds change nothing."""


class Sentences:
    """Token ids that follow from the sequence's number, with something to learn in them."""

    def __init__(self, length: int) -> None:
        self._length = length

    def batch(self, start: int, end: int) -> np.ndarray:
        first = np.arange(start, end)[:, None]
        return (first * 7 + 3 * np.arange(self._length)[None, :]) % 251


Answer = Callable[["Trainee", service_pb2.Challenge], tuple[wire.ChallengeAnswer, list[Any]] | None]


@dataclass
class Trainee(Member):
    """Trains for real; ``falsify`` changes the update before it is committed to."""

    rig: AuditRig
    lazy_steps: int = 0  # left out, but claimed
    falsify: Callable[[np.ndarray], np.ndarray] | None = None
    answers: Answer | None = None  # None: honestly
    asked: list[service_pb2.Challenge] = field(default_factory=list)
    silent: bool = False
    history: dict[bytes, EncodedUpdate] = field(default_factory=dict)  # by assignment

    def train(self, scale: float = 1e-3) -> EncodedUpdate:
        assert self.assignment is not None
        steps = max(1, self.assignment.steps - self.lazy_steps)
        vector = self.rig.trained(self.assignment, steps)
        if self.falsify is not None:
            vector = self.falsify(vector)
        self.update = self.rig.encoded(vector, self.assignment.round, self.name)
        self.history[self.assignment.assignment_id] = self.update
        return self.update

    async def attend(self) -> int:
        """One heartbeat, and an answer to everything it asks; returns how many were given."""
        reply = await self.beat()
        given = 0
        for challenge in reply.challenges:
            if challenge.challenge_id not in {known.challenge_id for known in self.asked}:
                self.asked.append(challenge)
            answer = (self.answers or honest)(self, challenge)
            if answer is not None:
                await self.show(*answer)
                given += 1
        return given

    async def show(self, record: wire.ChallengeAnswer, chunks: list[Any]) -> Any:
        try:
            return await self.rig.engine.answer_challenge(self.sign(record), chunks)
        except (NotFound, TooLate):
            return None

    def answer(self, challenge: service_pb2.Challenge, **fields: Any) -> wire.ChallengeAnswer:
        return wire.ChallengeAnswer(
            run_id=self.rig.run_id,
            challenge_id=challenge.challenge_id,
            worker=self.name,
            **fields,
        )


def honest(
    who: Trainee, challenge: service_pb2.Challenge
) -> tuple[wire.ChallengeAnswer, list[wire.OpenedChunk]]:
    """A real projection of, or real chunks from, what the members sent."""
    if challenge.kind == service_pb2.CHALLENGE_KIND_PROJECT:
        update = who.rig.update_of(challenge.members[0], challenge)
        data = project_update(
            update.chunks[challenge.first_chunk : challenge.end_chunk],
            who.rig.manifest.update.codec,
            who.rig.layout,
            challenge.projection_seed,
            challenge.first_chunk,
        )
        return who.answer(challenge, projections=data), []
    chunks = [
        opened(who.rig.update_of(member, challenge), member, chunk)
        for member in challenge.members
        for chunk in challenge.chunks
    ]
    hashes = [hashlib.sha256(chunk.encoded).digest() for chunk in chunks]
    return who.answer(challenge, chunk_sha256=hashes), chunks


def unavailable(
    who: Trainee, challenge: service_pb2.Challenge
) -> tuple[wire.ChallengeAnswer, list[wire.OpenedChunk]]:
    """Nothing to show, any more."""
    return who.answer(challenge, unavailable="not_kept"), []


def opened(update: EncodedUpdate, member: str, chunk: int) -> wire.OpenedChunk:
    """A chunk with its proof."""
    hashes = update.leaf_hashes
    proof = merkle.inclusion_proof(chunk, len(hashes), merkle.subtree_roots(hashes))
    return wire.OpenedChunk(chunk=chunk, encoded=update.chunks[chunk], proof=proof, member=member)


@dataclass
class Auditor:
    """Replays one job at a time, in this process."""

    rig: AuditRig
    identity: Identity
    execution: str = "cpu"
    lie: Callable[[np.ndarray], np.ndarray] | None = None
    fails: str = ""
    garble: bool = False  # projections that are none
    signs_projections: bool = True  # not of an update that has too many chunks

    @property
    def name(self) -> str:
        return self.identity.peer_id

    def work(self) -> bool:
        """Do the next job, if there is one."""
        rig = self.rig
        with rig.database.session() as session:
            spec = jobs.claim(session, self.name, self.execution, rig.now_s, 60.0)
        if spec is None:
            return False
        record = self._result(spec)
        with rig.database.session() as session:
            envelope = seal(record, self.identity)
            assert jobs.finish(session, spec.job_id, self.name, envelope, rig.now_s)
        return True

    def _result(self, spec: jobs.JobSpec) -> wire.AuditResult:
        rig = self.rig
        fields = {
            "run_id": rig.run_id,
            "job_id": spec.job_id,
            "auditor": self.name,
            "execution": self.execution,
        }
        if self.fails:
            return wire.AuditResult(**fields, failed=self.fails)
        batch = rig.manifest.inner.sequences_per_batch
        assignment = wire.Assignment(
            start_sequence=spec.start_sequence,
            end_sequence=spec.start_sequence + spec.steps * batch,
            steps=spec.steps,
            seed=spec.seed,
            tokens_base=spec.tokens_base,
            state_digest=spec.state_digest,
        )
        vector = rig.trained(assignment, spec.steps)
        if self.lie is not None:
            vector = self.lie(vector)
        update = rig.encoded(vector, spec.round, spec.worker)
        sha256, size = rig.replays.save(spec.job_id, update.chunks)
        projections = project_update(
            update.chunks, rig.manifest.update.codec, rig.layout, spec.projection_seed
        )
        if self.garble:
            projections = b"\xff" * len(projections)
        if not self.signs_projections:
            projections = b""
        return wire.AuditResult(
            **fields,
            steps=spec.steps,
            root=update.root,
            projections=projections,
            update_sha256=sha256,
            update_bytes=size,
        )


@dataclass
class AuditRig(Rig):
    """A run whose members are Trainees."""

    auditors: list[Auditor] = field(default_factory=list)

    async def boot(self) -> None:
        await super().boot()
        self.replays = ReplayStore(str(self.folder / "blobs"))
        self._weights: dict[bytes, np.ndarray] = getattr(self, "_weights", {})
        self._keep_weights()
        with self.database.session() as session:
            if session.get(ToleranceRow, 1) is None:
                document = self.table(("cpu", "cpu"), ("cpu", "cuda")).to_json()
                session.add(ToleranceRow(id=1, document=document, made_at_s=self.now_s))

    def table(self, *pairs: tuple[str, str]) -> ToleranceTable:
        steps = self.manifest.inner.max_steps
        entries = tuple(
            Entry(first=first, second=second, steps=steps, measured=_MEASURED, bounds=BOUNDS)
            for first, second in pairs
        )
        return ToleranceTable(
            run_id=self.run_id.hex(),
            settled_rounds=0,
            steps=steps,
            samples=1,
            made_at_s=0,
            entries=entries,
        )

    def enrol(self, seed: int, *, anchor: bool = False, public: bool = False) -> Trainee:
        plain = super().enrol(seed, anchor=anchor, public=public)
        member = Trainee(self, plain.identity)
        self.members[member.name] = member
        return member

    def hire(self, seed: int, **fields: Any) -> Auditor:
        auditor = Auditor(self, Identity.from_seed((1000 + seed).to_bytes(32, "big")), **fields)
        self.auditors.append(auditor)
        return auditor

    # ---- training ----

    def trained(self, assignment: wire.Assignment, steps: int) -> np.ndarray:
        """The update of a unit; each is computed once, whichever tests ask for it."""
        weights = self._weights[assignment.state_digest]
        key = (
            hashlib.sha256(weights).digest(),
            self.manifest.model_dump_json(
                include={"inner", "model_config_json", "sequence_length"}
            ),
            (assignment.start_sequence, steps, assignment.tokens_base),
        )
        if key not in _UNITS:
            batch = self.manifest.inner.sequences_per_batch
            unit = Unit(
                assignment.start_sequence,
                assignment.start_sequence + steps * batch,
                steps,
                assignment.seed,
                assignment.tokens_base,
            )
            result = train(
                self.manifest,
                weights,
                unit,
                Sentences(self.manifest.sequence_length),
                Execution(),
            )
            _UNITS[key] = result.update
        return _UNITS[key].copy()

    def encoded(self, vector: np.ndarray, round_: int, worker: str) -> EncodedUpdate:
        return encode_update(
            vector.astype(np.float32),
            self.layout,
            self.manifest.update.codec,
            run_id=self.run_id,
            round_=round_,
            worker=worker,
        )

    def update_of(self, member: str, challenge: service_pb2.Challenge) -> EncodedUpdate:
        """What a member committed to in the unit, or in the round, that a challenge is about."""
        trainee = self.members[member]
        if challenge.assignment_id:
            return trainee.history[challenge.assignment_id]
        with self.database.session() as session:
            row = session.query(RosterRow).filter_by(group_id=challenge.group_id).one()
            roster = open_envelope(wire.Envelope.FromString(row.envelope), wire.Roster).record
        found = next(m for m in roster.members if m.worker == member)
        return trainee.history[found.assignment_id]

    async def play_round(self, *workers: Trainee) -> None:
        await super().play_round(*workers)
        self._keep_weights()

    def _keep_weights(self) -> None:
        for state in self.engine._states.states:
            self._weights[state.descriptor.digest] = state.weights

    # ---- audits ----

    async def audit(self, *, auditors: bool = True, members: bool = True) -> None:
        """Let everybody do what there is to do, until nothing is left."""
        busy = True
        while busy:
            busy = await self.engine.audit()
            if members:
                for member in list(self.members.values()):
                    if not member.silent:
                        busy |= await member.attend() > 0
            if auditors:
                for auditor in self.auditors:
                    busy |= auditor.work()

    async def appeal(self, member: Trainee) -> service_pb2.AppealReply:
        assert member.assignment is not None
        record = wire.Appeal(
            run_id=self.run_id,
            worker=member.name,
            assignment_id=member.assignment.assignment_id,
        )
        return await self.engine.appeal(member.sign(record))

    async def wait(self, seconds: float) -> None:
        """Time passes for the audits alone: rounds wait."""
        self.now_s += seconds
        await self.audit()

    def audits(self) -> list[dict[str, Any]]:
        return self._rows(AuditRow, "round")

    def reducer_audits(self) -> list[dict[str, Any]]:
        return self._rows(ReducerAuditRow, "round")

    def challenges(self) -> list[dict[str, Any]]:
        return self._rows(ChallengeRow, "asked_at_s")

    def openings(self) -> list[dict[str, Any]]:
        return self._rows(OpeningRow, "chunk")

    def jobs(self) -> list[dict[str, Any]]:
        return self._rows(AuditJobRow, "ordinal")

    def auditor_rows(self) -> list[dict[str, Any]]:
        return self._rows(AuditorRow, "auditor")

    def verdicts(self) -> dict[str, str]:
        """By worker, of its newest audit."""
        return {row["worker"]: row["verdict"] for row in self.audits()}

    def blocked(self) -> set[str]:
        return {row["key"] for row in self._rows(BlockRow, "key")}

    def _rows(self, model: Any, order: str) -> list[dict[str, Any]]:
        with self.database.session() as session:
            rows = session.query(model).order_by(getattr(model, order)).all()
            return [
                {column.name: getattr(row, column.name) for column in model.__table__.columns}
                for row in rows
            ]


def noise_in_chunk(rig: AuditRig, chunk: int) -> Callable[[np.ndarray], np.ndarray]:
    """One falsified chunk, of the same length as the real one."""

    def falsify(vector: np.ndarray) -> np.ndarray:
        where = slice(*rig.layout.bounds(chunk))
        random = np.random.default_rng(chunk).standard_normal(vector[where].shape)
        vector[where] = random * np.sqrt(np.mean(np.square(vector[where])))
        return vector

    return falsify


def other_vector(vector: np.ndarray) -> np.ndarray:
    """Something else altogether."""
    return vector[::-1].copy()


def names(members: Iterable[Any]) -> set[str]:
    return {member.name for member in members}
