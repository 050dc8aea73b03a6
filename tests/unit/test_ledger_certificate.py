"""Certificates: what is in them is checked to the unit, and whatever was changed is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from click.testing import CliRunner
from sqlalchemy.orm import Session

from barnraise import main
from ledger.cli import cli
from ledger.exports import certify
from ledger.exports.certificate import Certificate, check_certificate
from ledger.exports.certify import State, count_parts, make_certificate, states_of
from ledger.fold import Board, fold
from ledger.log import latest_head, read_leaves
from protocol.audit_policy import Verdict
from protocol.errors import BadDigest, BadRecord, BadSignature, ProtocolError

ADA, BOB, LAPTOP = 0, 1, 2
Change = Callable[[dict[str, Any]], None]


def _certificate(history: Any, worker: int, part: int = 1) -> tuple[Board, Certificate]:
    with Session(history.engine) as session:
        head = latest_head(session)
        assert head is not None
        board = fold(read_leaves(session, 0, head.tree_size))
        subject = board.people.owner_of(history.workers[worker][1])
        keys = board.people.keys_of(subject)
        made = make_certificate(
            session,
            head.checkpoint,
            states_of(session, board, keys=keys, part=part),
            subject=subject,
            keys=keys,
            part=part,
            parts=count_parts(session, keys, board.size),
        )
    return board, made


@pytest.fixture
def judged(history: Any) -> Any:
    """Credit of every status."""
    history.judge(0, ADA)
    history.judge(0, BOB, Verdict.UNAVAILABLE, reason="nobody_answers")
    history.reverse(BOB, history.credits_of(BOB, 0), history.size() - 1, reason="unavailable")
    history.judge(2, ADA)
    history.publish_draw(0)
    history.publish_draw(2)
    history.now_s += 8 * 86_400
    history.finish(ADA, history.credits_of(ADA, 0))
    failed = history.judge(2, BOB, Verdict.FAILED, reason="differs")
    history.reverse(BOB, sorted(history.credits_of(BOB, 2) + history.credits_of(LAPTOP)), failed)
    history.settle({ADA: 4, LAPTOP: 3})
    return history


@pytest.mark.parametrize("worker", [ADA, BOB])
def test_totals_are_those_of_the_fold(judged: Any, worker: int) -> None:
    board, made = _certificate(judged, worker)
    proven = check_certificate(made.dump(), judged.manifest.root)
    tally = board.donors[made.subject].tally
    assert proven.totals == {name: getattr(tally, name) for name in proven.totals}
    assert proven.head.size == judged.size()
    assert len(proven.credits) == len(
        [c for c in board.accounts.credits.values() if c.leaf.donor == made.subject]
    )


def test_a_donor_without_credit_has_a_certificate_of_nothing(judged: Any) -> None:
    judged.enrol("new")
    _, made = _certificate(judged, 3)
    assert set(check_certificate(made.dump(), judged.manifest.root).totals.values()) == {0}


@pytest.mark.parametrize("value", ["1e999", "9007199254740993", '"\\ud800"'])
def test_what_has_no_canonical_form_is_refused(judged: Any, value: str) -> None:
    raw = _certificate(judged, ADA)[1].dump().decode()
    for before in ('"delegations":{', '"leaf":{'):
        bent = raw.replace(before, f'{before}"a":{value},', 1)
        assert bent != raw
        with pytest.raises(BadRecord):
            check_certificate(bent.encode(), judged.manifest.root)


@pytest.mark.parametrize(
    "said",
    [
        {"parts": 1 << 50},
        {"part": 1 << 50},
        {"claims": {"x\n\x1b[2Jgenuine: all of it": 1}},
        {"claims": {f"{letter}_microcredits": 1 for letter in "abcdefghijklmnopqrstuvwxyz"}},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_no_leaf_proves_is_bounded_before_it_is_told(
    judged: Any, said: dict[str, Any]
) -> None:
    """Parts that are not here are listed, and claims printed, on a reader's terminal."""
    bent = rfc8785.dumps({**json.loads(_certificate(judged, ADA)[1].dump()), **said})
    with pytest.raises(BadRecord):
        check_certificate(bent, judged.manifest.root)


def test_a_long_history_comes_in_parts_that_add_up(
    judged: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(certify, "CREDITS_PER_PART", 2)
    board, first = _certificate(judged, ADA)
    assert first.parts > 1
    files = []
    for part in range(1, first.parts + 1):
        files.append(tmp_path / f"{part}.json")
        files[-1].write_bytes(_certificate(judged, ADA, part)[1].dump())
    command = ["certificate", "check", *map(str, files), "--root", judged.manifest.root, "--json"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    totals = json.loads(result.output)["totals"]
    tally = board.donors[first.subject].tally
    assert totals == {name: getattr(tally, name) for name in totals}
    result = CliRunner().invoke(cli, [*command[:3], "--root", judged.manifest.root])
    assert "not here: parts 2" in result.output


def test_what_was_left_out_does_not_show_and_the_command_says_so(
    judged: Any, tmp_path: Path
) -> None:
    """The one lie that no inclusion proof can find: a reversal that is withheld."""
    honest, board = _certificate(judged, BOB)[1], _certificate(judged, BOB)[0]
    donor = honest.subject
    credits = [c for c in board.accounts.credits.values() if c.leaf.donor == donor]
    with Session(judged.engine) as session:
        states = {credit.index: State("pending", None) for credit in credits}
        made = make_certificate(session, honest.checkpoint, states, subject=donor, keys=[donor])
    assert made.totals != honest.totals
    file = tmp_path / "bob.json"
    file.write_bytes(made.dump())
    result = CliRunner().invoke(
        cli, ["certificate", "check", str(file), "--root", judged.manifest.root]
    )
    assert result.exit_code == 0, result.output
    assert "not proven: that no leaf was left out" in result.output


def _entry(raw: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(e for e in raw["leaves"] if e["leaf"]["kind"] == kind)
    return found


def _stranger(raw: dict[str, Any]) -> str:
    """A key in the certificate that is not its subject's: a device's."""
    workers = (e["leaf"]["worker"] for e in raw["leaves"] if e["leaf"]["kind"] == "credit")
    return next(str(worker) for worker in workers if worker != raw["subject"])


def _drop(kind: str) -> Change:
    return lambda raw: raw["leaves"].remove(_entry(raw, kind))


def _change(kind: str, field: str, value: Any) -> Change:
    return lambda raw: _entry(raw, kind)["leaf"].update({field: value})


TAMPERED: dict[str, tuple[type[ProtocolError], Change]] = {
    "total": (BadRecord, lambda raw: raw["totals"].update(final_microcredits=10**9)),
    "total left out": (BadRecord, lambda raw: raw["totals"].pop("tokens")),
    "amount": (BadDigest, _change("credit", "microcredits", 10**9)),
    "tokens": (BadDigest, _change("credit", "tokens", 10**9)),
    "index": (BadDigest, lambda raw: _entry(raw, "credit").update(index=1)),
    "a credit": (BadDigest, _drop("credit")),
    "the run": (BadRecord, _drop("run")),
    "an enrolment": (BadDigest, _drop("enrol")),
    "the verdict": (BadDigest, _drop("verdict")),
    "the newest leaf": (BadRecord, lambda raw: raw["leaves"].pop()),
    "a leaf twice": (BadRecord, lambda raw: raw["leaves"].append(raw["leaves"][0])),
    "a step": (BadDigest, lambda raw: raw["proof"].pop()),
    "a step too many": (BadDigest, lambda raw: raw["proof"].append("A" * 43 + "=")),
    "steps that are none": (BadRecord, lambda raw: raw["proof"].append("?")),
    "subject": (BadRecord, lambda raw: raw.update(subject=raw["delegations"]["run_id"])),
    "more keys": (BadRecord, lambda raw: raw["keys"].append(_stranger(raw))),
    "a key twice": (BadRecord, lambda raw: raw["keys"].append(raw["subject"])),
    "other keys": (
        BadRecord,
        lambda raw: raw.update(keys=[_stranger(raw)], subject=_stranger(raw)),
    ),
    "delegations": (BadSignature, lambda raw: raw.update(delegations=None)),
    "head": (
        BadSignature,
        lambda raw: raw.update(checkpoint=raw["checkpoint"].replace("\n2", "\n3", 1)),
    ),
    "origin": (BadRecord, lambda raw: raw.update(checkpoint="x" + raw["checkpoint"])),
    "format": (BadRecord, lambda raw: raw.update(format="barnraise-certificate/2")),
    "unknown field": (BadRecord, lambda raw: raw.update(more=1)),
    "no leaves": (BadRecord, lambda raw: raw.update(leaves=[])),
    "a float": (BadRecord, lambda raw: _entry(raw, "credit")["leaf"].update(tokens=0.5)),
    "a huge number": (BadRecord, lambda raw: _entry(raw, "credit")["leaf"].update(tokens=1 << 70)),
    "a negative claim": (BadRecord, lambda raw: raw.update(claims={"x": -1})),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_was_changed_is_found(judged: Any, what: str) -> None:
    error, change = TAMPERED[what]
    raw = json.loads(_certificate(judged, BOB)[1].dump())
    change(raw)
    with pytest.raises(error):
        check_certificate(json.dumps(raw).encode(), judged.manifest.root)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_files_that_are_no_certificates_are_refused(data: bytes) -> None:
    with pytest.raises(BadRecord, match="certificate"):
        check_certificate(data, "12D3KooWxx")


def test_another_root_key_refuses_it(judged: Any, ledger_history: Any) -> None:
    made = _certificate(judged, ADA)[1].dump()
    with pytest.raises(BadSignature, match="root key"):
        check_certificate(made, ledger_history.identity("mallory").peer_id)


def test_the_file_is_canonical_and_bounded(judged: Any) -> None:
    made = _certificate(judged, ADA)[1].dump()
    assert rfc8785.dumps(json.loads(made)) == made


def test_a_wrong_file_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    for arguments in ([str(file)], [str(tmp_path / "none.json")]):
        monkeypatch.setattr(
            "sys.argv",
            [
                "barnraise",
                "ledger",
                "certificate",
                "check",
                *arguments,
                "--root",
                judged.manifest.root,
            ],
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code
        assert "Traceback" not in capsys.readouterr().err
