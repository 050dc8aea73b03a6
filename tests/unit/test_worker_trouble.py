"""A line for each change, none for each try; and what was credited, counted."""

from __future__ import annotations

import json
from pathlib import Path

from structlog.testing import capture_logs

from protocol.errors import RateLimited, TransientError
from worker.journal import Journal
from worker.receipts import _show_credit
from worker.status import Board
from worker.trouble import Trouble


def test_a_problem_is_told_when_it_begins_and_when_it_is_another() -> None:
    trouble = Trouble("cannot")
    with capture_logs() as lines:
        for number in range(5):
            trouble.tell(TransientError(f"try {number}"))
        trouble.tell(RateLimited("too many"))
        trouble.tell(RateLimited("too many still"))
        trouble.over()
        trouble.over()
        trouble.tell(RateLimited("again"))
        trouble.tell(TimeoutError())
    assert [line["problem"] for line in lines] == [
        "try 0",
        "too many",
        "again",
        "no answer in time",
    ]
    assert {line["event"] for line in lines} == {"cannot"}


def test_credit_is_counted_as_verified_pending_and_rejected(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for number, patience_s in enumerate((600, 600, 600, -1)):
        journal.expect_receipt(bytes([number]) * 16, 3, 64, patience_s=patience_s)
    for number, microcredits in enumerate((100, 23)):
        leaf = json.dumps({"microcredits": microcredits}).encode()
        journal.keep_receipt(bytes([number]) * 16, leaf, "proof")
    board = Board("w", "r")
    _show_credit(journal, board)
    journal.close()
    assert (board.receipts_held, board.receipts_pending) == (2, 1)
    assert board.parts["credit"] == {"verified_microcredits": 123, "rejected_units": 1}
