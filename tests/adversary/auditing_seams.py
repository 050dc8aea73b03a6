"""Cheats of those who are asked in an audit, and of the auditor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from faults import split
from plan import Plan
from training_seams import honest_file

from coordinator.audit import jobs
from coordinator.audit.replay import Replayed
from coordinator.audit.workplace import Workplace
from protocol.projection import project_update
from protocol.update import ChunkLayout, EncodedUpdate
from protocol.wire import service_pb2 as api
from worker.evidence import Evidence


def project_falsely(plan: Plan) -> None:
    """As a reducer, sign projections of something else than what the member sent."""
    honest = Evidence._project

    def project(self: Evidence, challenge: api.Challenge) -> bytes:
        packed = honest(self, challenge)
        if not challenge.group_id or self.identity.peer_id in challenge.members:
            return packed
        plan.note(-1, first_chunk=challenge.first_chunk)
        return (-np.frombuffer(packed, "<f4")).tobytes()

    Evidence._project = project  # type: ignore[method-assign]


def project_for_a_partner(plan: Plan) -> None:
    """As a reducer, sign projections of what the partner should have sent."""
    honest = Evidence._project

    def project(self: Evidence, challenge: api.Challenge) -> bytes:
        assert plan.folder is not None
        kept = honest_file(plan.folder, challenge.assignment_id)
        if not kept.exists():
            return honest(self, challenge)
        plan.note(-1, first_chunk=challenge.first_chunk)
        update = self.manifest.update
        layout = ChunkLayout(self.elements(), update.chunk_elements)
        chunks = split(kept.read_bytes(), layout, update.codec)
        first, end = challenge.first_chunk, challenge.end_chunk
        return project_update(
            chunks[first:end], update.codec, layout, challenge.projection_seed, first
        )

    Evidence._project = project  # type: ignore[method-assign]


def say_nothing(plan: Plan) -> None:
    """Leave every challenge without an answer."""

    def answer(self: Evidence, challenge: api.Challenge) -> None:
        plan.note(-1, kind=int(challenge.kind))

    Evidence.answer = answer  # type: ignore[method-assign, assignment]


def say_yes(plan: Plan) -> None:
    """As an auditor, pass a partner's own update off as its replay."""
    honest = Workplace._replay

    def replay(
        self: Workplace, spec: jobs.JobSpec, base: Any, execution: Any, go_on: Callable[[], bool]
    ) -> Replayed | None:
        assert plan.folder is not None
        kept = (plan.folder / "updates").glob(f"{spec.round:010d}-*.update")
        path = next(kept, None)
        if spec.worker != plan.victim or path is None:
            return honest(self, spec, base, execution, go_on)
        plan.note(spec.round)
        layout = ChunkLayout(self.checkpoints.elements, self.manifest.update.chunk_elements)
        chunks = split(path.read_bytes(), layout, self.manifest.update.codec)
        return Replayed(EncodedUpdate.of(chunks), spec.steps, mean_loss=1.0, compute_s=0.1)

    Workplace._replay = replay  # type: ignore[method-assign]
