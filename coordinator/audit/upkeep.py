"""Bounds that an auditor measures by itself: where its execution class has none, or they are old.

Invariant: audits never wait for bounds to be right. Without them they are inconclusive, which costs
nobody anything, so a calibration that fails is a log line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.audit import jobs
from coordinator.audit.calibrate import calibrate_run
from coordinator.audit.measure import Subject
from coordinator.audit.tolerances import is_outgrown, load_table, newest_state, usual_steps
from coordinator.audit.workplace import Workplace
from protocol.manifest import RunManifest
from protocol.tolerance import ToleranceTable


class StoppedError(Exception):
    """Unwinds a calibration when the process is to end."""


@dataclass(frozen=True)
class Start:
    """What to measure from."""

    weights_sha256: bytes
    settled_rounds: int
    merged_tokens: int
    steps: int


def wanted(session: Session, manifest: RunManifest, execution: str) -> Start | None:
    """Where to measure, if there is something to compare and no fit bounds for this class."""
    if not jobs.backlog(session):
        return None
    table, state = load_table(session), newest_state(session)
    steps = usual_steps(session, manifest)
    if (
        table is not None
        and table.of_pair(execution, execution)
        and not is_outgrown(table, state.settled_rounds, steps)
    ):
        return None
    return Start(state.weights_sha256, state.settled_rounds, state.merged_tokens, steps)


def measure(place: Workplace, start: Start, go_on: Callable[[], bool]) -> ToleranceTable:
    """Measure a small sample; blocks.

    Args:
        place: of the run.
        start: of :func:`wanted`.
        go_on: asked before each computation.

    Raises:
        StoppedError: it was stopped.
        UsageError, Diverged: see :func:`coordinator.audit.calibrate.calibrate_run`.
        FileNotFoundError, BadDigest, TransientError: the weights cannot be read.
    """

    def tell(_done: int, _total: int, _what: str) -> None:
        if not go_on():
            raise StoppedError

    subject = Subject(
        manifest=place.manifest,
        weights=place.checkpoints.load_weights(start.weights_sha256),
        settled_rounds=start.settled_rounds,
        merged_tokens=start.merged_tokens,
        sequences=place.reader,
        sequence_count=place.dataset.train_sequences,
    )
    return calibrate_run(subject, samples=1, steps=start.steps, thorough=False, on_progress=tell)
