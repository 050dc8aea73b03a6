"""Mirrors: what they take, what they refuse, and what they keep of it."""

from __future__ import annotations

import base64
import functools
import html
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger import published
from ledger.acts import leaf_of, open_act
from ledger.authority import Delegations, store_delegations
from ledger.cli import cli
from ledger.donors import erase_profile, set_profile
from ledger.export import export_tiles
from ledger.fetching import WebFolder
from ledger.folder_index import FolderIndex
from ledger.leaderboard.app import create_app
from ledger.log import Log
from ledger.mirror import Mirror, Update
from ledger.published import act_path
from ledger.schema import ActRow, ErasedProfile
from ledger.sources import directory_source
from ledger.tile_folder import TileFolder
from ledger.tiles import Tile, pack_entries, unpack_entries
from ledger.verify import verify
from protocol.envelope import parse_envelope, seal
from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    PeerFault,
    TransientError,
    UsageError,
)
from protocol.identity import Identity
from protocol.notes import Checkpoint, read_checkpoint, sign_checkpoint
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

Files = dict[str, bytes]
STRANGER = Identity.from_seed(b"s" * 32)


def files_of(folder: Path, *, but: str = "refused/") -> Files:
    """Every file of a folder, and what is in it."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name: data for name, data in found.items() if not name.startswith(but)}


class Site:
    """A record's files, served to a mirror; files can be bent on the way."""

    def __init__(self, history: Any, folder: Path) -> None:
        self.history, self.folder = history, folder
        self.bent: dict[str, bytes | None] = {}
        self.asked: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Show what the history holds now."""
        with Session(self.history.engine) as session:
            export_tiles(session, self.folder)

    def grow(self, rounds: int) -> None:
        written = [self.history.settled_leaves({0: 2, 1: 1}) for _ in range(rounds)]
        self.history.write([leaf for leaves in written for leaf in leaves])
        self.refresh()

    def fetch(self, path: str, most_bytes: int) -> bytes | None:
        self.asked.append(path)
        if path in self.bent:
            return self.bent[path]
        return TileFolder(self.folder).read(path, most_bytes)

    def head(self) -> Checkpoint:
        return read_checkpoint((self.folder / "checkpoint").read_text())


@pytest.fixture
def site(history: Any, tmp_path: Path) -> Site:
    return Site(history, tmp_path / "site")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def update(site: Site, copy: Path, **options: Any) -> Update:
    """As a program that was started anew would."""
    return Mirror(TileFolder(copy), site.fetch, **options).update()


def found_team(history: Any, ledger_history: ModuleType, name: str) -> int:
    """A public act, and its leaf; returns its index."""
    who = ledger_history.identity(name)
    team = who.public.raw[:16]
    record = wire.TeamFounding(run_id=history.manifest.run_id, team=team, founder=who.peer_id)
    act = open_act(seal(record, who))
    leaf, index = leaf_of(act, run_id=history.manifest.run_id, at_s=history.now_s), history.size()
    history.write(
        [leaf],
        lambda session: session.add(
            ActRow(
                leaf_index=index,
                digest=leaf.record_digest,
                signer=who.peer_id,
                public=True,
                envelope=act.envelope.SerializeToString(deterministic=True),
            )
        ),
    )
    return index


def test_a_mirror_is_the_site(
    history: Any, ledger_history: ModuleType, site: Site, copy: Path
) -> None:
    index = found_team(history, ledger_history, "ada")
    site.grow(200)
    made = update(site, copy, root=history.manifest.root)
    assert (made.old_size, made.size, made.fetched_acts) == (0, site.head().size, 1)
    assert made.size > 512
    fresh = Site(history, copy.with_name("fresh"))
    served, mirrored = files_of(fresh.folder), files_of(copy)
    assert json.loads(mirrored.pop("mirror"))["root"] == history.manifest.root
    assert mirrored == served and f"acts/{index:03d}" in served
    report = verify(directory_source(copy), root=history.manifest.root)
    assert report.size == made.size


def test_only_what_is_new_is_fetched(site: Site, copy: Path) -> None:
    """One process or many: no full tile twice, no tile of hashes but for the proof."""
    mirror = Mirror(TileFolder(copy), site.fetch)
    site.grow(100)
    for number in range(4):
        (mirror if number < 2 else Mirror(TileFolder(copy), site.fetch)).update()
        site.grow(40)
    full = [path for path in site.asked if path.startswith("tile/") and ".p/" not in path]
    assert len([path for path in full if "entries" in path]) == len(
        {path for path in full if "entries" in path}
    )
    before = site.head().size
    mirror = Mirror(TileFolder(copy), site.fetch)
    mirror.update()
    site.asked.clear()
    assert mirror.update() == Update(
        site.history.manifest.origin, site.history.manifest.root, before, before, 0, 0
    )
    assert not [path for path in site.asked if path.startswith("tile/")]


def test_old_partial_tiles_go_but_for_the_last_ones(site: Site, copy: Path) -> None:
    for _ in range(5):
        site.grow(3)
        update(site, copy)
    partial = [name for name in files_of(copy) if ".p/" in name and "entries" in name]
    assert len(partial) == 2  # whoever read the head a moment ago still finds its tiles
    assert verify(directory_source(copy)).size == site.head().size


def bend_leaf(site: Site, index: int, bend: Callable[[bytes], bytes]) -> None:
    """Serve another leaf."""
    size = site.head().size
    tile = Tile(None, index // 256, min(256, size - index // 256 * 256))
    leaves = unpack_entries((site.folder / tile.path).read_bytes(), tile.width)
    leaves[index % 256] = bend(leaves[index % 256])
    site.bent[tile.path] = pack_entries(leaves)


def bend_head(site: Site, signer: Identity, **fields: Any) -> None:
    """Serve another head."""
    head = site.head()
    said = {"origin": head.origin, "size": head.size, "root": head.root, **fields}
    site.bent["checkpoint"] = sign_checkpoint(Checkpoint(**said), signer).encode()


def shrink(site: Site, key: Identity) -> None:
    bend_head(site, key, size=3)


def fork(site: Site, key: Identity) -> None:
    bend_head(site, key, root=bytes(32))


def fork_at_the_held_size(site: Site, key: Identity) -> None:
    bend_head(site, key, size=14, root=bytes(32))


def garble_a_tile(site: Site, _key: Identity) -> None:
    """Of an honest head: whoever serves it shall not make it look like evidence."""
    tile = Tile(0, 0, site.head().size)
    hashes = (site.folder / tile.path).read_bytes()
    site.bent[tile.path] = bytes([hashes[0] ^ 1]) + hashes[1:]


def cut_a_tile(site: Site, _key: Identity) -> None:
    site.bent[Tile(0, 0, site.head().size).path] = b""


def be_of_another_log(site: Site, key: Identity) -> None:
    bend_head(site, key, origin="example.org/other")


def be_signed_by_a_stranger(site: Site, _key: Identity) -> None:
    bend_head(site, STRANGER)


def be_unsigned(site: Site, _key: Identity) -> None:
    note = (site.folder / "checkpoint").read_text()
    site.bent["checkpoint"] = note[: note.index("\n\n") + 2].encode()


def be_no_text(site: Site, _key: Identity) -> None:
    site.bent["checkpoint"] = b"\xff\xfe"


def be_huge(site: Site, _key: Identity) -> None:
    site.bent["checkpoint"] = b"x" * ((1 << 16) + 1)


def lie_about_credit(site: Site, _key: Identity) -> None:
    bend_leaf(site, 14, lambda leaf: leaf.replace(b'"microcredits":', b'"microcredits":9'))


def lie_about_what_is_held(site: Site, _key: Identity) -> None:
    bend_leaf(site, 2, lambda leaf: leaf.replace(b'"at_s":1', b'"at_s":2'))


def lie_about_a_digest(site: Site, _key: Identity) -> None:
    def bend(leaf: bytes) -> bytes:
        raw = json.loads(leaf)
        return leaf.replace(raw["contribution_digest"].encode(), b"0" * 64)

    bend_leaf(site, 14, bend)


def cut_a_bundle(site: Site, _key: Identity) -> None:
    path = Tile(None, 0, site.head().size).path
    site.bent[path] = (site.folder / path).read_bytes()[:-1]


def hide_the_tiles(site: Site, _key: Identity) -> None:
    site.bent |= dict.fromkeys(name for name in files_of(site.folder) if "tile/0" in name)


def hide_the_delegations(site: Site, _key: Identity) -> None:
    site.bent["delegations"] = None


def delegate_as_a_stranger(site: Site, key: Identity) -> None:
    run_id = site.history.manifest.run_id
    envelope = delegate(
        STRANGER,
        run_id=run_id,
        purpose=wire.KEY_PURPOSE_LOG,
        public_key=key.public.raw,
        serial=1,
        not_before_s=0,
        not_after_s=1 << 40,
    )
    site.bent["delegations"] = Delegations(run_id, (envelope,)).dump()


def hide_an_act(site: Site, _key: Identity) -> None:
    site.bent |= dict.fromkeys(name for name in files_of(site.folder) if name.startswith("acts/"))


def bend_an_act(site: Site, _key: Identity) -> None:
    path = next(name for name in files_of(site.folder) if name.startswith("acts/"))
    envelope = parse_envelope((site.folder / path).read_bytes())
    envelope.signatures[0].sig = bytes(64)
    site.bent[path] = envelope.SerializeToString()


def garble_the_profiles(site: Site, _key: Identity) -> None:
    site.bent["profiles"] = b'{"format":"barnraise-profiles/2"}'


def lead_somewhere_else(site: Site, _key: Identity) -> None:
    link = f"barnraise://evil.example:1/{'0' * 64}#root={STRANGER.peer_id}"
    said = {"format": "barnraise-site/1", "join_link": link, "notes": "", "updated_at_s": 1}
    site.bent["site"] = json.dumps(said).encode()


REFUSALS: list[tuple[Callable[[Site, Identity], None], type[PeerFault], str]] = [
    (shrink, BadDigest, "the log shrank: 14 leaves are here, 3 under the head"),
    (fork, BadDigest, "does not extend the 14 leaves that this folder holds"),
    (fork_at_the_held_size, BadDigest, "history was rewritten"),
    (garble_a_tile, BadDigest, "by tiles that do not lead to it"),
    (cut_a_tile, BadDigest, "by tiles that do not lead to it"),
    (be_of_another_log, BadRecord, "the head is of 'example.org/other'"),
    (be_signed_by_a_stranger, BadSignature, "no signature of a key that is believed"),
    (be_unsigned, BadRecord, "malformed signature line"),
    (be_no_text, BadRecord, "not text"),
    (be_huge, BadRecord, "at most"),
    (lie_about_credit, BadRecord, "leaf 14: .*formula"),
    (lie_about_what_is_held, BadDigest, "leaf 2 is another than the one that this folder holds"),
    (lie_about_a_digest, BadDigest, "do not hash to the root of the signed head"),
    (cut_a_bundle, BadRecord, "entries"),
    (hide_the_tiles, BadRecord, "tile/0/000.p/27 is missing"),
    (hide_the_delegations, BadSignature, "no delegations"),
    (delegate_as_a_stranger, BadSignature, "signed by"),
    (hide_an_act, BadRecord, "leaf 26: its signed act is not published"),
    (bend_an_act, BadSignature, "leaf 26"),
    (garble_the_profiles, BadRecord, "profiles refused"),
    (lead_somewhere_else, BadRecord, "leads to another run"),
]


@pytest.mark.parametrize(
    ("bend", "error", "words"), REFUSALS, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_lie_changes_nothing_and_is_kept(
    site: Site,
    copy: Path,
    ledger_history: ModuleType,
    bend: Callable[[Site, Identity], None],
    error: type[PeerFault],
    words: str,
) -> None:
    mirror = Mirror(TileFolder(copy), site.fetch)
    mirror.update()
    before = files_of(copy)
    site.grow(3)
    found_team(site.history, ledger_history, "ada")
    site.refresh()
    bend(site, ledger_history.LOG_KEY)
    served = site.fetch("checkpoint", 1 << 20)
    for again in (mirror, Mirror(TileFolder(copy), site.fetch)):
        with pytest.raises(error, match=words) as refused:
            again.update()
        assert files_of(copy) == before
        (kept,) = (copy / "refused").glob("*.checkpoint")
        assert kept.read_bytes() == served and str(kept) in str(refused.value)
        assert kept.with_suffix(".reason").read_text().strip() in str(refused.value)
    site.bent.clear()
    assert mirror.update().size == site.head().size
    assert verify(directory_source(copy)).size == site.head().size


def test_a_rewritten_log_is_told_from_wrong_tiles(
    history: Any, site: Site, copy: Path, ledger_history: ModuleType, tmp_path: Path
) -> None:
    """The same keys, other leaves, and tiles that lead to the signed head."""
    update(site, copy)
    other = ledger_history.History(history.manifest, f"sqlite:///{tmp_path}/other.db")
    other.open()
    other.enrol("eve")
    for _ in range(9):
        other.settle({0: 1})
    with pytest.raises(BadDigest, match="history was rewritten, or others are shown another one"):
        update(Site(other, tmp_path / "other"), copy)
    other.close()


def test_a_site_that_goes_away_is_nobodys_fault(site: Site, copy: Path) -> None:
    """What came of it is kept for the next time, and there is no evidence to keep."""
    site.grow(200)
    real = site.fetch

    def failing(path: str, most_bytes: int) -> bytes | None:
        if ".p/" in path and "entries" in path:
            raise TransientError("away")
        return real(path, most_bytes)

    with pytest.raises(TransientError, match="away"):
        Mirror(TileFolder(copy), failing).update()
    assert not (copy / "checkpoint").exists() and not (copy / "refused").exists()
    site.asked.clear()
    made = update(site, copy)
    assert made.size == site.head().size
    assert [path for path in site.asked if "entries" in path] == [
        Tile(None, made.size // 256, made.size % 256).path
    ]
    assert not (copy / "incoming").exists()


def test_the_first_root_is_pinned(history: Any, site: Site, copy: Path) -> None:
    with pytest.raises(BadSignature, match="not the one that was given"):
        update(site, copy, root=STRANGER.peer_id)
    assert files_of(copy) == {}
    update(site, copy)
    with pytest.raises(UsageError, match="mirrors a run whose root key is"):
        update(site, copy, root=STRANGER.peer_id)
    update(site, copy, root=history.manifest.root)


def test_another_run_is_refused(
    site: Site, copy: Path, make_manifest: Any, ledger_history: ModuleType, tmp_path: Path
) -> None:
    """Of the same root and origin, even: its first leaf is another."""
    update(site, copy)
    other = ledger_history.History(make_manifest(name="other"), f"sqlite:///{tmp_path}/other.db")
    other.open()
    other.enrol("ada")
    for _ in range(20):
        other.settle({0: 1})
    with pytest.raises(BadSignature, match="another run"):
        update(Site(other, tmp_path / "other"), copy)
    other.close()


def test_what_was_revoked_stays_revoked(
    history: Any, ledger_history: ModuleType, site: Site, copy: Path
) -> None:
    """A thief of the old log key cannot bring it back by leaving the revocation out."""
    window = {"not_before_s": ledger_history.START_S - 60, "not_after_s": 1 << 40}
    run_id, new = history.manifest.run_id, Identity.from_seed(b"n" * 32)
    fresh = delegate(
        ledger_history.ROOT,
        run_id=run_id,
        purpose=wire.KEY_PURPOSE_LOG,
        public_key=new.public.raw,
        serial=2,
        **window,
    )
    revocation = seal(wire.Revocation(run_id=run_id, serial=1), ledger_history.ROOT)
    update(site, copy)
    stolen = (site.folder / "checkpoint").read_bytes()
    stale = (site.folder / "delegations").read_bytes()
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [fresh], [revocation])
    history.log = Log(history.manifest.origin, new, now_s=lambda: history.now_s)
    history.sign()
    site.refresh()
    assert update(site, copy).size == site.head().size  # same leaves, signed anew
    site.bent = {"checkpoint": stolen, "delegations": stale}
    with pytest.raises(BadSignature, match=r"revoked|believed"):
        update(site, copy)
    assert verify(directory_source(copy)).size == site.head().size


def test_what_was_erased_is_forgotten_and_stays_so(
    history: Any, ledger_history: ModuleType, site: Site, copy: Path
) -> None:
    ada, bob = (ledger_history.identity(name).peer_id for name in ("ada", "bob"))
    update(site, copy)
    old = (site.folder / "profiles").read_bytes()

    def shown() -> dict[str, str]:
        rows = json.loads((copy / "profiles").read_bytes())["profiles"]
        return {row["donor"]: row["display_name"] for row in rows}

    assert shown() == {ada: "Ada", bob: "Bob"}
    with Session(history.engine) as session, session.begin():
        erase_profile(session, ada)
        session.add(ErasedProfile(subject=ada, erased_at_s=history.now_s))
        erase_profile(session, bob)  # without a tombstone: gone all the same
    site.refresh()
    update(site, copy)
    assert shown() == {}
    site.bent["profiles"] = old  # of a mirror that did not hear of it
    update(site, copy)
    assert shown() == {bob: "Bob"}
    site.bent.clear()
    history.now_s += 1
    with Session(history.engine) as session, session.begin():
        set_profile(session, ada, "Ada again", now_s=history.now_s)
    site.refresh()
    update(site, copy)
    assert shown() == {ada: "Ada again"}


def test_hostile_profiles_are_cleaned(site: Site, copy: Path, ledger_history: ModuleType) -> None:
    ada = ledger_history.identity("ada").peer_id
    row = {
        "donor": ada,
        "display_name": "A\u202eda\n<b>",
        "url": "javascript:alert(1)",
        "about": "x\u0000y",
        "show_devices": True,
        "updated_at_s": 1,
    }
    said = {"format": "barnraise-profiles/1", "profiles": [row], "teams": [], "erased": []}
    site.bent["profiles"] = json.dumps(said).encode()
    update(site, copy)
    (kept,) = json.loads((copy / "profiles").read_bytes())["profiles"]
    assert kept == {**row, "display_name": "A da <b>", "url": "", "about": "x y"}


def test_a_join_link_brings_nothing_along(
    history: Any, site: Site, copy: Path, tmp_path: Path
) -> None:
    """Pages show it in a command that people copy into their shell."""
    run, root = history.manifest.run_id.hex(), history.manifest.root
    honest = f"barnraise://example.org:7443/{run}#root={root}"
    for link in (
        honest,
        f" barnraise://x';id;'@EXAMPLE.org:7443/{run}/?a=';id;'#b=';id;'&root={root} ",
    ):
        said = {"format": "barnraise-site/1", "join_link": link, "updated_at_s": 1}
        site.bent["site"] = json.dumps(said).encode()
        update(site, copy)
        assert json.loads((copy / "site").read_bytes())["join_link"] == honest
    (copy / "site").write_bytes(site.bent["site"] or b"")  # by whoever copied the files
    index = FolderIndex(copy, tmp_path / "index.db")
    index.refresh()
    with TestClient(create_app(index.url)) as client:
        assert f"barnraise worker join '{honest}'" in html.unescape(client.get("/").text)
    said["join_link"] = f"barnraise://x';id;':7443/{run}#root={root}"
    site.bent["site"] = json.dumps(said).encode()
    with pytest.raises(BadRecord, match="not a join link"):
        update(site, copy)
    said["join_link"] = f"barnraise://example.org:7443/{'0' * 64}#root={root}"
    (copy / "site").write_text(json.dumps(said))
    with pytest.raises(BadRecord, match="leads to another run"):
        index.refresh()


def profiles_of(**lists: list[dict[str, Any]]) -> bytes:
    none: dict[str, Any] = {"profiles": [], "teams": [], "erased": []}
    return json.dumps({"format": "barnraise-profiles/1", **none, **lists}).encode()


def test_nobody_has_two_profiles(
    site: Site, copy: Path, ledger_history: ModuleType, tmp_path: Path
) -> None:
    """They would keep a mirror's pages from being made."""
    update(site, copy)
    person = {"donor": ledger_history.identity("ada").peer_id, "updated_at_s": 1}
    team, gone = {"team": "0" * 32, "updated_at_s": 1}, {"subject": "x", "erased_at_s": 1}
    for lists in (
        {"profiles": [{**person, "display_name": name} for name in ("Ada", "Eve")]},
        {"teams": [{**team, "display_name": name} for name in ("Ada's", "Eve's")]},
        {"erased": [gone, gone]},
    ):
        site.bent["profiles"] = profiles_of(**lists)
        with pytest.raises(BadRecord, match="twice"):
            update(site, copy)
    (copy / "profiles").write_bytes(profiles_of(**lists))  # by whoever copied the files
    with pytest.raises(BadRecord, match="twice"):
        FolderIndex(copy, tmp_path / "index.db").refresh()


def test_what_is_to_be_forgotten_stays_within_bounds(
    site: Site, copy: Path, monkeypatch: Any
) -> None:
    """Sources that make subjects up cannot leave a file that nobody reads again."""
    monkeypatch.setattr(published, "_MAX_ROWS", 3)
    for names in ("ab", "cd"):
        erased = [{"subject": name, "erased_at_s": 1} for name in names]
        site.bent["profiles"] = profiles_of(erased=erased)
        if names == "ab":
            update(site, copy)
    with pytest.raises(BadRecord, match="to forget"):
        update(site, copy)
    site.bent.clear()
    update(site, copy)


def test_the_same_envelope_in_other_bytes_is_not_another(
    history: Any, ledger_history: ModuleType, site: Site, copy: Path
) -> None:
    """Fields that nobody knows and nobody signed would fill a mirror's disk, and its lists."""
    index = found_team(history, ledger_history, "ada")
    site.refresh()
    path = act_path(index)
    honest = (site.folder / path).read_bytes()
    held = json.loads((site.folder / "delegations").read_bytes())
    for number in range(3):
        unknown = b"\xfa\x01\x04junk"[:-1] + bytes([65 + number])
        bent = dict(held)
        for name in ("delegations", "revocations"):
            bent[name] = [
                base64.b64encode(base64.b64decode(one) + unknown).decode() for one in held[name]
            ]
        site.bent = {path: honest + unknown, "delegations": json.dumps(bent).encode()}
        update(site, copy)
    assert (copy / path).read_bytes() == honest
    assert (copy / "delegations").read_bytes() == (site.folder / "delegations").read_bytes()


@pytest.mark.parametrize(
    "profiles",
    [
        profiles_of(erased=[{"subject": "-", "erased_at_s": 1}] * 2000),
        profiles_of(**{f"{number}\x1b[2J{'x' * 500}": [] for number in range(2000)}),
        profiles_of(**{f"{number}\x1b[2J{'x' * 500}": [] for number in range(50)}),
    ],
    ids=["rows", "fields", "some fields"],
)
def test_a_reason_is_a_few_lines_of_text(profiles: bytes, site: Site, copy: Path) -> None:
    """It is printed, and kept a thousand times over."""
    update(site, copy)
    site.bent["profiles"] = profiles
    with pytest.raises(BadRecord, match="profiles refused") as refused:
        update(site, copy)
    (reason,) = (copy / "refused").glob("*.reason")
    for told in (str(refused.value), reason.read_text()):
        assert len(told) < 10_000
        assert "\x1b" not in told


def test_a_damaged_folder_says_so(site: Site, copy: Path) -> None:
    site.grow(100)
    update(site, copy)
    (copy / "tile/entries/000").write_bytes(b"")
    with pytest.raises(UsageError, match="is damaged"):
        update(site, copy)
    assert not (copy / "refused").exists(), "that is not the source's fault"


def test_one_program_writes_at_a_time(site: Site, copy: Path) -> None:
    with TileFolder(copy).alone(), pytest.raises(UsageError, match="another program"):
        update(site, copy)


def test_evidence_does_not_fill_the_disk(site: Site, copy: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ledger.tile_folder._MOST_REFUSED", 3)
    update(site, copy)
    for number in range(6):
        site.bent["checkpoint"] = b"nonsense %d" % number
        with pytest.raises(BadRecord):
            update(site, copy)
    assert len(list((copy / "refused").glob("*.checkpoint"))) == 3


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Any web host: a folder of static files."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_the_command_mirrors_a_mirror(site: Site, copy: Path, tmp_path: Path) -> None:
    site.grow(100)
    second = tmp_path / "second"
    with serving(site.folder) as url:
        result = CliRunner().invoke(cli, ["mirror", url, str(copy), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["size"] == site.head().size
    with serving(copy) as url:
        result = CliRunner().invoke(cli, ["mirror", f"{url}/", str(second)])
    assert "leaves of example.org/tiny are in" in result.stdout
    assert files_of(second) == files_of(copy)
    result = CliRunner().invoke(cli, ["verify", "--dir", str(second), "--json"])
    assert json.loads(result.stdout)["size"] == site.head().size


@contextmanager
def dripping(*parts: bytes) -> Iterator[str]:
    """A server that sends these, then a byte now and then, for ever."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            for part in parts:
                connection.sendall(part)
            try:
                while not ended.wait(0.02):
                    connection.sendall(b"x")
            except OSError:
                pass  # they have hung up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ",),
        (b"HTTP/1.1 200 OK\r\n\r\n",),
        (CHUNKED, b"1;"),
        (CHUNKED, b"0\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: /else\r\n\r\n",),
    ],
    ids=["headers", "body", "length of a chunk", "trailers", "redirect"],
)
def test_a_slow_server_does_not_keep_a_mirror(parts: tuple[bytes, ...], tmp_path: Path) -> None:
    with dripping(*parts) as url:
        slow = WebFolder(url, timeout_s=0.3)
        with pytest.raises(TransientError, match="cannot read"):
            Mirror(TileFolder(tmp_path / "m"), slow.get).update()


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that gives each request the next of these."""

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_file_that_ends_early_is_no_file() -> None:
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf") as url,
        pytest.raises(TransientError, match="IncompleteRead"),
    ):
        WebFolder(url).get("checkpoint", 1000)


def test_what_a_server_says_instead_of_http_moves_no_cursor() -> None:
    with (
        answering(b"\x1b[2J" + b"x" * 9000 + b"\r\n\r\n") as url,
        pytest.raises(TransientError, match="cannot read") as told,
    ):
        WebFolder(url).get("checkpoint", 1000)
    assert "\x1b" not in str(told.value)
    assert len(str(told.value)) < 1000


def moved(location: str) -> bytes:
    return f"HTTP/1.1 301 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_file_that_moved_is_found_where_it_is_now() -> None:
    with answering(moved("/there"), b"HTTP/1.1 200 OK\r\n\r\nfound") as url:
        assert WebFolder(url).get("here", 1000) == b"found"


@pytest.mark.parametrize(
    "location",
    [
        *("http://localhost:1/latest/meta-data", "file:///etc/hostname", "ftp://127.0.0.1/x"),
        *("http://[bad/", "http://127.0.0.1:port/", "//metadata.internal/token"),
    ],
)
def test_a_source_leads_nobody_to_other_hosts(location: str) -> None:
    """What lies on a mirror's own network would come to be kept, and served, as evidence."""
    refusals = r"leads to|Invalid|answers 301|unknown url type|nonnumeric port"
    with answering(moved(location)) as url, pytest.raises(TransientError, match=refusals):
        WebFolder(url).get("checkpoint", 1000)


def test_an_export_does_not_overwrite_another_record(
    history: Any, site: Site, make_manifest: Any, ledger_history: ModuleType, tmp_path: Path
) -> None:
    before = files_of(site.folder)
    for origin, error in (("example.org/other", UsageError), (history.manifest.origin, BadDigest)):
        url = f"sqlite:///{tmp_path}/{error.__name__}.db"
        other = ledger_history.History(make_manifest(name="other", origin=origin), url)
        other.open()
        other.enrol("eve")
        for _ in range(10):
            other.settle({0: 1})
        with pytest.raises(error, match="holds"), Session(other.engine) as session:
            export_tiles(session, site.folder)
        other.close()
    assert files_of(site.folder) == before
