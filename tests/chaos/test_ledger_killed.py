"""kill -9 at every write of the record: what is left verifies, and whoever comes next goes on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from chaos_lives import dies_at
from chaos_points_store import FILES, STATEMENTS
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from coordinator.database import Database
from ledger import tree
from ledger.authority import store_delegations
from ledger.donors import erase_profile, set_profile
from ledger.export import export_tiles
from ledger.folder_index import FolderIndex
from ledger.log import Log, latest_head
from ledger.mirror import Mirror
from ledger.records import EnrolLeaf
from ledger.schema import ErasedProfile, Profile
from ledger.sources import DatabaseSource, directory_source
from ledger.tile_folder import TileFolder
from ledger.verify import verify
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

pytestmark = pytest.mark.timeout(600)

BOTH_DATABASES = ("test_the_log", "test_an_export")

NEW_KEY = Identity.from_seed(b"n" * 32)
HERE = Path(__file__).parent


def files_of(folder: Path) -> dict[str, bytes]:
    """All but partial tiles: those of an earlier head may still be there, or not any more."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.suffix != ".p"
    }


def grow(history: Any, rounds: int) -> None:
    written = [history.settled_leaves({0: 2, 1: 1}) for _ in range(rounds)]
    history.write([leaf for leaves in written for leaf in leaves])


def export(history: Any, out: Path) -> Path:
    engine = create_engine(history.url)
    with Session(engine) as session:
        export_tiles(session, out)
    engine.dispose()
    return out


def replace_the_key(history: Any, ledger_history: ModuleType) -> None:
    """The log goes on under another key, and the first one is revoked."""
    run_id = history.manifest.run_id
    envelope = delegate(
        ledger_history.ROOT,
        run_id=run_id,
        purpose=wire.KEY_PURPOSE_LOG,
        public_key=NEW_KEY.public.raw,
        serial=2,
        not_before_s=ledger_history.START_S - 60,
        not_after_s=ledger_history.START_S + 365 * 86_400,
    )
    revocation = seal(wire.Revocation(run_id=run_id, serial=1), ledger_history.ROOT)
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [envelope], [revocation])
    history.log = Log(history.manifest.origin, NEW_KEY, now_s=lambda: history.now_s)


def test_the_log(history: Any) -> None:
    """At every statement and commit of an append and its head: all of it, or nothing."""

    def work(number: int) -> None:
        device = Identity.from_seed(number.to_bytes(32, "big")).peer_id
        leaf = EnrolLeaf(
            run_id=history.manifest.run_id,
            at_s=history.now_s,
            worker=device,
            donor=device,
            device_class="cpu",
        )
        database = Database(history.url)
        with database.session() as session:
            history.log.append(session, [leaf, leaf, leaf])
            set_profile(session, device, f"life {number}", now_s=1)
        with database.session() as session:
            history.log.sign_head(session)
        database.close()

    history.engine.dispose()  # a fork must not share a connection
    size, seen = history.size(), set()
    for number in itertools.count(1):
        history.engine.dispose()
        died = dies_at(number, STATEMENTS, lambda number=number: work(number))
        with Session(history.engine) as session:
            new = tree.tree_size(session)
            head = latest_head(session)
            assert head is not None
            assert new - size in (0, 3)
            device = Identity.from_seed(number.to_bytes(32, "big")).peer_id
            assert (session.get(Profile, device) is not None) == (new - size == 3)
            seen.add((new - size, head.tree_size - size))
            assert verify(DatabaseSource(session)).size == head.tree_size
        history.sign()
        size = new
        if not died:
            break
    assert seen == {(0, 0), (3, 0), (3, 3)}, "killed before, between and after the two commits"
    assert number > 10
    with Session(history.engine) as session:
        assert verify(DatabaseSource(session)).size == size


@pytest.fixture
def site(
    request: pytest.FixtureRequest, history: Any, ledger_history: ModuleType, tmp_path: Path
) -> tuple[Path, Path]:
    """A record's files, and the same later: more leaves, another key, somebody forgotten."""
    small = getattr(request, "param", "") == "small"
    grow(history, 2 if small else 59)
    before = export(history, tmp_path / "before")
    replace_the_key(history, ledger_history)
    grow(history, 3)  # over the end of a tile
    ada = ledger_history.identity("ada").peer_id
    with Session(history.engine) as session, session.begin():
        erase_profile(session, ada)
        session.add(ErasedProfile(subject=ada, erased_at_s=history.now_s))
    return before, export(history, tmp_path / "after")


def size_of(folder: Path) -> int:
    """Leaves under the head, all of them verified; 0 without a head."""
    return verify(directory_source(folder)).size if (folder / "checkpoint").exists() else 0


def lives(folder: Path, held: Path | None, work: Any) -> Iterator[None]:
    """Let processes work on ``folder``, from ``held`` on, each killed one write later."""
    for number in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            shutil.copytree(held, folder)
        if not dies_at(number, FILES, work):
            assert number > 20
            return
        yield


def test_a_mirror(site: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = site
    copy, held, whole = (tmp_path / name for name in ("copy", "held", "whole"))

    def update(source: Path, into: Path) -> list[str]:
        asked: list[str] = []

        def fetch(path: str, most_bytes: int) -> bytes | None:
            asked.append(path)
            return TileFolder(source).read(path, most_bytes)

        Mirror(TileFolder(into), fetch).update()
        return asked

    update(old, held)
    shutil.copytree(held, whole)
    update(new, whole)
    files, size = files_of(whole), size_of(whole)
    for start, allowed in ((held, (size_of(held), size)), (None, (0, size))):
        for _ in lives(copy, start, lambda: update(new, copy)):
            assert size_of(copy) in allowed
            there = {name.removeprefix("incoming/") for name in files_of(copy)}
            asked = update(new, copy)
            again = [name for name in asked if "entries" in name and ".p/" not in name]
            assert not there & set(again), "fetched twice"
            assert files_of(copy) == files


def test_an_export(history: Any, site: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = site
    out, ends = tmp_path / "out", (size_of(old), size_of(new))
    files = files_of(export(history, shutil.copytree(old, tmp_path / "whole")))
    history.engine.dispose()
    for _ in lives(out, old, lambda: export(history, out)):
        assert size_of(out) in ends
        export(history, out)
        assert files_of(out) == files


@pytest.mark.parametrize("site", ["small"], indirect=True)
def test_an_index(site: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a folder that is served: whoever comes next has a whole one, of the folder's head."""
    old, new = site
    folder, file = tmp_path / "folder", tmp_path / "index" / "index.db"

    def refresh() -> None:
        FolderIndex(folder, file).refresh()

    def head_of_index() -> int:
        engine = create_engine(f"sqlite:///{file}")
        with Session(engine) as session:
            size = verify(DatabaseSource(session)).size
        engine.dispose()
        return size

    ends = (size_of(old), size_of(new))
    for grown in (False, True):
        number = 0
        died = True
        while died:
            number += 1
            shutil.rmtree(file.parent, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(old, folder)
            if grown:
                refresh()
                shutil.rmtree(folder)
                shutil.copytree(new, folder)
            died = dies_at(number, STATEMENTS, refresh)
            if file.exists():
                assert head_of_index() in ends[: 1 + grown]
            refresh()
            assert head_of_index() == ends[grown]
        assert number > 10


@pytest.mark.parametrize("site", ["small"], indirect=True)
def test_the_command(site: tuple[Path, Path], tmp_path: Path) -> None:
    """``barnraise ledger mirror`` itself, killed once at a rename, then run again."""
    copy = tmp_path / "copy"
    fault = json.dumps({"point": "folder.rename", "do": "kill", "nth": 4})
    command = ["ledger", "mirror", str(site[1]), str(copy)]
    program = [sys.executable, str(HERE / "chaos_process.py"), "--points", "chaos_points_store"]
    killed = subprocess.run(
        [*program, "--fault", fault, "--", *command], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (copy / "checkpoint").exists()
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    whole = [sys.executable, "-c", "from barnraise import main; main()", *command]
    done = subprocess.run(whole, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert size_of(copy) == size_of(site[1])
