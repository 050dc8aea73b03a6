"""What anybody finds when an audit is done again: honest ones, wrong verdicts, forged evidence."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from coordinator.audit import public
from coordinator.audit.public import GENERAL_BOUNDS, AuditCheck, Found, Report
from coordinator.audit.public_record import read_run_leaf
from coordinator.audit.public_records import Evidence
from coordinator.audit.replay import verified_reader
from coordinator.keys import KeyRing
from coordinator.schema import StateRow
from ledger.export import export_tiles
from ledger.log import Log
from ledger.records import EnrolLeaf, RunLeaf
from ledger.sources import directory_source
from protocol import draw, merkle
from protocol.dataset import read_manifest
from protocol.envelope import seal
from protocol.errors import BadDigest, NotFound
from protocol.identity import Identity
from protocol.projection import project_update
from protocol.tolerance import Bounds, Entry, Measured, ToleranceTable
from protocol.training import Execution
from protocol.update import EncodedUpdate, decode_chunk, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

AUDITOR, REDUCER, STRANGER = (Identity.from_seed(bytes([n]) * 32) for n in (211, 212, 213))


@dataclass
class Case:
    """Everything that a coordinator would show of one audit; tests change what they like."""

    queue: Any
    job_id: bytes
    update: EncodedUpdate
    verdict: str
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    signers: dict[str, Identity] = field(default_factory=dict)
    replayed: EncodedUpdate | None = None  # by the auditor; default: honestly
    opened: bool = True

    def __post_init__(self) -> None:
        folder, manifest = self.queue.folder, self.queue.manifest
        self.keys = KeyRing.load(
            folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=time.time()
        )
        self.worker = Identity.from_seed(self.queue.made.to_bytes(32, "big"))

    def sign(self, name: str, record: Any, signer: Identity) -> wire.Envelope:
        record.MergeFrom(type(record)(run_id=self.queue.manifest.run_id))
        for key, value in self.fields.get(name, {}).items():
            setattr(record, key, value)
        return seal(record, self.signers.get(name, signer))

    def evidence(self) -> Evidence:
        queue, task, organiser = self.queue, self.queue.tasks[self.job_id], self.keys.round
        manifest, codec = queue.manifest, queue.manifest.update.codec
        assignment_id, worker = b"a" * 16, self.worker.peer_id
        with queue.database.session() as session:
            row = session.get_one(StateRow, 0)
            weights_sha256 = row.weights_sha256
        end = task.start_sequence + task.steps * manifest.inner.sequences_per_batch
        unit = {"round": 0, "assignment_id": assignment_id, "worker": worker}
        unit |= {"state_digest": queue.state_digest, "start_sequence": task.start_sequence}
        roster = seal(
            wire.Roster(
                run_id=manifest.run_id,
                round=0,
                members=[
                    wire.RosterMember(worker=worker, commitment_root=self.update.root, weight=1)
                ],
            ),
            self.signers.get("roster", organiser),
        )
        group_id = hashlib.sha256(roster.payload).digest()[:20]
        inclusion = self.sign(
            "inclusion", wire.InclusionSet(group_id=group_id, members=[worker]), organiser
        )
        draw_ = draw.draw(self.keys.draws.preimage(0), hashlib.sha256(inclusion.payload).digest())
        seed = draw.projection_seed(draw_, assignment_id)
        replayed = self.replayed or queue.honest(self.job_id)
        result = self.sign(
            "result",
            wire.AuditResult(
                auditor=AUDITOR.peer_id,
                execution="cpu",
                root=replayed.root,
                projections=project_update(replayed.chunks, codec, queue.layout, seed),
            ),
            AUDITOR,
        )
        file = api.AuditFile(
            assignment=self.sign(
                "assignment",
                wire.Assignment(**unit, end_sequence=end, steps=task.steps, seed=task.seed),
                organiser,
            ),
            contribution=self.sign(
                "contribution",
                wire.Contribution(
                    **unit,
                    end_sequence=end,
                    steps=task.steps,
                    commitment_root=self.update.root,
                    execution="cpu",
                ),
                self.worker,
            ),
            roster=roster,
            inclusion_set=inclusion,
            preimage=self.keys.draws.preimage(0),
            chance_ppm=1_000_000,
            why="newcomer",
            verdicts=[
                self.sign(
                    "verdict",
                    wire.Verdict(
                        assignment_id=assignment_id,
                        worker=worker,
                        verdict=self.verdict,
                        results=[hashlib.sha256(result.payload).digest()],
                    ),
                    organiser,
                )
            ],
            audit_results=[result],
            projection_seed=seed,
            projections=[
                self.sign(
                    "projections",
                    wire.ChallengeAnswer(
                        worker=REDUCER.peer_id,
                        projections=project_update(self.update.chunks, codec, queue.layout, seed),
                    ),
                    REDUCER,
                )
            ],
            run_head=self.sign(
                "head",
                wire.RunHead(
                    state_digest=queue.state_digest,
                    weights_sha256=weights_sha256,
                    issued_at_ms=int(time.time() * 1000),
                ),
                organiser,
            ),
        )
        most = manifest.verification.opened_chunks
        numbers = draw.opened_chunks(draw_, assignment_id, queue.layout.count, most)
        return Evidence(
            manifest,
            self.keys.trust(),
            0,
            worker,
            file,
            tuple(self.open(number) for number in numbers) if self.opened else (),
            queue.layout,
            lambda _head: np.array(queue.weights),
            verified_reader(read_manifest(queue.folder.data), queue.folder.data),
            run_leaf=RunLeaf.of(manifest, at_s=0, draw_tip=self.keys.draws.tip),
        )

    def open(self, chunk: int) -> wire.OpenedChunk:
        count = len(self.update.chunks)
        proof = merkle.inclusion_proof(chunk, count, merkle.subtree_roots(self.update.leaf_hashes))
        return wire.OpenedChunk(
            chunk=chunk,
            encoded=self.update.chunks[chunk],
            proof=proof,
            member=self.worker.peer_id,
        )

    def check(self, execution: Execution | None = None, **changes: Any) -> Report:
        evidence = replace(self.evidence(), **changes)
        return AuditCheck(evidence, execution or Execution()).run()


@pytest.fixture
def honest(audit_queue: Any) -> Case:
    job_id = audit_queue.add()
    return Case(audit_queue, job_id, audit_queue.honest(job_id), "passed")


@pytest.fixture
def cheat(audit_queue: Any) -> Case:
    """Random numbers instead of training, and convicted of it."""
    job_id = audit_queue.add()
    vector = np.random.default_rng(1).standard_normal(audit_queue.layout.elements) * 1e-3
    update = encode_update(
        vector.astype(np.float32),
        audit_queue.layout,
        audit_queue.manifest.update.codec,
        run_id=audit_queue.manifest.run_id,
        round_=0,
        worker=audit_queue.tasks[job_id].worker,
    )
    return Case(audit_queue, job_id, update, "failed")


def texts(report: Report, found: Found) -> str:
    return "; ".join(line.text for line in report.lines if line.found is found)


def test_an_honest_audit_agrees_in_every_step(honest: Case) -> None:
    report = honest.check()
    assert (report.exit_code, report.verdict) == (0, "passed"), report.lines
    assert {line.found for line in report.lines} == {Found.AGREES}
    assert {line.step for line in report.lines} == {
        *("records", "draw", "openings", "projections", "replay", "verdict")
    }


def test_another_device_class_agrees_within_the_bounds(honest: Case) -> None:
    report = honest.check(Execution("cpu", 1, True))
    assert report.exit_code == 0, report.lines
    assert "apart" in texts(report, Found.AGREES)


def test_without_kept_chunks_the_projections_are_compared(honest: Case, cheat: Case) -> None:
    honest.opened = cheat.opened = False
    assert honest.check(Execution("cpu", 1, True)).exit_code == 0
    assert "projections are" in texts(cheat.check(), Found.AGREES)


def test_a_proven_cheat_agrees_with_its_conviction(cheat: Case) -> None:
    report = cheat.check()
    assert (report.exit_code, report.verdict) == (0, "failed"), report.lines


def test_a_wrong_conviction_is_contradicted(honest: Case) -> None:
    honest.verdict = "failed"
    report = honest.check()
    assert report.exit_code == 1
    assert "but the verdict is failed" in texts(report, Found.CONTRADICTS)


def test_a_friend_that_was_spared_is_contradicted(cheat: Case) -> None:
    cheat.verdict = "passed"
    assert "but the verdict is passed" in texts(cheat.check(), Found.CONTRADICTS)


def test_an_auditor_that_says_what_the_worker_says_is_contradicted(cheat: Case) -> None:
    cheat.verdict, cheat.replayed = "passed", cheat.update
    report = cheat.check()
    assert report.exit_code == 1
    assert AUDITOR.peer_id in texts(report, Found.CONTRADICTS)


@pytest.mark.parametrize("name", ["assignment", "inclusion", "roster", "verdict", "head"])
def test_what_a_stranger_signed_for_the_organiser_is_refused(honest: Case, name: str) -> None:
    honest.signers[name] = STRANGER
    report = honest.check()
    assert report.exit_code == 1
    assert "not a round key of this run" in texts(report, Found.CONTRADICTS)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("contribution", "expected a record signed by"),
        ("result", "not signed by the auditor that it names"),
        ("projections", "not signed by whom they name"),
    ],
)
def test_what_a_stranger_signed_for_others_is_refused(honest: Case, name: str, says: str) -> None:
    honest.signers[name] = STRANGER
    assert says in texts(honest.check(), Found.CONTRADICTS)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("assignment", {"round": 1}, "of another round or worker"),
        ("contribution", {"steps": 1}, "not to the assignment"),
        ("contribution", {"state_digest": b"x" * 32}, "not to the assignment"),
        ("contribution", {"commitment_root": b"x" * 32}, "another commitment"),
        ("verdict", {"assignment_id": b"b" * 16}, "about another contribution"),
        ("result", {"run_id": b"x" * 32}, "of another run"),
        ("inclusion", {"group_id": b"x" * 20}, "not of the roster"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(
    honest: Case, name: str, change: dict[str, Any], says: str
) -> None:
    honest.fields[name] = change
    assert says in texts(honest.check(), Found.CONTRADICTS)


def _other_preimage(evidence: Evidence) -> Evidence:
    evidence.file.preimage = b"p" * 32
    return evidence


def _other_seed(evidence: Evidence) -> Evidence:
    evidence.file.projection_seed = b"s" * 32
    return evidence


def _no_chance(evidence: Evidence) -> Evidence:
    evidence.file.chance_ppm = 0
    return evidence


def _flipped_bit(evidence: Evidence) -> Evidence:
    data = bytearray(evidence.chunks[0].encoded)
    data[-1] ^= 1
    evidence.chunks[0].encoded = bytes(data)
    return evidence


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        (_other_preimage, "does not lead to the run's tip"),
        (_other_seed, "not made with the seed that was drawn"),
        (_no_chance, "does not select this contribution"),
        (_flipped_bit, "does not lead to the root"),
        (lambda e: replace(e, chunks=e.chunks[:1]), "the draw asks for the chunks"),
    ],
)
def test_bent_evidence_is_refused(
    honest: Case, bend: Callable[[Evidence], Evidence], says: str
) -> None:
    report = AuditCheck(bend(honest.evidence()), Execution()).run()
    assert report.exit_code == 1
    assert says in texts(report, Found.CONTRADICTS)


def scaled(case: Case, factor: float) -> EncodedUpdate:
    """An honest update, made larger: so much of it apart from its replay."""
    queue, codec = case.queue, case.queue.manifest.update.codec
    layout = queue.layout
    parts = [
        decode_chunk(codec, encoded, layout.chunk_size(chunk))
        for chunk, encoded in enumerate(case.update.chunks)
    ]
    return encode_update(
        np.concatenate(parts) * np.float32(factor),
        layout,
        codec,
        run_id=queue.manifest.run_id,
        round_=0,
        worker=case.worker.peer_id,
    )


def table(case: Case, bounds: Bounds | None, **fields: Any) -> str:
    entry = Entry(
        first="cpu", second="cpu", steps=2, measured=Measured(comparisons=1), bounds=bounds
    )
    named = {"run_id": case.queue.manifest.run_id.hex(), "entries": (entry,), **fields}
    made = ToleranceTable(settled_rounds=0, steps=2, samples=1, made_at_s=0, **named)
    return made.to_json()


@pytest.mark.parametrize(("apart", "exit_code"), [(0.064, 0), (0.1, 2), (0.15, 1)])
def test_general_bounds_spare_what_cannot_be_told(
    honest: Case, apart: float, exit_code: int
) -> None:
    honest.update = scaled(honest, 1 + apart)
    assert honest.check().exit_code == exit_code


def test_the_runs_own_bounds_come_with_the_audit(honest: Case) -> None:
    honest.update = scaled(honest, 1.03)
    tight = Bounds(
        pooled_pass=0.01, pooled_fail=0.02, chunk_pass=0.5, chunk_fail=0.6, projection=0.3
    )
    for document, exit_code in (
        ("", 0),
        (table(honest, tight), 1),
        (table(honest, tight, run_id="ab" * 32), 0),  # of another run
        ("{}", 0),  # of another version
        (table(honest, tight, entries=()), 0),  # of other classes
        (table(honest, None), 2),  # measured: nothing can be told apart
    ):
        evidence = honest.evidence()
        evidence.file.tolerance = document
        assert AuditCheck(evidence, Execution()).run().exit_code == exit_code, document
    own = ToleranceTable.parse(table(honest, GENERAL_BOUNDS))
    evidence.file.tolerance = table(honest, tight)
    assert AuditCheck(replace(evidence, table=own), Execution()).run().exit_code == 0


def test_an_auditor_that_could_not_sign_its_projections_is_left_unchecked(
    honest: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest.fields["result"] = {"projections": b"", "root": b"r" * 32}
    assert honest.check().exit_code == 1  # it could have
    monkeypatch.setattr(public, "MAX_SIGNED_CHUNKS", 1)
    report = honest.check()
    assert report.exit_code == 0
    assert "too many" in texts(report, Found.UNCHECKED)


def test_without_a_record_the_draw_is_not_checked(honest: Case) -> None:
    report = honest.check(run_leaf=None)
    assert report.exit_code == 0
    assert "--record" in texts(report, Found.UNCHECKED)


def test_lost_weights_cannot_be_checked(honest: Case) -> None:
    def lost(_head: wire.RunHead) -> Any:
        raise NotFound("this state is kept no more")

    report = honest.check(weights=lost)
    assert report.exit_code == 2
    assert "kept no more" in texts(report, Found.UNCHECKED)


def test_a_verdict_that_blames_nobody_cannot_be_contradicted(honest: Case) -> None:
    honest.verdict = "inconclusive"
    assert honest.check().exit_code == 2


@pytest.mark.parametrize("leaves", [0, 1, 5, 300])
def test_the_runs_first_leaf_is_proven_by_a_few_tiles(
    audit_queue: Any, leaves: int, tmp_path: Any
) -> None:
    manifest = audit_queue.manifest
    keys = KeyRing.load(
        audit_queue.folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=time.time()
    )
    log = Log(manifest.origin, keys.log)

    def write(session: Session) -> None:
        for number in range(leaves):
            name = Identity.from_seed((1000 + number).to_bytes(32, "big")).peer_id
            leaf = EnrolLeaf(
                run_id=manifest.run_id.hex(),
                at_s=int(time.time()),
                worker=name,
                donor=name,
                device_class="cpu",
            )
            log.append(session, [leaf])
        log.sign_head(session)
        export_tiles(session, tmp_path / "tiles")

    with audit_queue.database.session() as session:
        write(session)
    source = directory_source(tmp_path / "tiles")
    assert read_run_leaf(source, manifest).draw_tip == keys.draws.tip.hex()
    top = sorted((tmp_path / "tiles" / "tile" / "0").rglob("*"))[-1]
    data = bytearray(top.read_bytes())
    if leaves:
        data[-1] ^= 1
        top.write_bytes(bytes(data))
        with pytest.raises(BadDigest, match="does not lead to the root"):
            read_run_leaf(source, manifest)
