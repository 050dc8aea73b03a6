"""A record of audits that somebody edited: ``ledger verify`` refuses it, whoever signs the lie."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from click.testing import CliRunner
from sqlalchemy.orm import Session

from ledger.cli import cli
from ledger.fold import fold
from ledger.log import read_leaves
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.audit_policy import Verdict, Why
from protocol.errors import BadRecord, ProtocolError
from protocol.identity import Identity

ADA, BOB, LAPTOP = 0, 1, 2
STRANGER = Identity.from_seed(b"s" * 32).peer_id
KINDS = ("draw", "verdict", "final", "reversal", "block")
FIRST = {"run": 0, "credit": 4, "draw": 16, "verdict": 14, "final": 18, "reversal": 20, "block": 21}


@pytest.fixture
def audited(history: Any) -> Any:
    """Leaves 0-13 are the history's; then what is listed in ``FIRST``."""
    history.judge(0, ADA)
    history.judge(0, BOB, Verdict.INCONCLUSIVE)
    history.publish_draw(0)
    history.publish_draw(2)
    history.now_s += 8 * 86_400
    history.finish(ADA, history.credits_of(ADA, 0))
    failed = history.judge(2, BOB, Verdict.FAILED)
    history.reverse(BOB, sorted(history.credits_of(BOB) + history.credits_of(LAPTOP)), failed)
    history.block(BOB)
    over = history.judge(2, BOB, Verdict.OVERTURNED, why=Why.APPEAL)
    history.reverse(BOB, history.credits_of(BOB, 0), over, restored=True)
    return history


@pytest.fixture
def leaves(audited: Any) -> list[dict[str, Any]]:
    with Session(audited.engine) as session:
        return [json.loads(data) for data in read_leaves(session, 0, audited.size())]


def run_verify(database: Path, *options: str) -> Any:
    return CliRunner().invoke(cli, ["verify", "--db", f"sqlite:///{database}", *options])


def test_the_report_counts_audits(audited: Any, tmp_path: Path, leaves: Any) -> None:
    assert all(leaves[index]["kind"] == kind for kind, index in FIRST.items())
    audited.settle({ADA: 1})
    result = run_verify(tmp_path / "ledger.db", "--root", audited.manifest.root)
    assert result.exit_code == 0, result.exception
    said = " ".join(result.stdout.split())
    assert "draws 2 checked, 1 not published yet" in said
    assert "audits 5 contributions selected by them, 2 open" in said
    assert "verdicts 1 passed, 1 failed, 1 inconclusive, 0 unavailable, 1 other" in said
    with Session(audited.engine) as session:
        report = verify(DatabaseSource(session), root=audited.manifest.root)
    assert report.audits.audited_tokens == 20 * audited.manifest.tokens_per_step
    credited = sum(leaf["microcredits"] for leaf in leaves if leaf["kind"] == "credit")
    assert credited + sum(
        audited.credit_leaf(index).microcredits for index in audited.credits_of(ADA, 3)
    ) == (
        report.pending_microcredits
        + report.final_microcredits
        + report.forfeited_microcredits
        + report.unpaid_microcredits
    )
    assert report.forfeited_microcredits > 0
    assert "final credit" in said
    assert json.loads(run_verify(tmp_path / "ledger.db", "--json").stdout)["audits"]["draws"] == 2


def _changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return value[:-1] or [value[0] + 1]
    if value is None:
        return 7
    return ("0" if value[0] != "0" else "1") + value[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_can_be_edited_unseen(
    audited: Any, leaves: list[dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    index, database = FIRST[kind], tmp_path / "ledger.db"
    honest = leaves[index]
    with sqlite3.connect(database) as connection:
        for field, value in honest.items():
            lie = rfc8785.dumps({**honest, field: _changed(value)})
            connection.execute("UPDATE log_leaf SET data = ? WHERE leaf_index = ?", (lie, index))
            connection.commit()
            error = run_verify(database).exception
            assert isinstance(error, ProtocolError), field
            assert str(index) in str(error), field
        data = rfc8785.dumps(honest)
        connection.execute("UPDATE log_leaf SET data = ? WHERE leaf_index = ?", (data, index))
    assert run_verify(database).exception is None
    connection.close()


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("run", {"draw_tip": "0" * 64}, "does not lead to the run's tip"),
        ("run", {"draw_rounds": 2}, "no draw for round 2"),
        ("credit", {"audit_ppm": 50_000}, "the policy asks for 1000000"),
        ("credit", {"execution": "cuda"}, "other work than its assignment"),
        ("credit", {"work": "probation"}, "did not pass"),
        ("draw", {"round": 1}, "credited nobody"),
        ("draw", {"round": 2}, "does not lead"),
        ("draw", {"preimage": "0" * 64}, "does not lead"),
        ("verdict", {"round": 2}, "other work"),
        ("verdict", {"worker": STRANGER}, "not enrolled"),
        ("verdict", {"execution": "cuda"}, "other work"),
        ("verdict", {"assignment_id": "0" * 32}, "never credited"),
        ("verdict", {"verdict": "failed"}, "convicts its donor"),
        ("verdict", {"verdict": "unavailable"}, "its audit said unavailable"),
        ("verdict", {"verdict": "overturned"}, "does not stand"),
        ("verdict", {"subject": "probation"}, "other work"),
        ("final", {"at_s": 1_700_000_600}, "is not 86400 s old"),
        ("final", {"at_s": 1_700_100_000}, "only 1 later contributions"),
        ("final", {"donor": STRANGER}, "another donor's"),
        ("final", {"credits": [3]}, "is no credit"),
        ("reversal", {"microcredits": 1}, "its credits are"),
        ("reversal", {"verdict_leaf": 14}, "takes nothing back"),
        ("reversal", {"verdict_leaf": 4}, "is no verdict"),
        ("reversal", {"restored": True}, "no verdict took"),
        ("reversal", {"donor": STRANGER}, "another donor's"),
        ("reversal", {"kind": "final"}, "unknown field"),
        ("block", {"key": "nobody"}, "key"),
    ],
)
def test_a_lie_is_found_even_when_the_log_key_signs_it(
    leaves: list[dict[str, Any]], kind: str, change: dict[str, Any], words: str
) -> None:
    leaves[FIRST[kind]].update(change)
    with pytest.raises(BadRecord, match=words):
        fold(map(rfc8785.dumps, leaves))


Forgery = Callable[[list[dict[str, Any]]], None]


def _drop(kind: str) -> Forgery:
    def forge(leaves: list[dict[str, Any]]) -> None:
        del leaves[FIRST[kind]]

    return forge


def _repeat(kind: str, **change: Any) -> Forgery:
    def forge(leaves: list[dict[str, Any]]) -> None:
        leaves.append({**leaves[FIRST[kind]], **change})

    return forge


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (_repeat("draw"), "draws for round 0 after round 2"),
        (_repeat("verdict"), "recorded before"),
        (_repeat("verdict", record_digest="0" * 64), "judges the same work twice"),
        (_repeat("final"), "it is final"),
        (_repeat("reversal"), "which is forfeited"),
        (_repeat("credit"), "twice"),
        (_drop("draw"), "credit of leaf 4 final: the draw of round 0 is not published"),
        (_drop("verdict"), "the draw chose it for an audit, and there is no verdict"),
    ],
)
def test_leaves_that_are_repeated_or_left_out_are_missed(
    leaves: list[dict[str, Any]], forge: Forgery, words: str
) -> None:
    del leaves[FIRST["block"] :]  # what comes after would be refused for its own reasons
    forge(leaves)
    with pytest.raises(BadRecord, match=words):
        fold(map(rfc8785.dumps, leaves))
