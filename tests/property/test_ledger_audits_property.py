"""Random histories of audits: no amount is negative, none appears, none vanishes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import astuple
from types import ModuleType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from ledger.fold import fold
from ledger.log import read_leaves
from protocol.errors import BadRecord

POLICY = {
    "p_min": 1.0,
    "probation_passes": 3,
    "pending_contributions": 2,
    "pending_s": 1200.0,
    "last_pending_s": 3000.0,
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["settle", "judge", "draw", "final", "reverse", "appeal", "wait"]),
        st.integers(0, 2),
        st.sampled_from(["passed", "passed", "failed", "failed", "unavailable", "overturned"]),
    ),
    max_size=40,
)


class _Audited:
    """An organiser that takes one step after another, as far as the fold lets it."""

    def __init__(self, history: Any) -> None:
        self.history = history
        with Session(history.engine) as session:
            self.leaves = list(read_leaves(session, 0, history.size()))
        self.board = fold(self.leaves)

    def take(self, leaf: Any) -> None:
        """Append a leaf, unless it contradicts what there is: then nothing changes."""
        data, before = leaf.canonical(), astuple(self.board.total)
        try:
            self.board.apply(data)
        except BadRecord:
            assert astuple(self.board.total) == before
        else:
            self.leaves.append(data)

    def step(self, what: str, worker: int, verdict: str) -> None:
        history, credits = self.history, self.board.accounts.credits
        donor = history.workers[worker][1]
        mine = [c for c in credits.values() if c.leaf.donor == donor]
        if what == "wait":
            history.now_s += 1500
        elif what == "settle":
            for leaf in history.settled_leaves({worker: 1 + worker, (worker + 1) % 3: 2}):
                self.take(leaf)
        elif what == "draw":
            self.take(history.draw_leaf(self.board.audits.chain.newest_round + 1))
        elif what in ("judge", "appeal"):
            said = {"why": "appeal"} if what == "appeal" else {}
            for round_ in range(history.round):
                name = hashlib.sha256(f"{len(self.leaves)} {round_}".encode()).digest()
                self.take(
                    history.verdict_leaf(
                        round_,
                        worker,
                        "overturned" if what == "appeal" else verdict,
                        record_digest=name,
                        **said,
                    )
                )
        elif what == "final":
            for credit in mine:
                self.take(history.final_leaf(worker, [credit.index]))
        if what in ("reverse", "appeal"):
            self._reverse(worker, mine, restored=what == "appeal")

    def _reverse(self, worker: int, mine: list[Any], restored: bool) -> None:
        for verdict_leaf in list(self.board.audits.judgements)[-4:]:
            for credit in mine:
                self.take(
                    self.history.reversal_leaf(
                        worker,
                        [credit.index],
                        verdict_leaf,
                        restored=restored,
                        microcredits=credit.leaf.microcredits,
                    )
                )


def _numbers(board: Any) -> dict[str, tuple[int, ...]]:
    """Every amount that is shown anywhere."""
    tallies = {
        "total": board.total,
        **{f"donor {key}": donor.tally for key, donor in board.donors.items()},
        **{f"device {key}": worker.tally for key, worker in board.workers.items()},
        **{f"round {number}": tally for number, tally in board.credited.items()},
    }
    return {name: astuple(tally) for name, tally in tallies.items()}


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_credit_changes_its_status_and_never_appears_or_vanishes(
    ledger_history: ModuleType, make_manifest: Any, steps: list[Any]
) -> None:
    config = make_manifest().model_config_json
    manifest = make_manifest(
        model_config_json={**config, "hidden_size": 512, "num_hidden_layers": 8},
        verification=POLICY,
    )
    history = ledger_history.History(manifest)
    history.open()
    for number in range(3):
        history.enrol(f"worker{number}", donor=f"donor{number % 2}")
    audited = _Audited(history)
    for what, worker, verdict in [("settle", 0, "passed"), *steps]:
        audited.step(what, worker, verdict)
        board = audited.board
        for tally in (board.total, *board.credited.values()):
            assert min(astuple(tally)) >= 0
        for tallies in (
            [donor.tally for donor in board.donors.values()],
            [worker.tally for worker in board.workers.values()],
            list(board.credited.values()),
        ):
            columns = zip(*map(astuple, tallies), strict=True)
            assert tuple(map(sum, columns)) == astuple(board.total)
        total = board.total
        assert total.total_microcredits + total.forfeited_microcredits + (
            total.unpaid_microcredits
        ) == (
            total.training_microcredits + total.reducing_microcredits + total.probation_microcredits
        )
        by_status: dict[str, int] = defaultdict(int)
        for credit in board.accounts.credits.values():
            by_status[credit.status] += credit.leaf.microcredits
        for status, amount in by_status.items():
            assert getattr(total, f"{status}_microcredits") == amount
    history.close()
    again = fold(audited.leaves)
    assert _numbers(again) == _numbers(audited.board)
    assert again.audits.verdicts == audited.board.audits.verdicts
    assert again.audits.unaudited == audited.board.audits.unaudited >= 0
