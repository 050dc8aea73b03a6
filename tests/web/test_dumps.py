"""Dumps: whole, of one head, without those who were forgotten; offered as files, and only so."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger.cli import cli
from ledger.export import export_tiles
from ledger.exports.dumps import cell, newest_dump, plain, write_dump
from ledger.exports.loading import from_database
from ledger.exports.tables import COLUMNS
from ledger.leaderboard.app import create_app
from ledger.schema import ErasedProfile, Profile
from ledger.standing import anonymous, standings
from protocol.errors import UsageError

NUMBERS = "microcredits"


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


@pytest.fixture
def dumped(crowded: Any, dumps: Path) -> Path:
    """A dump, made by the command."""
    result = CliRunner().invoke(cli, ["dump", "--db", crowded.url, "--out", str(dumps)])
    assert result.exit_code == 0, result.output
    newest = newest_dump(dumps)
    assert newest is not None
    assert str(newest) in result.output
    return newest


@pytest.fixture
def offering(crowded: Any, dumps: Path) -> Iterator[TestClient]:
    with TestClient(create_app(crowded.url, dumps=dumps)) as client:
        yield client


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_totals_of_everybody_are_the_runs(dumped: Path, crowded: Any) -> None:
    with Session(crowded.engine) as session:
        board, _, note = from_database(session)
    donors = _rows(dumped, "donors")
    for status in ("pending", "final", "forfeited", "unpaid"):
        name = f"{status}_microcredits"
        shown = sum(row[name] for row in donors) + getattr(anonymous(board), name)
        assert shown == getattr(board.total, name)
        assert shown == sum(
            row["microcredits"] for row in _rows(dumped, "credits") if row["status"] == status
        )
    assert [row["donor"] for row in donors] == [person.owner for person in standings(board)]
    about = json.loads((dumped / "dump.json").read_text())
    assert about["size"] == crowded.size()
    assert (dumped / "checkpoint").read_text() == note


def test_both_forms_say_the_same(dumped: Path) -> None:
    for name in COLUMNS:
        _check_forms(dumped, name)


def _check_forms(dumped: Path, name: str) -> None:
    rows = _rows(dumped, name)
    assert rows
    assert all(tuple(row) == COLUMNS[name] for row in rows)
    data = (dumped / f"{name}.csv").read_bytes()
    assert data.count(b"\r\n") == len(rows) + 1
    read = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert [set(row) for row in read] == [set(COLUMNS[name])] * len(rows)
    for row, line in zip(rows, read, strict=True):
        for column, value in row.items():
            if isinstance(value, str):
                assert plain(line[column]) == value
                assert not line[column].startswith(("=", "+", "-", "@"))
            elif isinstance(value, list):
                assert line[column].split() == value
            else:
                assert line[column] == ("" if value is None else str(int(value)))


def test_visibility_is_kept(dumped: Path, ledger_history: ModuleType) -> None:
    cleo = ledger_history.identity("cleo").peer_id
    for name in ("pledges", "donations"):
        seen = {(row["visibility"], row["donor"]) for row in _rows(dumped, name)}
        assert seen == {("public", cleo), ("private", None)}


def test_who_was_erased_is_a_tombstone_and_nothing_else(
    dumped: Path, crowded: Any, dumps: Path, ledger_history: ModuleType
) -> None:
    key = ledger_history.identity
    bob, cleo = key("bob").peer_id, key("cleo").peer_id
    assert [row["subject"] for row in _rows(dumped, "erased")] == [bob]
    by_donor = {row["donor"]: row for row in _rows(dumped, "donors")}
    assert by_donor[bob]["erased_at_s"] == crowded.now_s
    assert by_donor[bob]["name"] is None
    assert by_donor[cleo]["name"].startswith("=HYPERLINK")
    assert by_donor[cleo]["erased_at_s"] is None
    with Session(crowded.engine) as session, session.begin():
        session.delete(session.get_one(Profile, cleo))
        session.merge(ErasedProfile(subject=cleo, erased_at_s=crowded.now_s + 1))
    result = CliRunner().invoke(cli, ["dump", "--db", crowded.url, "--out", str(dumps)])
    assert result.exit_code == 0, result.output
    newer = newest_dump(dumps)
    assert newer is not None
    assert newer != dumped
    for file in newer.rglob("*"):
        if file.is_file():
            assert b"HYPERLINK" not in file.read_bytes()
    assert {row["subject"] for row in _rows(newer, "erased")} == {bob, cleo}


def test_persons_are_one_row_with_all_their_keys(dumped: Path, ledger_history: ModuleType) -> None:
    new = ledger_history.identity("ada-new").peer_id
    old = ledger_history.identity("ada").peer_id
    by_donor = {row["donor"]: row for row in _rows(dumped, "donors")}
    assert old not in by_donor
    assert by_donor[new]["keys"] == [new, old]
    assert by_donor[new]["final_microcredits"] > 0


def test_the_same_head_gives_the_same_bytes_from_a_mirror_too(
    dumped: Path, crowded: Any, tmp_path: Path
) -> None:
    tiles, out = tmp_path / "tiles", tmp_path / "other"
    with Session(crowded.engine) as session:
        export_tiles(session, tiles)
    result = CliRunner().invoke(cli, ["dump", "--dir", str(tiles), "--out", str(out)])
    assert result.exit_code == 0, result.output
    again = newest_dump(out)
    assert again is not None
    assert (again / "SHA256SUMS").read_text() == (dumped / "SHA256SUMS").read_text()


def test_sums_cover_every_file(dumped: Path) -> None:
    lines = (dumped / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    found = {str(path.relative_to(dumped)) for path in dumped.rglob("*") if path.is_file()}
    assert set(listed) == found - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((dumped / name).read_bytes()).hexdigest() == digest


def test_a_dump_that_fails_leaves_the_old_one(
    dumped: Path, crowded: Any, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ledger.exports.dumps.write_boinc", full)
    result = CliRunner().invoke(cli, ["dump", "--db", crowded.url, "--out", str(dumps)])
    assert isinstance(result.exception, UsageError)
    assert "No space left" in str(result.exception)
    assert newest_dump(dumps) == dumped
    assert list(dumps.iterdir()) == [dumped]


def test_old_dumps_and_what_a_killed_one_left_are_dropped(crowded: Any, dumps: Path) -> None:
    with Session(crowded.engine) as session:
        loaded = from_database(session)
    (dumps / ".20200101T000000.000000Z.partial").mkdir(parents=True)
    made = [
        write_dump(*loaded, dumps, now=datetime(2026, 1, day, tzinfo=UTC)) for day in range(1, 5)
    ]
    assert sorted(dumps.iterdir()) == made[-2:]


@settings(deadline=None)
@given(st.text(max_size=40))
@example("=1+1")
@example("'=1+1")
@example("''")
@example("\uff1d1")
def test_a_text_comes_back_from_csv_as_it_was(text: str) -> None:
    shown = cell(text)
    assert isinstance(shown, str)
    assert plain(shown) == text
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))


def test_the_site_offers_the_newest_dump(dumped: Path, offering: TestClient, crowded: Any) -> None:
    page = offering.get("/dumps/")
    assert page.status_code == 200
    assert f"{crowded.size():,}" in page.text or str(crowded.size()) in page.text
    for name in ("donors.jsonl", "credits.csv", "SHA256SUMS", "boinc/user.gz", "dump.json"):
        assert f'href="/dumps/{name}"' in page.text
        answer = offering.get(f"/dumps/{name}")
        assert answer.status_code == 200
        assert answer.content == (dumped / name).read_bytes()
        assert answer.headers["access-control-allow-origin"] == "*"
        again = offering.get(f"/dumps/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    part = offering.get("/dumps/credits.csv", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, (dumped / "credits.csv").read_bytes()[:10])
    assert offering.get("/boinc/user.gz").content == (dumped / "boinc/user.gz").read_bytes()
    assert offering.head("/boinc/tables.xml").headers["content-type"].startswith("application/xml")


def test_only_listed_files_are_given(dumped: Path, offering: TestClient) -> None:
    for path in (
        "/dumps/../ledger.db",
        "/dumps/%2e%2e/%2e%2e/ledger.db",
        "/dumps//etc/passwd",
        "/dumps/boinc/../../../ledger.db",
        "/dumps/boinc",
        "/dumps/%00",
        "/boinc/..%2fdonors.csv",
        "/boinc/none.gz",
    ):
        assert offering.get(path).status_code == 404, path


def test_without_dumps_the_site_says_what_to_do(client: TestClient, offering: TestClient) -> None:
    assert "ledger serve --dumps" in client.get("/dumps/").text
    assert client.get("/boinc/user.gz").status_code == 404
    assert "ledger dump" in offering.get("/dumps/").text
