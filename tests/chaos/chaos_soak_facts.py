"""What a soak sees of a run: the coordinator's database, read and never written."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Now:
    """Where the run is."""

    round: int  # the running one
    phase: str
    settled: int  # rounds
    merged_tokens: int


NOT_BEGUN = Now(0, "OPEN", 0, 0)


def rows(database: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as open_one:
        return list(open_one.execute(sql, values))


def look(database: Path) -> Now:
    """One look."""
    found = rows(
        database,
        "SELECT r.number, r.phase, s.settled_rounds, s.merged_tokens FROM rounds r, states s "
        "ORDER BY r.number DESC, s.settled_rounds DESC LIMIT 1",
    )
    return Now(*found[0]) if found else NOT_BEGUN


@dataclass(frozen=True)
class Unit:
    """A lease and what became of it."""

    round: int
    worker: str  # PeerID
    assignment: str  # hex
    epoch: int
    start_batch: int
    leased_steps: int
    seed: int
    status: str
    steps: int  # of its contribution; 0: none came
    tokens: int
    root: bytes
    leaf: int | None


def units(database: Path) -> list[Unit]:
    found = rows(
        database,
        "SELECT a.round, a.worker, lower(hex(a.assignment_id)), a.epoch, a.start_batch, "
        "a.stop_batch - a.start_batch, a.seed, a.status, coalesce(c.steps, 0), "
        "coalesce(c.tokens, 0), c.commitment_root, c.leaf_index "
        "FROM assignments a LEFT JOIN contributions c USING (assignment_id) "
        "ORDER BY a.round, a.assignment_id",
    )
    return [Unit(*row) for row in found]


def outcomes(database: Path) -> dict[int, tuple[str, str, int]]:
    """Phase, reason and members of every round that has ended."""
    found = rows(
        database, "SELECT number, phase, reason, members FROM rounds WHERE ended_at_s NOT NULL"
    )
    return {number: (phase, reason, members) for number, phase, reason, members in found}


def losses(database: Path) -> list[tuple[int, int, float]]:
    """Settled rounds, merged tokens and validation loss of every state that was evaluated."""
    found: Sequence[tuple[Any, ...]] = rows(
        database,
        "SELECT settled_rounds, merged_tokens, validation_loss FROM states "
        "WHERE validation_loss NOT NULL ORDER BY settled_rounds",
    )
    return [(settled, tokens, loss) for settled, tokens, loss in found]
