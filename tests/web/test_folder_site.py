"""The leaderboard from a mirror's folder alone: no coordinator, no database of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger.export import export_tiles
from ledger.fetching import WebFolder
from ledger.folder_index import FolderIndex
from ledger.leaderboard.app import create_app
from ledger.mirror import Mirror
from ledger.sources import HttpSource
from ledger.tile_folder import TileFolder
from ledger.verify import verify
from protocol.errors import PeerFault, UsageError

ROOT = Path(__file__).parent.parent.parent
PATHS = [
    *("/", "/donors", "/rounds", "/round/0", "/audits", "/log", "/log/4"),
    *("/checkpoint", "/delegations", "/profiles", "/site", "/tile/0/000.p/14"),
    *("/tile/entries/000.p/14", "/receipts/leaf-5.json", "/receipts/leaf-5.tlog-proof"),
    *("/api/v1/campaign", "/api/v1/donors", "/api/v1/rounds", "/api/v1/log/leaves/3"),
]


@pytest.fixture
def folder(history: Any, tmp_path: Path) -> Path:
    return export(history, tmp_path / "mirror")


def export(history: Any, out: Path) -> Path:
    with Session(history.engine) as session:
        export_tiles(session, out)
    return out


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_page_is_the_same_as_from_the_database(
    history: Any, folder: Path, tmp_path: Path
) -> None:
    """And the folder is only read."""
    before = listing(folder)
    index = FolderIndex(folder, tmp_path / "index.db")
    assert index.refresh() and not index.refresh()
    with TestClient(create_app(history.url)) as live, TestClient(create_app(index.url)) as mirror:
        for path in PATHS:
            want, got = live.get(path), mirror.get(path)
            assert (path, got.status_code, got.content) == (path, 200, want.content)
    assert listing(folder) == before


def test_a_mirror_shows_the_signed_act_behind_every_kind_of_leaf(
    acted: Any, folder: Path, tmp_path: Path
) -> None:
    """What the root key signed, too, which a mirror copies in one file and not act by act."""
    history, made = acted
    copy = tmp_path / "copy"
    Mirror(TileFolder(copy), TileFolder(export(history, folder)).read).update()
    index = FolderIndex(copy, tmp_path / "index.db")
    index.refresh()
    with TestClient(create_app(history.url)) as live, TestClient(create_app(index.url)) as mirror:
        for leaf in made.values():
            for path in (f"/log/{leaf}", f"/acts/{leaf:03d}"):
                want, got = live.get(path), mirror.get(path)
                assert (path, got.status_code, got.content) == (
                    path,
                    want.status_code,
                    want.content,
                )


def test_what_is_new_in_the_folder_is_shown(history: Any, folder: Path, tmp_path: Path) -> None:
    index = FolderIndex(folder, tmp_path / "index.db")
    index.refresh()
    with TestClient(create_app(index.url)) as mirror:
        size = mirror.get("/api/v1/campaign").json()["size"]
        for rounds in (1, 90):  # within a tile, and over the end of one
            for _ in range(rounds):
                history.settle({0: 1})
            export(history, folder)
            assert mirror.get("/api/v1/campaign").json()["size"] == size, "as long as nobody looks"
            assert index.refresh()
            size = mirror.get("/api/v1/campaign").json()["size"]
            assert size == history.size()
    # Whoever starts anew goes on with the same index, and reads no leaf again.
    shutil.rmtree(folder / "tile")
    again = FolderIndex(folder, tmp_path / "index.db")
    assert again.refresh()


def test_a_damaged_folder_is_not_served(history: Any, folder: Path, tmp_path: Path) -> None:
    bundle = next((folder / "tile" / "entries").rglob("*.p/*"))
    bundle.write_bytes(bundle.read_bytes().replace(b'"members":2', b'"members":3'))
    with pytest.raises(PeerFault):
        FolderIndex(folder, tmp_path / "index.db").refresh()
    assert not (tmp_path / "index.db").exists()
    with pytest.raises(UsageError, match="holds no record"):
        FolderIndex(tmp_path, tmp_path / "index.db").refresh()


def test_an_index_that_is_damaged_or_of_another_record_is_made_anew(
    history: Any, folder: Path, tmp_path: Path, ledger_history: Any, make_manifest: Any
) -> None:
    file = tmp_path / "index.db"
    file.write_bytes(b"not a database at all" * 100)
    FolderIndex(folder, file).refresh()
    with TestClient(create_app(f"sqlite:///{file}")) as client:
        assert client.get("/api/v1/campaign").json()["size"] == history.size()
    other = ledger_history.History(
        make_manifest(name="other", origin="example.org/other"), f"sqlite:///{tmp_path}/other.db"
    )
    other.open()
    FolderIndex(export(other, tmp_path / "other"), file).refresh()
    with TestClient(create_app(f"sqlite:///{file}")) as client:
        assert client.get("/api/v1/campaign").json()["size"] == other.size()
    other.close()


def test_a_rewritten_folder_does_not_take_the_place_of_what_is_served(
    history: Any, folder: Path, tmp_path: Path
) -> None:
    index = FolderIndex(folder, tmp_path / "index.db")
    index.refresh()
    history.settle({0: 1})
    newer = export(history, tmp_path / "newer")
    head = (newer / "checkpoint").read_bytes()
    (folder / "checkpoint").write_bytes(head)  # without its tiles
    with pytest.raises(PeerFault, match="missing"):
        index.refresh()
    with TestClient(create_app(index.url)) as client:
        assert client.get("/api/v1/campaign").json()["size"] == history.size() - 3


@contextmanager
def command(*arguments: str, cache: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``barnraise ledger serve`` itself; gives the address that it says."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    whole = [sys.executable, "-c", "from barnraise import main; main()", "ledger", "serve"]
    process = subprocess.Popen(
        [*whole, "--listen", "127.0.0.1:0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cache,
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.search(r"http://[\d.:]+", said)
        assert found, said + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_command_serves_a_mirror_alone(history: Any, folder: Path, tmp_path: Path) -> None:
    """The organiser is gone; the record stays readable, verifiable, and can be mirrored on."""
    copy, cache = tmp_path / "copy", tmp_path / "cache"
    cache.mkdir()
    Mirror(TileFolder(copy), TileFolder(folder).read).update()
    history.close()
    Path(history.engine.url.database).unlink()
    shutil.rmtree(folder)
    before = listing(copy)
    with command("--dir", str(copy), "--root", history.manifest.root, cache=cache) as served:
        process, url = served
        report = verify(HttpSource(url), root=history.manifest.root)
        assert report.board_compared and report.size == 14
        with urllib.request.urlopen(f"{url}/donors") as answer:
            assert b"Ada" in answer.read()
        second = tmp_path / "second"
        assert Mirror(TileFolder(second), WebFolder(url).get).update().size == 14
        process.send_signal(signal.SIGINT)
        assert process.wait() in (0, 1), "Ctrl-C ends it, and what follows the folder"
    assert listing(copy) == before, "the index is elsewhere"
    assert list((cache / "barnraise" / "record").glob("*.db"))
