"""What a volunteer reads and keeps: the status panel, receipts as files."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from protocol.errors import UsageError
from worker.config import Home
from worker.journal import Journal
from worker.receipts import save_receipts
from worker.status import AWAY, Board, Phase
from worker.view import status_view


def shown(board: Board) -> str:
    out = StringIO()
    Console(file=out, width=80).print(status_view(board.snapshot()))
    return out.getvalue()


@pytest.mark.parametrize(
    ("phase", "reason", "paused", "expected"),
    [
        (Phase.TRAINING, "", False, "training "),
        (Phase.TRAINING, "", True, "training (paused) "),
        (Phase.WAITING, "waiting for the round to close", False, "waiting for the round to close "),
        (Phase.WAITING, "starting", False, "waiting: starting "),
        (Phase.PAUSED, "paused by you", True, "paused by you "),
    ],
)
def test_doing_says_each_thing_once(phase: Phase, reason: str, paused: bool, expected: str) -> None:
    board = Board(worker="w", run="r", paused=paused)
    board.waiting(reason, phase)
    line = next(line for line in shown(board).splitlines() if "doing" in line)
    assert expected in line
    assert line.count("waiting") <= 1
    assert line.count("paused") <= 1


def test_receipts_become_two_files_each(tmp_path: Path) -> None:
    home = Home(tmp_path)
    journal = Journal(home.journal)
    for assignment_id in (b"a" * 16, b"b" * 16):
        journal.expect_receipt(assignment_id, 3, 64, patience_s=0)
    journal.keep_receipt(b"a" * 16, b'{"v":1}', "the proof — \n")
    journal.close()

    save_receipts(home, tmp_path / "new" / "receipts")

    files = {file.name: file.read_bytes() for file in (tmp_path / "new" / "receipts").iterdir()}
    name = (b"a" * 16).hex()  # the other one is awaited
    assert files == {f"{name}.json": b'{"v":1}', f"{name}.tlog-proof": "the proof — \n".encode()}


def test_no_receipts_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="never run"):
        save_receipts(Home(tmp_path), tmp_path / "receipts")


def test_while_the_coordinator_is_away_that_is_the_one_reason() -> None:
    board = Board(worker="w", run="r")
    board.waiting("waiting for the round to close")
    board.heard_of_coordinator(False)
    assert "the coordinator does not answer" in " ".join(shown(board).split())
    assert (board.snapshot()["phase"], board.snapshot()["reason"]) == ("waiting", AWAY)
    for phase in (Phase.COMMITTING, Phase.FETCHING):
        board.at_work(phase)
        assert board.snapshot()["reason"] == AWAY
    board.at_work(Phase.TRAINING)  # goes on without it
    assert (board.snapshot()["phase"], board.snapshot()["reason"]) == ("training", "")
    board.waiting("paused by you", Phase.PAUSED)
    assert board.snapshot()["reason"] == "paused by you"
    board.heard_of_coordinator(True)
    board.waiting("waiting for the round to close")
    assert board.snapshot()["reason"] == "waiting for the round to close"


def test_a_swarm_that_cannot_be_reached_is_told_in_place_of_the_peers() -> None:
    board = Board(worker="w", run="r", peers=7)
    assert "7 in the last reduce" in shown(board)
    board.swarm_problem = "the peer-to-peer daemon does not come back"
    assert "does not come back" in " ".join(shown(board).split())
