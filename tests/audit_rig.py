"""Replays to be done on a run folder that ``init`` made: rows as a settled round leaves them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.audit import schema
from coordinator.audit.replay import Task, replay_unit, verified_reader
from coordinator.checkpoints import CheckpointStore
from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.schema import AssignmentRow, ContributionRow, StateRow, WorkerRow
from protocol.dataset import read_manifest
from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
from protocol.training import Execution
from protocol.update import ChunkLayout, EncodedUpdate
from protocol.wire import records_pb2 as wire

START_S = 1_800_000_000.0


@dataclass
class Queue:
    """The audit tables of one run."""

    path: Path
    made: int = 0
    tasks: dict[bytes, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.path)
        self.settings = self.folder.settings()
        self.manifest = self.folder.read_manifest()
        self.url = self.folder.blobs_url(self.settings)
        self.database = Database(self.folder.database_url(self.settings))
        with self.database.session() as session:
            row = session.get_one(StateRow, 0)
            self.state_digest, weights_sha256 = row.digest, row.weights_sha256
        self.checkpoints = CheckpointStore(self.url, self.manifest, sweep=False)
        self.weights = self.checkpoints.load_weights(weights_sha256)
        self.layout = ChunkLayout(len(self.weights), self.manifest.update.chunk_elements)

    def add(
        self,
        *,
        steps: int = 2,
        state_digest: bytes | None = None,
        start_sequence: int = 0,
        at_s: float = START_S,
        **job: Any,
    ) -> bytes:
        """Queue one replay of a new device's unit.

        Args:
            job: fields of the AuditJobRow that are not as usual.

        Returns:
            The job's id.
        """
        self.made += 1
        worker = Identity.from_seed(self.made.to_bytes(32, "big"))
        ids = [hashlib.sha256(b"%d %d" % (kind, self.made)).digest()[:16] for kind in range(3)]
        assignment_id, audit_id, job_id = ids
        assignment = wire.Assignment(
            run_id=self.manifest.run_id,
            assignment_id=assignment_id,
            round=0,
            worker=worker.peer_id,
            state_digest=self.state_digest if state_digest is None else state_digest,
            start_sequence=start_sequence,
            steps=steps,
            seed=self.made,
        )
        lists = ("avoid_executions", "avoid_auditors")
        job |= {name: json.dumps(job[name]) for name in lists if name in job}
        with self.database.session() as session:
            session.add(
                WorkerRow(
                    worker=worker.peer_id,
                    donor=worker.peer_id,
                    device_class="cpu",
                    enrolled_at_s=at_s,
                )
            )
            session.flush()
            session.add(
                AssignmentRow(
                    assignment_id=assignment_id,
                    round=0,
                    worker=worker.peer_id,
                    epoch=0,
                    start_batch=0,
                    stop_batch=steps,
                    seed=self.made,
                    status="merged",
                    leased_at_s=at_s,
                    envelope=seal(assignment, worker).SerializeToString(),
                )
            )
            session.flush()
            session.add(
                ContributionRow(
                    assignment_id=assignment_id,
                    round=0,
                    worker=worker.peer_id,
                    steps=steps,
                    tokens=steps * self.manifest.tokens_per_step,
                    commitment_root=bytes(32),
                    digest=bytes(32),
                    mean_loss=1.0,
                    received_at_s=at_s,
                    credit=schema.PENDING,
                    envelope=b"",
                )
            )
            session.add(
                schema.AuditRow(
                    audit_id=audit_id,
                    subject="training",
                    assignment_id=assignment_id,
                    round=0,
                    worker=worker.peer_id,
                    donor=worker.peer_id,
                    execution="cpu",
                    why="newcomer",
                    projection_seed=bytes(32),
                    draw=bytes(32),
                    phase=schema.WAITING,
                    created_at_s=at_s,
                    phase_since_s=at_s,
                )
            )
            session.flush()
            fields = {"ordinal": 1, "status": schema.QUEUED, "created_at_s": at_s + self.made}
            session.add(schema.AuditJobRow(job_id=job_id, audit_id=audit_id, **(fields | job)))
        self.tasks[job_id] = Task(0, worker.peer_id, start_sequence, steps, self.made, 0)
        return job_id

    def job(self, job_id: bytes) -> dict[str, Any]:
        """The columns of a job now."""
        with self.database.session() as session:
            row = session.get_one(schema.AuditJobRow, job_id)
            return {name: getattr(row, name) for name in row.__table__.columns.keys()}  # noqa: SIM118

    def result(self, job_id: bytes) -> wire.AuditResult:
        """The signed result of a job that is done."""
        held = self.job(job_id)
        assert held["status"] == schema.DONE, held
        envelope = wire.Envelope.FromString(held["result"])
        return open_envelope(envelope, wire.AuditResult, signer=held["auditor"]).record

    def honest(self, job_id: bytes, execution: Execution | None = None) -> EncodedUpdate:
        """What an honest worker's update of that unit is."""
        reader = verified_reader(read_manifest(self.folder.data), self.folder.data)
        weights = np.array(self.weights)
        replayed = replay_unit(
            self.manifest, weights, self.tasks[job_id], reader, execution or Execution()
        )
        assert replayed is not None
        return replayed.update
