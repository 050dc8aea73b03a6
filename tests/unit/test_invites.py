"""Invitations and approvals, in the database and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select
from sqlalchemy.orm import Session

from barnraise import main
from coordinator import invites
from coordinator.audit.schema import InviteRow
from coordinator.cli import cli
from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.schema import WorkerRow
from ledger.schema import Base
from protocol.errors import NotFound, UsageError

NOW_S = 1_800_000_000.0
DAY_S = 24 * 3600


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    database = Database(f"sqlite:///{tmp_path / 'i.db'}")
    Base.metadata.create_all(database.engine)
    with database.session() as opened:
        yield opened
    database.close()


def waiting(session: Session, name: str, *, approved: bool = False) -> None:
    session.add(
        WorkerRow(
            worker=name,
            donor=name,
            device_class="cpu",
            display_name=name.title(),
            enrolled_at_s=NOW_S,
            approved=approved,
        )
    )
    session.flush()


def test_a_token_admits_as_often_as_it_says(session: Session) -> None:
    token, _ = invites.create(session, uses=2, valid_s=None, now_s=NOW_S)
    for _ in range(2):
        invites.redeem(session, token, NOW_S + 10**9)
    with pytest.raises(UsageError, match="used up"):
        invites.redeem(session, token, NOW_S)


def test_tokens_expire_and_cannot_be_guessed(session: Session) -> None:
    token, _ = invites.create(session, uses=2, valid_s=DAY_S, now_s=NOW_S)
    other, _ = invites.create(session, uses=2, valid_s=DAY_S, now_s=NOW_S)
    assert token != other
    assert len(token) <= invites.MAX_TOKEN_CHARS
    for wrong in ("", token[:-1], token.upper(), f"{token} "):
        with pytest.raises(UsageError, match="not known"):
            invites.redeem(session, wrong, NOW_S)
    invites.redeem(session, token, NOW_S + DAY_S)
    with pytest.raises(UsageError, match="expired"):
        invites.redeem(session, token, NOW_S + DAY_S + 1)


def test_the_database_does_not_hold_the_token(session: Session) -> None:
    token, id_ = invites.create(session, uses=1, note="ada", valid_s=None, now_s=NOW_S)
    row = session.scalars(select(InviteRow)).one()
    assert token.encode() not in row.token_sha256
    assert row.token_sha256.hex().startswith(id_)
    assert invites.listed(session) == [
        {"id": id_, "note": "ada", "uses_left": 1, "expires_at_s": None}
    ]


def test_a_revoked_token_admits_nobody(session: Session) -> None:
    token, id_ = invites.create(session, uses=9, note="ada", valid_s=None, now_s=NOW_S)
    with pytest.raises(NotFound, match="invite list"):
        invites.revoke(session, id_[:3])
    assert invites.revoke(session, id_) == "ada"
    with pytest.raises(UsageError):
        invites.redeem(session, token, NOW_S)
    with pytest.raises(NotFound):
        invites.revoke(session, id_)


def test_spent_invitations_are_forgotten(session: Session) -> None:
    used, _ = invites.create(session, uses=1, valid_s=None, now_s=NOW_S)
    invites.create(session, uses=1, valid_s=1.0, now_s=NOW_S)
    _, kept = invites.create(session, uses=1, valid_s=None, now_s=NOW_S)
    invites.redeem(session, used, NOW_S)
    invites.forget_spent(session, NOW_S + 2)
    assert [row["id"] for row in invites.listed(session)] == [kept]


def test_an_approval_lets_one_key_in_once(session: Session) -> None:
    waiting(session, "ada")
    waiting(session, "bob")
    waiting(session, "cyd", approved=True)
    assert [row["worker"] for row in invites.pending(session)] == ["ada", "bob"]
    assert not invites.redeem_approval(session, "ada", NOW_S)
    assert invites.approve(session, "ada")
    assert not invites.approve(session, "ada")
    assert not invites.approve(session, "cyd")
    assert [row["worker"] for row in invites.pending(session)] == ["bob"]
    assert not invites.redeem_approval(session, "bob", NOW_S)
    assert invites.redeem_approval(session, "ada", NOW_S)
    assert not invites.redeem_approval(session, "ada", NOW_S)
    with pytest.raises(NotFound, match="has not asked"):
        invites.approve(session, "eve")


# ---- command line ----


def run(folder: Path, *arguments: str) -> Result:
    done = CliRunner().invoke(cli, [*arguments, "--run-dir", str(folder)])
    assert done.exit_code == 0, done.output
    return done


def test_the_commands(run_folder: Path) -> None:
    made = json.loads(run(run_folder, "invite", "create", "--uses", "3", "--json").output)
    shown = run(run_folder, "invite", "create", "--note", "class", "--days", "7").output
    assert "--invite inv-" in shown
    listed = run(run_folder, "invite", "list").output
    assert made["id"] in listed
    assert "class" in listed
    assert made["token"] not in listed
    run(run_folder, "invite", "revoke", made["id"])
    assert made["id"] not in run(run_folder, "invite", "list").output

    assert "nobody waits" in run(run_folder, "pending").output
    folder = RunFolder(run_folder)
    database = Database(folder.database_url(folder.settings()))
    with database.session() as opened:
        waiting(opened, "ada")
    database.close()
    assert '"Ada"' in run(run_folder, "pending").output
    assert "approved" in run(run_folder, "approve", "ada").output
    assert json.loads(run(run_folder, "pending", "--json").output) == []


def test_what_does_not_exist_is_a_sentence(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (("invite", "revoke", "0123456789ab"), ("approve", "12D3KooWnobody")):
        command = ["barnraise", "coordinator", *arguments, "--run-dir", str(run_folder)]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "barnraise coordinator" in capsys.readouterr().err
