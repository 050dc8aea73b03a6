"""A donor's own look at a certificate: it agrees with the record's, and no changed file passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from click.testing import CliRunner
from sqlalchemy.orm import Session

from barnraise import cli as barnraise
from ledger.exports.certificate import check_certificate
from ledger.exports.certify import count_parts, make_certificate, states_of
from ledger.fold import fold
from ledger.log import latest_head, read_leaves
from protocol.audit_policy import Verdict
from protocol.errors import BadRecord, PeerFault, ProtocolError
from protocol.identity import Identity
from worker.donor import certificate
from worker.donor.certificate import check, fetch_certificate

ADA, BOB = 0, 1
Change = Callable[[dict[str, Any]], object]


def made(history: Any, worker: int) -> bytes:
    with Session(history.engine) as session:
        head = latest_head(session)
        assert head is not None
        board = fold(read_leaves(session, 0, head.tree_size))
        subject = board.people.owner_of(history.workers[worker][1])
        keys = board.people.keys_of(subject)
        return make_certificate(
            session,
            head.checkpoint,
            states_of(session, board, keys=keys, part=1),
            subject=subject,
            keys=keys,
            part=1,
            parts=count_parts(session, keys, board.size),
        ).dump()


@pytest.fixture
def judged(history: Any) -> Any:
    """Credit that is final, pending, unpaid and forfeited."""
    history.judge(0, ADA)
    history.judge(0, BOB, Verdict.UNAVAILABLE, reason="nobody_answers")
    history.reverse(BOB, history.credits_of(BOB, 0), history.size() - 1, reason="unavailable")
    history.judge(2, ADA)
    history.publish_draw(0)
    history.publish_draw(2)
    history.now_s += 8 * 86_400
    history.finish(ADA, history.credits_of(ADA, 0))
    history.settle({ADA: 4, 2: 3})
    return history


def test_it_says_what_the_record_says(judged: Any) -> None:
    for worker in (ADA, BOB):
        data, root = made(judged, worker), judged.manifest.root
        mine, theirs = check(data, root), check_certificate(data, root)
        assert (mine.subject, mine.keys, mine.head) == (theirs.subject, theirs.keys, theirs.head)
        assert mine.total("final") == theirs.totals["final_microcredits"]
        assert mine.total("pending") == theirs.totals["pending_microcredits"]
        lost = theirs.totals["forfeited_microcredits"] + theirs.totals["unpaid_microcredits"]
        assert mine.total("taken back") == lost
        assert mine.credits.keys() == theirs.credits.keys()


def test_no_leaf_can_be_changed_left_out_or_moved(judged: Any) -> None:
    honest, root = json.loads(made(judged, ADA)), judged.manifest.root
    for number, entry in enumerate(honest["leaves"]):
        for change in (
            {**entry, "leaf": {**entry["leaf"], "at_s": entry["leaf"]["at_s"] + 1}},
            {**entry, "index": entry["index"] + 1},
            {"index": entry["index"]},
            None,
        ):
            leaves = honest["leaves"][:number] + [change] * (change is not None)
            forged = {**honest, "leaves": leaves + honest["leaves"][number + 1 :]}
            with pytest.raises(PeerFault):
                check(rfc8785.dumps(forged), root)


def _more_credit(raw: dict[str, Any]) -> None:
    credit = next(e["leaf"] for e in raw["leaves"] if e["leaf"]["kind"] == "credit")
    credit["microcredits"] += 1


CHANGES: dict[str, Change] = {
    "more credit": _more_credit,
    "somebody else": lambda raw: raw.update(subject=Identity.generate().peer_id),
    "a key too many": lambda raw: raw["keys"].append(Identity.generate().peer_id),
    "no key": lambda raw: raw.update(keys=[]),
    "keys of numbers": lambda raw: raw.update(keys=[1]),
    "no head": lambda raw: raw.pop("checkpoint"),
    "another head": lambda raw: raw.update(checkpoint="example.org/other\n1\nAAAA\n\n— x AAAA\n"),
    "no delegations": lambda raw: raw.update(delegations=None),
    "empty delegations": lambda raw: raw["delegations"].update(delegations=[]),
    "too many delegations": lambda raw: raw["delegations"].update(delegations=["AA=="] * 1001),
    "proof cut": lambda raw: raw["proof"].pop(),
    "proof longer": lambda raw: raw["proof"].append(raw["proof"][0]),
    "proof of text": lambda raw: raw.update(proof="x"),
    "no leaves": lambda raw: raw.update(leaves=[]),
    "no run": lambda raw: raw["leaves"].pop(0),
    "a part of no number": lambda raw: raw.update(part="1"),
    "another format": lambda raw: raw.update(format="barnraise-certificate/2"),
}


def test_a_changed_certificate_proves_nothing(judged: Any) -> None:
    honest, passed = made(judged, ADA), []
    for name, change in CHANGES.items():
        raw = json.loads(honest)
        change(raw)
        try:
            check(rfc8785.dumps(raw), judged.manifest.root)
        except PeerFault:
            continue
        passed.append(name)
    assert passed == []


@pytest.mark.parametrize("data", [b"", b"[]", b"{" * 50_000, b"\xff", b"null"])
def test_what_is_no_certificate_is_said_so(data: bytes) -> None:
    with pytest.raises(BadRecord, match="not a certificate"):
        check(data, "root")


def test_the_command_checks_offline(judged: Any, tmp_path: Path) -> None:
    file, root = tmp_path / "ada.json", judged.manifest.root
    file.write_bytes(made(judged, ADA))
    command = ["donor", "certificate", "check", str(file), "--root"]
    done = CliRunner().invoke(barnraise, [*command, root])
    assert done.exit_code == 0, done.output
    assert "genuine" in done.output
    facts = json.loads(CliRunner().invoke(barnraise, [*command, root, "--json"]).output)
    assert facts["subject"] == judged.workers[ADA][1]
    assert facts["credits"] > 0
    for wrong in (Identity.generate().peer_id, "nonsense"):
        assert isinstance(CliRunner().invoke(barnraise, [*command, wrong]).exception, ProtocolError)


@pytest.mark.parametrize("keys", [[], ["Ada\n\x1b[2J"]], ids=["no key", "itself"])
def test_who_is_no_key_has_no_certificate(history: Any, keys: list[str]) -> None:
    """Its name would be printed, as somebody whose nothing is genuine."""
    history.enrol("new")
    raw = json.loads(made(history, 3))
    raw |= {"subject": "Ada\n\x1b[2J", "keys": keys}
    with pytest.raises(BadRecord):
        check(rfc8785.dumps(raw), history.manifest.root)


def test_a_site_cannot_give_another_persons(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "fetch", lambda *_, **__: made(judged, BOB))
    root, (ada, bob) = judged.manifest.root, (judged.workers[w][1] for w in (ADA, BOB))
    assert fetch_certificate("https://site", bob, root) == [made(judged, BOB)]
    with pytest.raises(BadRecord, match="somebody else"):
        fetch_certificate("https://site", ada, root)


def test_a_site_cannot_give_one_part_for_all(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rfc8785.dumps({**json.loads(made(judged, ADA)), "parts": 3})
    monkeypatch.setattr(certificate, "fetch", lambda *_, **__: first)
    with pytest.raises(BadRecord, match="another part"):
        fetch_certificate("https://site", judged.workers[ADA][1], judged.manifest.root)
