"""What an auditor works with: the run's files, its own key, and one job from start to result.

Invariants:

* A run folder with manifest, settings and data is enough, also on another machine whose settings
  name database and blobs by URL; no key of the organiser's is read.
* A failure is either said in the result (the organiser's files are lost, the unit diverges) or
  raised (this machine cannot do it, for now or at all): it is never the worker's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from coordinator.audit import base_weights, jobs
from coordinator.audit.replay import Replayed, Task, execution_class, replay_unit, verified_reader
from coordinator.audit.replays import ReplayStore
from coordinator.checkpoints import CheckpointStore
from coordinator.config import RunFolder
from coordinator.database import Database
from protocol.dataset import DatasetManifest, SequenceReader, read_manifest
from protocol.errors import BadDigest, BadRecord, Diverged, NotFound, UsageError
from protocol.identity import Identity, PeerId
from protocol.manifest import RunManifest
from protocol.projection import MAX_SIGNED_CHUNKS, project_update
from protocol.training import Execution
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

_MOST_ATTEMPTS = 5
"""A job that ended so many auditors' processes is not tried again."""

_DATA_ATTEMPTS = 3
"""So often data may be unreadable before they count as lost: a restart may mend the disk."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Workplace:
    """Everything of a run that replays need."""

    manifest: RunManifest
    dataset: DatasetManifest
    database: Database
    checkpoints: CheckpointStore
    weights: base_weights.BaseWeights
    replays: ReplayStore
    reader: SequenceReader

    @classmethod
    def open(cls, folder: RunFolder) -> Workplace:
        """Open what the run folder names.

        Raises:
            UsageError: not a run folder, or its dataset is another.
            TransientError: the blob store cannot be reached.
        """
        settings, manifest = folder.settings(), folder.read_manifest()
        dataset = read_manifest(folder.data)
        if dataset.digest.hex() != manifest.dataset_sha256:
            raise UsageError(
                f"{folder.data} holds another dataset than the run's: put the one there with "
                f"digest {manifest.dataset_sha256}"
            )
        url = folder.blobs_url(settings)
        database = Database(folder.database_url(settings))
        database.require()
        # The server may be writing to the store: its half-written files are its own to remove.
        checkpoints = CheckpointStore(url, manifest, sweep=False)
        return cls(
            manifest,
            dataset,
            database,
            checkpoints,
            base_weights.BaseWeights(checkpoints, manifest),
            ReplayStore(url),
            verified_reader(dataset, folder.data),
        )

    def do(
        self,
        spec: jobs.JobSpec,
        plan: base_weights.Plan | None,
        auditor: PeerId,
        execution: Execution,
        go_on: Callable[[], bool],
    ) -> wire.AuditResult | None:
        """Do a job; blocks.

        Args:
            spec: what to replay.
            plan: how to come by its weights; None: the run knows of no such state.
            auditor: who does it.
            execution: how.
            go_on: asked after each inner step.

        Returns:
            The result, or None when it was stopped.

        Raises:
            TransientError: the blob store is away.
            UsageError, BadDigest: this machine cannot do it: memory, damaged data.
        """
        result = wire.AuditResult(
            run_id=self.manifest.run_id,
            job_id=spec.job_id,
            auditor=auditor,
            execution=execution_class(execution),
        )
        if spec.attempt > _MOST_ATTEMPTS:
            result.failed = jobs.GAVE_UP
            return result
        try:
            replayed = self._replay(spec, plan, execution, go_on)
        except NotFound as error:
            _log.error("weights_lost", job=spec.job_id.hex(), why=str(error))
            result.failed = jobs.WEIGHTS_LOST
        except Diverged:
            result.failed = jobs.DIVERGED
        except BadRecord:
            result.failed = jobs.NO_UNIT
        except BadDigest:
            if spec.attempt < _DATA_ATTEMPTS:
                raise
            result.failed = jobs.DATA_LOST
        else:
            if replayed is None:
                return None
            self._keep(spec, replayed, result)
        return result

    def _replay(
        self,
        spec: jobs.JobSpec,
        plan: base_weights.Plan | None,
        execution: Execution,
        go_on: Callable[[], bool],
    ) -> Replayed | None:
        if plan is None:
            raise NotFound("the run never had the state that the assignment names")
        task = Task(
            spec.round, spec.worker, spec.start_sequence, spec.steps, spec.seed, spec.tokens_base
        )
        weights = self.weights.load(plan)
        return replay_unit(
            self.manifest, weights, task, self.reader, execution, lambda _steps, _loss: go_on()
        )

    def _keep(self, spec: jobs.JobSpec, replayed: Replayed, result: wire.AuditResult) -> None:
        """Store the encoded update and say what it is."""
        chunks = replayed.update.chunks
        layout = ChunkLayout(self.checkpoints.elements, self.manifest.update.chunk_elements)
        result.update_sha256, result.update_bytes = self.replays.save(spec.job_id, chunks)
        result.root = replayed.update.root
        if layout.count <= MAX_SIGNED_CHUNKS:  # else the coordinator projects what is stored
            result.projections = project_update(
                chunks, self.manifest.update.codec, layout, spec.projection_seed
            )
        result.steps, result.mean_loss = replayed.steps, replayed.mean_loss
        result.compute_s = replayed.compute_s


@contextmanager
def auditor_key(folder: Path, path: Path | None = None) -> Iterator[Identity]:
    """A key of this auditor's own, made at the first start (mode 0600), and held while it runs.

    Args:
        folder: of the run's auditors: the first key in it that no process holds.
        path: instead, this file.

    Raises:
        UsageError: the file is held by another process, or damaged.
    """
    (folder if path is None else path.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
    number = 1
    while True:
        key = path or folder / f"auditor-{number}.key"
        descriptor = _hold(key)
        if descriptor is not None:
            break
        if path is not None:
            raise UsageError(f"another auditor works with {path}: give each a --key of its own")
        number += 1
    try:
        if not key.exists():
            Identity.generate().save(key)
        yield Identity.load(key)
    finally:
        os.close(descriptor)


def _hold(key: Path) -> int | None:
    """Lock a key; None when another process has."""
    descriptor = os.open(f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
