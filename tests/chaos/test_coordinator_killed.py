"""kill -9 at every commit and every file: the run goes on to the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chaos_scripted_run import lines
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from coordinator.database import Database
from coordinator.schema import (
    CONSUMED,
    MERGED,
    AssignmentRow,
    ContributionRow,
    IntervalRow,
    RoundRow,
    StateRow,
)
from ledger import tree
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.identity import Identity
from protocol.notes import read_checkpoint

ROUNDS = 8
MOST_LIVES = 250
ROOT = Identity.from_seed(bytes(32)).peer_id

pytestmark = pytest.mark.timeout(600)


class Lives:
    """Plays one life of a coordinator after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def live(self, folder: Path, life: int, *, kill: bool) -> int:
        """Returns the wait status of the process that lived."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"folder": str(folder), "life": life, "kill": kill}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"status"'):
                return int(json.loads(line)["status"])
        raise AssertionError("the script's process ended")


@contextmanager
def script(folder: Path) -> Iterator[Lives]:
    program = Path(__file__).with_name("chaos_scripted_run.py")
    with (
        (folder / "script.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, str(program), str(folder), str(ROUNDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        yield Lives(process)
        assert process.stdin is not None
        process.stdin.close()


def test_killed_once_at_every_point(tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    log = tmp_path / "script.log"
    with script(tmp_path) as lives:
        assert lives.live(calm, 0, kill=False) == 0, log.read_text()[-3000:]
        for life in range(MOST_LIVES):
            status = lives.live(stormy, life, kill=True)
            if status == 0:
                break
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (
                f"after {lines(stormy / 'kills.jsonl')}:\n{log.read_text()[-3000:]}"
            )
            check_what_was_told(stormy)
    kills = lines(stormy / "kills.jsonl")
    assert len(kills) == len(set(kills)) == life
    # Whatever a calm run passes was killed at; and these must be among it, by any name.
    assert set(lines(calm / "points.jsonl")) <= set(kills), kills
    for needed in ("commit.before", "commit.after", "published", "migration", "file.named"):
        assert any(kill.startswith(needed) for kill in kills), kills
    for turn in ("sign_head", "settle", "request_work", "commit.", "_keep", "_advance", "resume"):
        assert any(turn in kill.split(" ", 1)[-1] for kill in kills), kills
    check_same(outcome(calm), outcome(stormy))


@contextmanager
def session(folder: Path) -> Iterator[Session]:
    database = Database(f"sqlite:///{folder / 'coordinator.db'}")
    try:
        with database.session() as opened:
            yield opened
    finally:
        database.close()


def check_what_was_told(folder: Path) -> None:
    """Every head that was signed is a prefix of the log, whatever was killed since."""
    heads = lines(folder / "heads.jsonl")
    if not heads:
        return  # killed before the first
    with session(folder) as opened:
        size = tree.tree_size(opened)
        for note in heads:
            head = read_checkpoint(note)
            assert head.size <= size
            assert tree.root(opened, head.size) == head.root


def outcome(folder: Path) -> dict[str, Any]:
    """What a run came to; also what no run may come to is asserted here."""
    check_what_was_told(folder)
    # Two different records were never told under one key, and no round took a second attempt.
    told = {tuple(line) for line in lines(folder / "told.jsonl")}
    keys = [(kind, round_) for kind, round_, _, _ in told]
    assert len(keys) == len(set(keys)), sorted(told)
    with session(folder) as opened:
        report = verify(
            DatabaseSource(opened),
            root=ROOT,
            old_checkpoint=lines(folder / "heads.jsonl")[-1],
        )
        assert opened.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        units = opened.execute(
            select(AssignmentRow, ContributionRow)
            .join(ContributionRow)
            .where(AssignmentRow.status == MERGED)
            .order_by(AssignmentRow.epoch, AssignmentRow.start_batch)
        ).all()
        merged = [(a.epoch, a.start_batch, a.start_batch + c.steps) for a, c in units]
        leaves = Counter(c.leaf_index for _, c in units)
        assert None not in leaves and set(leaves.values()) == {1}
        consumed = opened.execute(
            select(IntervalRow.epoch, IntervalRow.start, IntervalRow.stop).where(
                IntervalRow.state == CONSUMED
            )
        ).all()
        return {
            "merged": merged,
            "consumed": [tuple(row) for row in consumed],
            "states": [
                (row.digest.hex(), row.validation_loss)
                for row in opened.scalars(select(StateRow).order_by(StateRow.settled_rounds))
            ],
            "rounds": [
                (row.number, row.phase, row.members, row.tokens, row.logged)
                for row in opened.scalars(select(RoundRow).order_by(RoundRow.number))
            ],
            "credited_tokens": report.credited_tokens,
            "files": sorted(
                p.name.partition("-")[0] if "-" in p.name else p.suffix
                for p in (folder / "blobs").rglob("*")
                if p.is_file()
            ),
            "leftovers": [str(p) for p in folder.rglob("*.part*")],
        }


def check_same(calm: dict[str, Any], stormy: dict[str, Any]) -> None:
    # Every sequence merged once: the merged units lie end to end, and nothing else is consumed.
    for _, start, stop in stormy["merged"]:
        assert start < stop
    ends = [stop for _, _, stop in stormy["merged"]]
    assert [start for _, start, _ in stormy["merged"]] == [0, *ends[:-1]]
    assert stormy["leftovers"] == []
    assert stormy == calm
