"""Weights of old states: kept, or rebuilt from older ones and the means merged since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from coordinator.audit import base_weights
from coordinator.audit.base_weights import STRIDE, BaseWeights, Kept
from coordinator.audit.schema import DECIDED, FINAL, AuditRow, ProbationRow
from coordinator.checkpoints import WEIGHTS, Vector
from coordinator.context import AuditOptions, EngineOptions, RunContext
from coordinator.schema import ContributionRow, RoundRow, StateRow
from coordinator.settle import state_row
from protocol import merkle
from protocol.errors import NotFound
from protocol.outer import outer_step
from protocol.state import describe
from protocol.update import decode_update, encode_update

NOW_S = 1_800_000_000.0
APPEAL_S = 1000.0


@dataclass
class History:
    """Settled rounds, with a skipped one after each, as the engine leaves them."""

    queue: Any
    weights: list[Vector] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def settle(self, count: int) -> None:
        queue, manifest = self.queue, self.queue.manifest
        momentum = np.zeros_like(queue.weights)
        if not self.weights:
            self.weights, self.digests = [queue.weights], [queue.state_digest]
        for number in range(count):
            vector = np.random.default_rng(number).standard_normal(queue.layout.elements) * 1e-2
            mean = encode_update(
                vector.astype(np.float32),
                queue.layout,
                manifest.update.codec,
                run_id=manifest.run_id,
                round_=2 * number,
                worker="mean",
            )
            base_weights.keep_mean(queue.checkpoints, manifest, mean.chunks)
            decoded = decode_update(mean.chunks, queue.layout, manifest.update.codec)
            weights, momentum = outer_step(self.weights[-1], momentum, decoded, manifest.outer)
            described = describe(
                weights,
                momentum,
                round_=number + 1,
                merged_tokens=number + 1,
                chunk_elements=queue.layout.chunk_elements,
            )
            saved = queue.checkpoints.save(weights, momentum, described)
            self.weights.append(weights)
            self.digests.append(described.digest)
            with queue.database.session() as session:
                row = session.get(RoundRow, 2 * number) or _round(2 * number, number)
                row.settled_after = number + 1
                row.result_digest = merkle.root([merkle.leaf_hash(c) for c in mean.chunks])
                session.add(row)
                session.add(state_row(described, saved, NOW_S, evaluated=True))
                session.flush()
                session.add(_round(2 * number + 1, number + 1))

    def kept(self, **options: Any) -> Kept:
        settings = EngineOptions(audit=AuditOptions(appeal_s=APPEAL_S), **options)
        queue: Any = self.queue
        context = RunContext(queue.manifest, None, None, None, settings)  # type: ignore[arg-type]
        with queue.database.session() as session:
            return base_weights.kept(session, context, NOW_S)

    def prune(self, **options: Any) -> Kept:
        keep = self.kept(**options)
        base_weights.prune(self.queue.checkpoints, self.queue.manifest, keep)
        return keep

    def load(self, state: int) -> Vector:
        with self.queue.database.session() as session:
            plan = base_weights.plan(session, self.digests[state])
        return BaseWeights(self.queue.checkpoints, self.queue.manifest).load(plan)

    def has_file(self, state: int) -> bool:
        with self.queue.database.session() as session:
            sha256 = session.get_one(StateRow, state).weights_sha256
        return bool(self.queue.checkpoints.contains(WEIGHTS, sha256))

    def states(self, keep: Kept) -> list[int]:
        with self.queue.database.session() as session:
            rows = session.query(StateRow).all()
            digests = {saved.weights_sha256 for saved in keep.states}
            return sorted(row.settled_rounds for row in rows if row.weights_sha256 in digests)


def _round(number: int, settled_rounds: int) -> RoundRow:
    return RoundRow(
        number=number,
        machine="{}",
        phase="SKIPPED" if number % 2 else "SETTLED",
        settled_rounds=settled_rounds,
        settled_after=settled_rounds,  # unless it is settled
        head=b"",
        opened_at_s=NOW_S,
    )


@pytest.fixture
def history(audit_queue: Any) -> Iterator[History]:
    yield History(audit_queue)


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_weights_that_are_kept_no_more_are_rebuilt_bit_for_bit(history: History) -> None:
    history.settle(6)
    history.queue.add()  # pending, of round 0: its state is needed
    keep = history.prune(kept_checkpoints=2)
    assert history.states(keep) == [0, 5, 6]  # the newest, and one to begin from
    assert len(keep.means) == 6
    for state in (1, 3, 4):
        assert not history.has_file(state)
        np.testing.assert_array_equal(history.load(state), history.weights[state])
        assert history.has_file(state)  # for the next auditor, and for whoever checks


def test_without_pending_credit_only_the_newest_files_stay(history: History) -> None:
    history.settle(4)
    history.queue.add()
    with history.queue.database.session() as session:
        session.execute(update(ContributionRow).values(credit=FINAL))
        session.execute(update(AuditRow).values(phase=DECIDED, verdict="passed"))
    keep = history.prune(kept_checkpoints=2)
    assert history.states(keep) == [0, 3, 4]
    np.testing.assert_array_equal(history.load(2), history.weights[2])


@pytest.mark.parametrize(
    ("phase", "verdict", "decided_at_s", "stays"),
    [
        ("waiting", None, None, True),
        (DECIDED, "passed", NOW_S, False),
        (DECIDED, "failed", NOW_S - APPEAL_S + 1, True),
        (DECIDED, "failed", NOW_S - APPEAL_S - 1, False),
    ],
)
def test_weights_stay_as_a_file_until_verdict_and_appeal(
    history: History, phase: str, verdict: str | None, decided_at_s: float | None, stays: bool
) -> None:
    history.settle(5)
    history.queue.add()
    with history.queue.database.session() as session:
        values = {"phase": phase, "verdict": verdict, "decided_at_s": decided_at_s, "round": 4}
        session.execute(update(AuditRow).values(values))
        session.execute(update(ContributionRow).values(credit=FINAL, round=4))
    history.prune(kept_checkpoints=1)
    assert history.has_file(2) is stays  # round 4 is the third that starts from a new state


def test_an_open_probation_unit_keeps_its_weights(history: History) -> None:
    history.settle(3)
    with history.queue.database.session() as session:
        session.execute(update(ContributionRow).values(credit=FINAL))
    history.queue.add()
    with history.queue.database.session() as session:
        worker = session.query(ContributionRow).one().worker
        session.execute(update(AuditRow).values(phase=DECIDED, verdict="passed"))
        session.add(
            ProbationRow(
                assignment_id=b"p" * 16,
                worker=worker,
                round=2,
                settled_rounds=1,
                status="issued",
                issued_at_s=NOW_S,
                deadline_s=NOW_S,
                envelope=b"",
            )
        )
    history.prune(kept_checkpoints=1)
    assert history.has_file(1)


def test_the_window_is_bounded_by_count_and_by_bytes(history: History) -> None:
    history.settle(STRIDE + 4)
    history.queue.add()
    assert history.states(history.kept(kept_checkpoints=1)) == [0, STRIDE, STRIDE + 4]
    few = history.kept(kept_checkpoints=1, kept_means=3)
    assert history.states(few) == [STRIDE, STRIDE + 4]
    assert len(few.means) == 4
    assert history.kept(kept_checkpoints=1, kept_mean_bytes=1) == history.kept(
        kept_checkpoints=1, kept_means=1
    )


def test_lost_weights_are_said_to_be_lost(history: History) -> None:
    history.settle(4)
    history.queue.add()
    history.prune(kept_checkpoints=1)
    for file in Path(history.queue.url).glob("means/*.mean"):
        file.unlink()
    with pytest.raises(NotFound, match="state 2 are lost"):
        history.load(2)
    with (
        history.queue.database.session() as session,
        pytest.raises(NotFound, match="no state of this run"),
    ):
        base_weights.plan(session, b"x" * 32)


def test_a_damaged_mean_is_never_merged(history: History) -> None:
    history.settle(3)
    history.queue.add()
    history.prune(kept_checkpoints=1)
    for file in Path(history.queue.url).glob("means/*.mean"):
        damage(file)
    with pytest.raises(NotFound, match="damaged"):
        history.load(2)


def test_a_damaged_file_is_rebuilt(history: History) -> None:
    history.settle(3)
    history.queue.add()
    with history.queue.database.session() as session:
        sha256 = session.get_one(StateRow, 2).weights_sha256
    damage(Path(history.queue.url) / f"weights-{sha256.hex()}.safetensors")
    np.testing.assert_array_equal(history.load(2), history.weights[2])
