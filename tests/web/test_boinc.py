"""BOINC's statistics: every element as documented, every text as it was given, to the unit."""

from __future__ import annotations

import gzip
import resource
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from sqlalchemy.orm import Session

from ledger.exports import boinc
from ledger.exports.boinc import MICROCREDITS_PER_COBBLESTONE, cobblestones, write_boinc
from ledger.exports.loading import from_database
from ledger.exports.profiles import Profiles, Shown
from ledger.fold import Board
from ledger.standing import standings
from ledger.tally import Donor

SCHEMA = Path(__file__).parents[2] / "docs" / "boinc" / "statistics.xsd"
NAME = '=HYPERLINK("x"),]]>&<b>\'é'  # Cleo's, in the crowded record
PACKED = ("user", "team", "host", "user_deleted", "host_deleted")


def _export(history: Any, out: Path) -> tuple[Board, Profiles, dict[str, Any]]:
    out.mkdir()
    with Session(history.engine) as session:
        board, profiles, _ = from_database(session)
    write_boinc(board, profiles, out)
    data = {name: gzip.decompress((out / f"{name}.gz").read_bytes()) for name in PACKED}
    data["tables"] = (out / "tables.xml").read_bytes()
    return board, profiles, {name: etree.fromstring(text) for name, text in data.items()}


@pytest.fixture
def exported(crowded: Any, tmp_path: Path) -> tuple[Board, Profiles, dict[str, Any]]:
    return _export(crowded, tmp_path / "boinc")


Exported = tuple[Board, Profiles, dict[str, Any]]


def test_every_file_is_valid(exported: Exported) -> None:
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    for name, tree in exported[2].items():
        assert len(tree), name
        schema.assertValid(tree)


def test_the_schema_tells_wrong_files(exported: Exported) -> None:
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    for name, change in {
        "user": lambda user: user.find("cpid").__setattr__("text", "x"),
        "team": lambda team: team.remove(team.find("userid")),
        "host": lambda host: host.append(etree.Element("secret")),
        "user_deleted": lambda user: user.find("id").__setattr__("text", "-1"),
    }.items():
        tree = exported[2][name]
        change(tree[0])
        assert not schema.validate(tree), name


def test_amounts_are_those_of_the_fold(exported: Exported) -> None:
    board, profiles, files = exported
    shown = [_amount(user, "total_credit") for user in files["user"]]
    final = [
        person.final_microcredits
        for person in standings(board)
        if person.final_microcredits and not profiles.is_erased(person.owner, person.keys)
    ]
    assert sorted(shown) == sorted(_cobblestones(amount) for amount in final)
    tables = files["tables"]
    assert _amount(tables, "total_credit") == _cobblestones(sum(final))
    assert int(tables.findtext("nusers_total")) == len(files["user"]) == len(final)
    assert int(tables.findtext("nhosts_total")) == len(files["host"])
    assert int(tables.findtext("nteams_total")) == len(files["team"]) == 1
    assert int(tables.findtext("nusers_deleted_total")) == len(files["user_deleted"]) == 1
    assert int(tables.findtext("nhosts_deleted_total")) == len(files["host_deleted"]) == 2
    assert int(tables.findtext("update_time")) == board.newest_s
    for record in (*files["user"], *files["host"], *files["team"]):
        total = _amount(record, "total_credit")
        assert 0 <= _amount(record, "expavg_credit") < total
        assert _amount(record, "expavg_time") == board.newest_s


def test_recent_average_halves_in_a_week(crowded: Any, tmp_path: Path) -> None:
    def averages(out: str) -> dict[str, Fraction]:
        files = _export(crowded, tmp_path / out)[2]
        return {u.findtext("id"): _amount(u, "expavg_credit") for u in files["user"]}

    before = averages("before")
    assert all(before.values())
    crowded.now_s += 7 * 86_400 - 600  # a skipped round takes the rest
    crowded.skip()
    after = averages("after")
    for number, average in before.items():
        assert abs(average - 2 * after[number]) <= Fraction(2, 10**6)


def test_names_come_back_as_they_were(exported: Exported) -> None:
    _, _, files = exported
    names = {user.findtext("name") for user in files["user"]}
    assert NAME in names
    team = files["team"][0]
    assert team.findtext("name") == "<&\"']]> team"
    assert team.findtext("url") == "https://example.org/?a=1&b=2"
    assert team.findtext("founder_name").startswith("…")  # the new key has no profile
    cleo = next(user for user in files["user"] if user.findtext("name") == NAME)
    assert cleo.find("has_profile") is not None
    assert cleo.findtext("teamid") == team.findtext("id") == "1"


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_but_for_what_xml_cannot_hold(text: str) -> None:
    record = boinc._record("user", [("name", text)]).encode()
    wanted = boinc._NOT_XML.sub("\ufffd", text)
    assert (etree.fromstring(record).findtext("name") or "") == wanted


def test_who_was_erased_is_among_the_deleted_only(
    exported: Exported, ledger_history: ModuleType
) -> None:
    board, _, files = exported
    bob = ledger_history.identity("bob").peer_id
    deleted = files["user_deleted"][0]
    assert deleted.findtext("cpid") == boinc.cpid(bob)
    assert deleted.findtext("cpid") not in {user.findtext("cpid") for user in files["user"]}
    assert {host.findtext("host_cpid") for host in files["host_deleted"]} == {
        boinc.host_cpid(worker) for worker in board.donors[bob].workers
    }


def test_ids_outlive_new_keys(crowded: Any, exported: Exported, ledger_history: ModuleType) -> None:
    """Ada gave its key up for a new one: the statistics still know it by the same id and cpid."""
    _, _, files = exported
    ada = ledger_history.identity("ada").peer_id
    by_id = {user.findtext("id"): user for user in files["user"]}
    assert by_id["1"].findtext("cpid") == boinc.cpid(ada)
    assert [int(number) for number in by_id] == sorted(int(number) for number in by_id)


def test_devices_name_their_owner_only_where_it_is_shown(
    exported: Exported, ledger_history: ModuleType
) -> None:
    _, _, files = exported
    cpid_of = {
        name: boinc.host_cpid(ledger_history.identity(name).peer_id) for name in ("ada", "cleo")
    }
    hosts = {host.findtext("host_cpid"): host for host in files["host"]}
    assert hosts[cpid_of["ada"]].find("userid") is None
    assert hosts[cpid_of["cleo"]].find("userid") is not None
    assert not hosts.keys() & {user.findtext("cpid") for user in files["user"]}


def test_the_same_head_gives_the_same_bytes(crowded: Any, tmp_path: Path) -> None:
    for out in ("one", "two"):
        _export(crowded, tmp_path / out)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_an_empty_record_has_valid_files(
    ledger_history: ModuleType, make_manifest: Any, tmp_path: Path
) -> None:
    empty = ledger_history.History(make_manifest(), f"sqlite:///{tmp_path}/empty.db")
    empty.open()
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    for tree in _export(empty, tmp_path / "boinc")[2].values():
        schema.assertValid(tree)
    empty.close()


def test_a_hundred_thousand_donors_are_written_one_at_a_time(history: Any, tmp_path: Path) -> None:
    """The export holds no list of records: it adds little to the fold that it reads."""
    with Session(history.engine) as session:
        board, profiles, _ = from_database(session)
    for number in range(100_000):
        key = f"{number:052d}"
        donor = board.accounts.donors[key] = Donor(key, 1_700_000_000)
        donor.tally.final_microcredits = 1 + number
        profiles.donors[key] = Shown(f"donor {number}")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_boinc(board, profiles, tmp_path)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert grown_mib < 60
    with gzip.open(tmp_path / "user.gz") as file:
        count = sum(1 for _, element in etree.iterparse(file, tag="user"))
    assert count == 100_000


def _amount(record: Any, name: str) -> Fraction:
    return Fraction(record.findtext(name))


def _cobblestones(microcredits: int) -> Fraction:
    millionths = microcredits * 10**6 // MICROCREDITS_PER_COBBLESTONE
    assert cobblestones(microcredits) == f"{millionths / 10**6:.6f}"
    return Fraction(millionths, 10**6)
