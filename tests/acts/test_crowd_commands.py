"""Organisers' commands on a real run folder, and what they leave behind."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from barnraise import main
from coordinator.backup import make_backup
from coordinator.cli import cli
from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.keys import KeyRing
from coordinator.restore import restore
from ledger.fold import Board, fold
from ledger.log import read_leaves
from ledger.schema import ErasedProfile, Profile
from ledger.sources import DatabaseSource
from ledger.tree import tree_size
from ledger.verify import verify
from protocol.envelope import open_envelope, parse_envelope
from protocol.errors import BadSignature
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

DONOR = Identity.from_seed(b"d" * 32).peer_id
FIELDS = [
    *("datetime", "legacyId", "type", "kind", "isRefund", "isRefunded", "refundLegacyId"),
    *("amount", "currency", "accountSlug", "oppositeAccountSlug", "oppositeAccountName"),
]


class Folder:
    """A run folder, and the commands on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = RunFolder(path)

    def try_(self, *arguments: str, here: bool = True) -> Result:
        where = ["--run-dir", str(self.path)] if here else []
        return CliRunner().invoke(cli, [*arguments, *where])

    def run(self, *arguments: str, here: bool = True) -> str:
        done = self.try_(*arguments, here=here)
        assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception!r}"
        return done.output

    def json(self, *arguments: str, here: bool = True) -> Any:
        return json.loads(self.run(*arguments, "--json", here=here))

    def refused(self, *arguments: str, here: bool = True) -> str:
        done = self.try_(*arguments, here=here)
        assert done.exit_code != 0, done.output
        return f"{done.output}{done.exception}"

    def database(self) -> Database:
        return Database(self.folder.database_url(self.folder.settings()))

    def board(self) -> Board:
        database = self.database()
        with database.session() as session:
            board = fold(read_leaves(session, 0, tree_size(session)))
        database.close()
        return board

    def verify(self) -> None:
        database = self.database()
        with database.session() as session:
            report = verify(DatabaseSource(session), root=self.folder.read_manifest().root)
            assert report.size == tree_size(session)
        database.close()

    @property
    def link(self) -> str:
        return self.folder.join_link.read_text().strip()


@pytest.fixture(scope="module")
def made(run_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("crowd")
    run_rig.make_dataset(base / "data")
    run_rig.make_run(base / "data", base / "run")
    return base


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Folder:
    """A copy of a run that was just made: with root.key still in its folder."""
    shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    return Folder(tmp_path / "run")


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., str]:
    """``export({"legacyId": 1}, ...)``: a file of Open Collective's."""
    count = 0

    def write(*rows: dict[str, Any]) -> str:
        nonlocal count
        count += 1
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    "datetime": "2025-03-04T10:00:00",
                    "type": "CREDIT",
                    "kind": "CONTRIBUTION",
                    "amount": 12.5,
                    "currency": "EUR",
                    "accountSlug": "our-model",
                    "oppositeAccountSlug": "olli",
                    "oppositeAccountName": "Olli",
                    **row,
                }
            )
        path = tmp_path / f"export-{count}.csv"
        path.write_text(text.getvalue())
        return str(path)

    return write


def open_campaign(folder: Folder, *more: str) -> str:
    return str(
        folder.json("campaign", "open", "--title", "Winter run", "--goal-credits", "2.5", *more)[
            "campaign"
        ]
    )


def test_a_campaign_from_open_to_close(folder: Folder) -> None:
    name = open_campaign(folder, "--purpose", "a model", "--goal-money", "300", "--currency", "EUR")
    assert (folder.folder.keys / "campaign.key").stat().st_mode & 0o777 == 0o600
    assert "is still open" in folder.refused(
        "campaign", "open", "--title", "b", "--goal-credits", "1"
    )
    shown = folder.json("campaign", "show", name[:6])
    assert (shown["title"], shown["state"], shown["goal_microcredits"]) == (
        "Winter run",
        "open",
        2_500_000,
    )
    assert (shown["goal_money"], shown["when_missed"]) == ("300.00 EUR", "close")
    assert "goal       2.5 credits, 0.0 % verified" in folder.run("campaign", "show", name)
    (folder.folder.keys / "root.key").unlink()  # it is needed for the first signature only
    folder.run("campaign", "revise", name[:6], "--goal-credits", "3", "--ends", "2099-01-01")
    shown = folder.json("campaign", "show")
    assert (shown["revision"], shown["goal_microcredits"], shown["title"]) == (
        1,
        3_000_000,
        "Winter run",
    )
    assert "nothing changes" in folder.refused("campaign", "revise", name, "--goal-credits", "3")
    folder.run("campaign", "news", "--title", "Half way", "--text", "Thank you.")
    assert folder.json("campaign", "show")["news"] == 1
    assert "--yes" in folder.refused("campaign", "close", name)
    folder.run("campaign", "close", name, "--yes")
    listed = folder.json("campaign", "list")
    assert [one["outcome"] for one in listed] == [None, "closed"]
    assert "is over" in folder.refused("campaign", "revise", name, "--goal-credits", "9")
    folder.verify()


def test_a_key_that_the_root_has_to_vouch_for(folder: Folder) -> None:
    (folder.folder.keys / "root.key").unlink()
    before = folder.board().size
    said = folder.refused("campaign", "open", "--title", "x", "--goal-credits", "1")
    assert "put root.key into" in said
    assert not (folder.folder.keys / "campaign.key").exists()
    assert folder.board().size == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("open", "--title", "x"), "--goal-credits"),
        (("open", "--title", "x", "--goal-credits", "-1"), "not a number of credits"),
        (("open", "--title", "x", "--goal-credits", "NaN"), "not a number of credits"),
        (("open", "--title", "x", "--goal-credits", "1e400"), "not a number of credits"),
        (("open", "--title", "x", "--goal-credits", "1", "--goal-money", "5"), "--currency"),
        (("open", "--title", "x", "--goal-credits", "1", "--ends", "2001-01-01"), "after now"),
        (("open", "--title", "x", "--goal-credits", "1", "--ends", "soon"), "is not a date"),
        (("open", "--title", "x" * 500, "--goal-credits", "1"), "at most 120"),
        (("open", "--title", "\x1b[2J", "--goal-credits", "1"), "control character"),
        (("revise", "ffff", "--title", "x"), "no campaign begins"),
        (("close", "", "--yes"), "several campaigns|no campaign"),
        (("news", "--title", "x"), "either --text or --text-file"),
    ],
)
def test_bad_input_about_campaigns(
    folder: Folder, arguments: tuple[str, ...], problem: str
) -> None:
    assert re.search(problem, folder.refused("campaign", *arguments))


def test_an_import_is_shown_recorded_and_recorded_once(
    folder: Folder, export: Callable[..., str], tmp_path: Path
) -> None:
    donors = tmp_path / "donors.csv"
    donors.write_text(f"slug,donor\nnobody-here,{DONOR}\n")
    file = export(
        {"legacyId": 1},
        {"legacyId": 2, "amount": 100, "oppositeAccountSlug": "incognito-7"},
        {"legacyId": 3, "kind": "EXPENSE", "type": "DEBIT", "amount": -30},
    )
    before = folder.board().size
    shown = folder.run("donations", "import", file, "--donors", str(donors))
    assert "2 new, 0 refunded, 0 recorded before, 1 other rows" in shown
    assert "nothing was recorded" in shown
    assert folder.board().size == before
    assert not (folder.folder.keys / "treasurer.key").exists()
    done = folder.json("donations", "import", file, "--donors", str(donors), "--yes")
    assert len(done["leaf_indexes"]) == 2
    assert "2 recorded before" in folder.run("donations", "import", file, "--yes")
    public, private = folder.json("donations", "list")
    assert (public["reference"], public["amount"]) == ("opencollective:1", "12.50 EUR")
    assert (private["visibility"], private["amount_minor"]) == ("private", 10_000)
    later = export({"legacyId": 1, "isRefunded": "REFUNDED"}, {"legacyId": 9, "currency": "JPY"})
    assert "more than the 0 decimals of JPY" in folder.refused(
        "donations", "import", later, "--yes"
    )
    later = export({"legacyId": 1, "isRefunded": "REFUNDED"}, {"legacyId": 2, "amount": 100})
    done = folder.json("donations", "import", later, "--yes")
    assert (done["void"], done["recorded_before"]) == ([public["leaf_index"]], 1)
    assert folder.json("donations", "list")[0]["void"] == "refunded"
    assert folder.json("donations", "import", later, "--yes")["leaf_indexes"] == []
    zero = folder.board().campaigns.zero
    assert (zero.donations, dict(zero.raised_minor)) == (1, {"EUR": 10_000})
    folder.verify()


def test_one_bad_donation_records_none(folder: Folder, export: Callable[..., str]) -> None:
    """The second one names a pool that there is not."""
    file = export({"legacyId": 1}, {"legacyId": 2})
    before = folder.board().size
    said = folder.refused("donations", "import", file, "--pool", DONOR, "--yes")
    assert "act 1 of 2" in said
    assert "nothing was recorded" in said
    assert folder.board().size == before


def test_payments_one_by_one(folder: Folder) -> None:
    payment = ("--amount", "50", "--currency", "EUR", "--reference", "bank:7")
    assert folder.json("donations", "add", *payment)["recorded_before"] == 0
    assert folder.json("donations", "add", *payment) == {"leaf_indexes": [], "recorded_before": 1}
    (leaf,) = [one["leaf_index"] for one in folder.json("donations", "list")]
    assert "--yes" in folder.refused("donations", "void", str(leaf))
    folder.run("donations", "void", str(leaf), "--reason", "mistake", "--yes")
    assert "another act is recorded" in folder.refused("donations", "void", str(leaf), "--yes")
    assert "not enrolled" in folder.refused(
        *("donations", "add", "--amount", "5", "--currency", "EUR", "--reference", "x"),
        *("--donor", DONOR),
    )
    assert "--amount, --currency and --reference" in folder.refused("donations", "add")
    folder.verify()


def test_a_treasurer_on_another_machine(
    folder: Folder, export: Callable[..., str], tmp_path: Path
) -> None:
    key_file, out = tmp_path / "treasurer.key", tmp_path / "march.json"
    made = folder.json("treasurer", "new-key", str(key_file), here=False)
    assert key_file.stat().st_mode & 0o777 == 0o600
    file = export({"legacyId": 1}, {"legacyId": 2})
    sign = ("treasurer", "sign", "--key", str(key_file), "--link", folder.link)
    signed = folder.json(*sign, file, "--out", str(out), here=False)
    assert (signed["acts"], signed["signer"]) == (2, made["key"])
    assert "not a treasurer key of this run" in folder.refused("donations", "add", str(out))
    folder.run("treasurer", "appoint", made["key"], "--days", "30")
    (listed,) = folder.json("treasurer", "list")
    assert (listed["key"], listed["state"], listed["here"]) == (made["key"], "believed", False)
    done = folder.json("donations", "add", str(out))
    assert (len(done["leaf_indexes"]), done["recorded_before"]) == (2, 0)
    assert folder.json("donations", "add", str(out))["recorded_before"] == 2
    again = tmp_path / "again.json"
    folder.run(*sign, file, "--out", str(again), here=False)  # other salts, the same donations
    assert folder.json("donations", "add", str(again)) == {
        "leaf_indexes": [],
        "recorded_before": 2,
    }
    void = tmp_path / "void.json"
    leaf = str(done["leaf_indexes"][0])
    folder.run(*sign, "--void", leaf, "--out", str(void), here=False)
    folder.run("donations", "add", str(void))
    assert folder.json("donations", "list")[0]["void"] == "refunded"
    folder.run("treasurer", "dismiss", made["key"], "--why", "elections", "--yes")
    more = tmp_path / "more.json"
    folder.run(*sign, export({"legacyId": 3}), "--out", str(more), here=False)
    assert "revoked" in folder.refused("donations", "add", str(more))
    assert "never trusted again" in folder.refused("treasurer", "appoint", made["key"])
    folder.verify()


def test_a_treasurer_elsewhere_names_payments_as_they_were_named(
    folder: Folder, export: Callable[..., str], tmp_path: Path
) -> None:
    """Whoever signs offline does not know by which ids earlier imports went."""
    short = Path(export({"legacyId": "d3f98b95"}))
    short.write_text(short.read_text().replace("legacyId", "shortId", 1))
    folder.run("donations", "import", str(short), "--yes")
    key_file, out = tmp_path / "treasurer.key", tmp_path / "march.json"
    made = folder.json("treasurer", "new-key", str(key_file), here=False)
    folder.run("treasurer", "appoint", made["key"])
    sign = ("treasurer", "sign", "--key", str(key_file), "--link", folder.link, "--out", str(out))
    folder.run(*sign, export({"legacyId": 1}), here=False)  # the same payment
    refusal = folder.refused("donations", "add", str(out))
    assert "by the column legacyId, earlier imports by shortId" in refusal
    assert len(folder.json("donations", "list")) == 1
    out.unlink()
    folder.run(*sign, str(short), here=False)
    assert folder.json("donations", "add", str(out))["recorded_before"] == 1
    out.unlink()
    payment = ("--amount", "5", "--currency", "EUR", "--reference", "bank:7")
    folder.run(*sign, *payment, here=False)
    assert len(folder.json("donations", "add", str(out))["leaf_indexes"]) == 1
    folder.verify()


def test_files_of_acts_that_are_not_what_they_say(folder: Folder, tmp_path: Path) -> None:
    file = tmp_path / "acts.json"
    run_id = folder.folder.read_manifest().run_id.hex()
    for text, problem in (
        ("", "no file of signed acts"),
        ("[]", "no file of signed acts"),
        ("[" * 10_000, "no file of signed acts"),
        ('{"format": "x"}', "not of the format"),
        ('{"format": "barnraise-acts/1", "run_id": "00", "acts": []}', "is for the run 00"),
        (f'{{"format": "barnraise-acts/1", "run_id": "{run_id}", "acts": 7}}', "no list"),
        (f'{{"format": "barnraise-acts/1", "run_id": "{run_id}", "acts": [7]}}', "not a DSSE"),
    ):
        file.write_text(text)
        assert problem in folder.refused("donations", "add", str(file))


def test_a_pool_and_its_devices(folder: Folder, export: Callable[..., str]) -> None:
    worker = Identity.generate().peer_id
    assert "there is no pool" in folder.refused("pool", "add-device", worker)
    pool = folder.json("pool", "open", "--currency", "EUR")["pool"]
    line = folder.json("pool", "add-device", worker, "--days", "7")["delegation"]
    assert line.startswith("barnraise-device:")
    envelope = parse_envelope(base64.urlsafe_b64decode(line.removeprefix("barnraise-device:")))
    vouched = open_envelope(envelope, wire.DeviceDelegation, signer=pool).record
    assert (vouched.donor, vouched.worker) == (pool, worker)
    folder.run("donations", "import", export({"legacyId": 1}), "--pool", pool, "--yes")
    (listed,) = folder.json("pool", "list")
    assert (listed["raised"], listed["donations"], listed["key_is_here"]) == ("12.50 EUR", 1, True)
    assert "gives USD to a pool of EUR" in folder.refused(
        *("donations", "import", export({"legacyId": 2, "currency": "USD"})),
        *("--pool", pool, "--yes"),
    )
    assert "not a currency code" in folder.refused("pool", "open", "--currency", "euro")
    folder.verify()


def test_keys_live_on_in_renewals_rotations_and_backups(
    folder: Folder, made: Path, tmp_path: Path
) -> None:
    open_campaign(folder)
    pool = folder.json("pool", "open", "--currency", "EUR")["pool"]
    folder.run("renew-keys")
    folder.run("rotate-keys", "--campaign", "--treasurer")
    assert "no such key" not in folder.run("rotate-keys")
    folder.run("campaign", "news", "--title", "new keys", "--text", "hello")
    make_backup(folder.path, tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", tmp_path / "again", data=made / "data")
    again = Folder(tmp_path / "again")
    manifest = again.folder.read_manifest()
    ring = KeyRing.load(
        again.folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=0, checked=False
    )
    assert set(ring.crowd) == {wire.KEY_PURPOSE_CAMPAIGN, wire.KEY_PURPOSE_TREASURER}
    assert again.json("pool", "list")[0]["key_is_here"]
    assert again.json("pool", "list")[0]["pool"] == pool
    again.run("campaign", "news", "--title", "moved", "--text", "hello")
    again.verify()


def test_a_restore_forgets_no_key_that_was_revoked(
    folder: Folder, made: Path, tmp_path: Path
) -> None:
    """The backup has the stolen key, and is older than its revocation."""
    open_campaign(folder)
    stolen = Identity.load(folder.folder.keys / "campaign.key")
    make_backup(folder.path, tmp_path / "backup.tar", with_root_key=True)
    folder.run("rotate-keys", "--campaign", "--revoke-old", "--why", "stolen")
    folder.run("campaign", "news", "--title", "new keys", "--text", "hello")
    database = folder.database()
    with database.session() as session:
        restore(
            tmp_path / "backup.tar",
            tmp_path / "again",
            data=made / "data",
            record=DatabaseSource(session),
        )
    database.close()
    again = Folder(tmp_path / "again")
    again.run("renew-keys")
    assert "never trusted again" in again.refused("campaign", "news", "--title", "a", "--text", "b")
    again.run("rotate-keys", "--campaign")
    again.run("campaign", "news", "--title", "moved", "--text", "hello")
    manifest = again.folder.read_manifest()
    ring = KeyRing.load(
        again.folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=0, checked=False
    )
    with pytest.raises(BadSignature):
        ring.trust().require(wire.KEY_PURPOSE_CAMPAIGN, stolen.public.raw, time.time())
    again.verify()


def test_every_delegation_leaves_a_leaf(folder: Folder) -> None:
    def purposes() -> list[str | None]:
        return [leaf.purpose for _, leaf in folder.board().crowd.delegations.values()]

    assert sorted(map(str, purposes())) == ["log", "round"]
    open_campaign(folder)
    assert sorted(map(str, purposes())) == ["campaign", "log", "round"]
    folder.run("treasurer", "appoint", DONOR)
    folder.run("treasurer", "dismiss", DONOR, "--why", "no", "--yes")
    assert len(folder.board().crowd.revocations) == 1
    folder.run("renew-keys")
    folder.run("campaign", "news", "--title", "x", "--text", "y")
    assert sorted(map(str, purposes())) == [
        *("campaign", "campaign", "log", "log", "round", "round", "treasurer")
    ]
    folder.verify()


def test_somebody_is_forgotten(folder: Folder) -> None:
    database = folder.database()
    with database.session() as session:
        session.add(Profile(donor=DONOR, display_name="Ada", updated_at_s=1))
    assert "--yes" in folder.refused("profile", "erase", DONOR)
    assert folder.json("profile", "erase", DONOR, "--yes") == {"erased": [DONOR]}
    with database.session() as session:
        assert session.get(Profile, DONOR) is None
        assert session.get(ErasedProfile, DONOR) is not None
    database.close()
    folder.verify()


@pytest.mark.parametrize("group", ["campaign", "donations", "treasurer", "pool", "profile"])
def test_every_command_shows_examples(group: str) -> None:
    commands = cli.commands[group].commands  # type: ignore[attr-defined]
    for name in commands:
        said = CliRunner().invoke(cli, [group, name, "--help"]).output
        assert f"barnraise coordinator {group} {name}" in said
        assert "--json" in said


@pytest.fixture
def _argv(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    yield lambda *words: monkeypatch.setattr("sys.argv", ["barnraise", "coordinator", *words])


def test_a_refusal_is_one_sentence(
    folder: Folder, _argv: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    _argv("campaign", "close", "ffff", "--yes", "--run-dir", str(folder.path))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
