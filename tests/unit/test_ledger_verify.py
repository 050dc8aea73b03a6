"""Verification of a whole record: from a database, from tiles, and after every kind of damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.authority import Delegations, load_delegations, log_keys, store_delegations
from ledger.cli import cli
from ledger.export import export_tiles
from ledger.log import read_leaves
from ledger.receipts import make_receipt, verify_receipt
from ledger.records import CreditLeaf, parse_leaf
from ledger.schema import DelegationRow, LogLeaf, LogNode
from ledger.sources import DatabaseSource, directory_source
from ledger.tiles import Tile, levels_of, tiles_of, unpack_entries
from ledger.verify import Report, verify
from protocol import merkle
from protocol.errors import BadDigest, BadRecord, BadSignature, ProtocolError, TransientError
from protocol.identity import Identity, PublicKey
from protocol.notes import Checkpoint, NoteKey, read_checkpoint, sign_checkpoint
from protocol.tlog import Proof
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

BOTH_DATABASES = True


def _verify_database(history: Any, **options: Any) -> Report:
    with Session(history.engine) as session:
        return verify(DatabaseSource(session), **options)


@pytest.fixture
def tiles(history: Any, tmp_path: Path) -> Path:
    out = tmp_path / "tiles"
    with Session(history.engine) as session:
        export_tiles(session, out)
    return out


def test_database_and_tiles_verify_to_the_same_report(history: Any, tiles: Path) -> None:
    root = history.manifest.root
    report = _verify_database(history, root=root)
    assert verify(directory_source(tiles), root=root) == report
    assert report.trust == "given root"
    assert (report.donors, report.devices, report.rounds) == (2, 3, 3)
    assert report.merged_tokens == report.credited_tokens == 32 * 128
    assert _verify_database(history).trust == "root named by the record"
    assert _verify_database(history, vkey=history.log.key.vkey).trust == "given key"


def test_an_earlier_head_must_be_a_prefix(history: Any) -> None:
    early = history.sign()
    history.settle({0: 1})
    assert _verify_database(history, old_checkpoint=early).old_size == read_checkpoint(early).size
    # The same number of leaves, signed by the right key, but of another history.
    other = read_checkpoint(early)
    forged = sign_checkpoint(Checkpoint(other.origin, other.size, bytes(32)), history.log._signer)
    with pytest.raises(BadDigest, match="history was rewritten"):
        _verify_database(history, old_checkpoint=forged)
    newer = sign_checkpoint(Checkpoint(other.origin, 10_000, bytes(32)), history.log._signer)
    with pytest.raises(BadDigest, match="shrank"):
        _verify_database(history, old_checkpoint=newer)


def test_wrong_root_key_and_missing_delegations_are_refused(history: Any) -> None:
    stranger = Identity.from_seed(b"s" * 32)
    with pytest.raises(BadSignature, match="leaf 0"):
        _verify_database(history, root=stranger.peer_id)
    with pytest.raises(BadSignature):
        _verify_database(history, vkey=NoteKey(history.manifest.origin, stranger.public).vkey)
    with Session(history.engine) as session, session.begin():
        for row in session.scalars(select(DelegationRow)):
            session.delete(row)
    with pytest.raises(BadSignature, match="--vkey"):
        _verify_database(history, root=history.manifest.root)


def _rewrite_leaf(history: Any, index: int, change: Callable[[dict[str, Any]], None]) -> None:
    """A dishonest log operator: changes a leaf, rehashes and signs the lot with the real key."""
    import rfc8785

    from ledger import tree
    from ledger.schema import LogHead

    with Session(history.engine) as session, session.begin():
        rows = session.scalars(select(LogLeaf).order_by(LogLeaf.leaf_index)).all()
        raw = json.loads(rows[index].data)
        change(raw)
        rows[index].data = rfc8785.dumps(raw)
        frontier = tree.Frontier(0, [])
        for row in rows:
            for level, position, value in frontier.push(merkle.leaf_hash(row.data)):
                session.get_one(LogNode, (level, position)).hash = value
        for head in session.scalars(select(LogHead)):
            session.delete(head)
    history.sign()


def _index_of(history: Any, kind: str, number: int = 0) -> int:
    with Session(history.engine) as session:
        query = select(LogLeaf.leaf_index).where(LogLeaf.kind == kind).order_by(LogLeaf.leaf_index)
        return session.scalars(query).all()[number]


@pytest.mark.parametrize(
    ("kind", "number", "change", "words"),
    [
        ("credit", 0, {"microcredits": 10**6}, "the formula gives"),
        ("credit", 0, {"tokens": 64}, "the formula gives"),
        ("credit", 1, {"donor": Identity.from_seed(b"d" * 32).peer_id}, "not enrolled"),
        ("credit", 0, {"name": "Ada"}, "unknown field"),
        ("credit", 3, {"round": 1}, "skipped"),
        ("round", 2, {"merged_tokens": 2000}, "tokens were paid"),
        ("round", 2, {"round": 1}, "comes after round"),
        ("round", 1, {"merged_tokens": 9999}, "skipped round merged"),
        ("round", 1, {"state_digest": "0" * 64}, "changed the state"),
        ("enrol", 1, {"run_id": "0" * 64}, "another run"),
        ("enrol", 1, {"v": 2}, "v:"),
        ("run", 0, {"run_id": "0" * 64}, "digest of the manifest"),
    ],
)
def test_a_lie_is_found_even_when_the_log_key_signs_it(
    history: Any, kind: str, number: int, change: dict[str, Any], words: str
) -> None:
    index = _index_of(history, kind, number)
    _rewrite_leaf(history, index, lambda raw: raw.update(change))
    with pytest.raises(ProtocolError, match=words) as caught:
        _verify_database(history)
    assert f"leaf {index}" in str(caught.value)


def test_the_same_work_is_not_paid_twice(history: Any) -> None:
    first, second = _index_of(history, "credit", 0), _index_of(history, "credit", 3)
    with Session(history.engine) as session:
        paid = json.loads(next(read_leaves(session, first, first + 1)))
    _rewrite_leaf(history, second, lambda raw: raw.update(assignment_id=paid["assignment_id"]))
    with pytest.raises(BadRecord, match=f"leaf {second}: pays the same work twice"):
        _verify_database(history)


def test_a_second_run_leaf_and_a_log_without_one_are_refused(history: Any) -> None:
    with Session(history.engine) as session:
        run = next(read_leaves(session, 0, 1))
        enrol = next(read_leaves(session, 1, 2))
    from ledger.fold import fold

    with pytest.raises(BadRecord, match="leaf 1: a log holds one run"):
        fold([run, run])
    with pytest.raises(BadRecord, match="leaf 0: the log does not begin"):
        fold([enrol])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_damaged_node_of_any_level_is_found_in_the_database(history: Any, level: int) -> None:
    with Session(history.engine) as session, session.begin():
        session.get_one(LogNode, (level, 1)).hash = bytes(32)
    with pytest.raises(BadDigest, match=f"leaf {1 << level}"):
        _verify_database(history)


def test_a_damaged_leaf_is_found_in_the_database(history: Any) -> None:
    with Session(history.engine) as session, session.begin():
        row = session.get_one(LogLeaf, 2)
        row.data = row.data.replace(b'"cpu"', b'"mps"')
    with pytest.raises(BadDigest, match="leaf 2"):
        _verify_database(history)


def test_damaged_tiles_are_found(history: Any, tiles: Path) -> None:
    width = read_checkpoint(history.sign()).size
    hashes, entries = tiles / Tile(0, 0, width).path, tiles / Tile(None, 0, width).path
    whole = hashes.read_bytes()
    hashes.write_bytes(whole[:32] + bytes(32) + whole[64:])
    with pytest.raises(BadDigest, match=r"leaf 1: tile/0/000\.p"):
        verify(directory_source(tiles))
    hashes.write_bytes(whole + bytes(32))
    with pytest.raises(BadDigest, match="longer"):
        verify(directory_source(tiles))
    hashes.unlink()
    with pytest.raises(BadRecord, match="missing"):
        verify(directory_source(tiles))
    hashes.write_bytes(whole)
    bundle = entries.read_bytes()
    entries.write_bytes(bundle.replace(b'"cpu"', b'"mps"', 1))
    with pytest.raises(BadDigest):
        verify(directory_source(tiles))
    entries.write_bytes(bundle[:-1])
    with pytest.raises(BadRecord, match=r"tile/entries/000\.p"):
        verify(directory_source(tiles))


def test_export_keeps_what_is_there_and_brings_a_mirror_up_to_date(
    ledger_history: ModuleType, history: Any, tiles: Path
) -> None:
    for _ in range(90):
        history.write(history.settled_leaves({0: 1, 1: 1}))
    with Session(history.engine) as session:
        size = export_tiles(session, tiles)
    assert size > 256
    assert len(unpack_entries((tiles / "tile/entries/000").read_bytes(), 256)) == 256
    assert (tiles / "tile/1/000.p/1").stat().st_size == 32
    assert verify(directory_source(tiles), root=history.manifest.root).size == size


def test_tile_paths() -> None:
    assert Tile(0, 1_234_067).path == "tile/0/x001/x234/067"
    assert Tile(None, 5, 3).path == "tile/entries/005.p/3"
    # C2SP tlog-tiles: a tree of 70,000 leaves.
    assert list(levels_of(70_000)) == [0, 1, 2]
    assert [len(list(tiles_of(70_000, level))) for level in range(3)] == [274, 2, 1]
    last = [list(tiles_of(70_000, level))[-1].path for level in range(3)]
    assert last == ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]
    for tile in (Tile(0, 0), Tile(63, 999), Tile(1, 1000, 255), Tile(None, 10**9, 1)):
        assert Tile.parse(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/1",
        "tile/0/x000/001",
        "tile/64/000",
        "tile/0/000.p/0",
        "tile/0/000.p/257",
        "tile/0/000.p/256",
        "tile/0/000.p/05",
        "tile/entries/../000",
        "tile/00/000",
        "tile/0/000/",
    ],
)
def test_odd_tile_paths_are_refused(path: str) -> None:
    with pytest.raises(BadRecord):
        Tile.parse(path)


def _receipt(history: Any) -> tuple[bytes, str]:
    with Session(history.engine) as session:
        receipt = make_receipt(session, history.manifest.origin, _index_of(history, "credit"))
    return receipt.leaf, receipt.proof


def test_a_receipt_verifies_offline_from_the_root_fingerprint(history: Any) -> None:
    leaf, proof = _receipt(history)
    verified = verify_receipt(leaf, proof, root=history.manifest.root)
    assert isinstance(verified.leaf, CreditLeaf)
    assert verified.leaf.tokens == 1280
    assert verify_receipt(leaf, proof, vkey=history.log.key.vkey) == verified
    assert Proof.parse(proof).text() == proof


def test_tampered_receipts_are_refused(history: Any) -> None:
    leaf, proof = _receipt(history)
    root = history.manifest.root
    more = leaf.replace(b'"tokens":1280', b'"tokens":1290')
    with pytest.raises(BadDigest):
        verify_receipt(more, proof, root=root)
    taken = Proof.parse(proof)
    with pytest.raises(BadDigest):
        verify_receipt(leaf, proof.replace(f"index {taken.index}", "index 1"), root=root)
    with pytest.raises(BadSignature):
        verify_receipt(leaf, proof, root=Identity.from_seed(b"x" * 32).peer_id)
    size = f"\n{read_checkpoint(taken.checkpoint).size}\n"
    with pytest.raises(BadSignature):
        verify_receipt(leaf, proof.replace(size, "\n999\n"), root=root)
    with pytest.raises(BadRecord, match="--vkey"):
        bare = Proof(taken.index, taken.path, taken.checkpoint, None).text()
        verify_receipt(leaf, bare, root=root)
    for damaged in ("", "hello", proof.replace("index ", "index 0"), proof.split("\n\n")[0]):
        with pytest.raises(BadRecord):
            verify_receipt(leaf, damaged, root=root)


def test_a_leaf_without_a_signed_head_has_no_receipt_yet(history: Any) -> None:
    with Session(history.engine) as session, session.begin():
        (index, *_) = history.log.append(session, history.settled_leaves({0: 1}))
        with pytest.raises(TransientError, match="not under a signed head yet"):
            make_receipt(session, history.manifest.origin, index)
        with pytest.raises(BadDigest, match="does not hold"):
            make_receipt(session, "elsewhere.example", 0)


def test_log_keys_are_judged_at_the_time_of_the_newest_leaf(
    history: Any, ledger_history: ModuleType
) -> None:
    with Session(history.engine) as session:
        records = load_delegations(session)
    assert records is not None
    assert Delegations.parse(records.dump()).dump() == records.dump()
    run_id, origin, root = history.manifest.run_id, history.manifest.origin, history.manifest.root
    (key,) = log_keys(records, root, origin, run_id=run_id, at_s=history.now_s)
    assert key == history.log.key
    with pytest.raises(BadSignature, match="expired"):
        log_keys(records, root, origin, run_id=run_id, at_s=history.now_s + 10**9)
    with pytest.raises(BadSignature, match="another run"):
        log_keys(records, root, origin, run_id=bytes(32), at_s=history.now_s)
    with pytest.raises(BadSignature, match="delegated no log key"):
        log_keys(Delegations(run_id), root, origin, run_id=run_id, at_s=0)


def test_a_round_key_may_not_sign_the_log(history: Any, ledger_history: ModuleType) -> None:
    round_key = Identity.from_seed(b"r" * 32)
    envelope = delegate(
        ledger_history.ROOT,
        run_id=history.manifest.run_id,
        purpose=wire.KEY_PURPOSE_ROUND,
        public_key=round_key.public.raw,
        serial=2,
        not_before_s=0,
        not_after_s=1 << 40,
    )
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [envelope])
        history.log.__class__(history.manifest.origin, round_key).sign_head(session)
    with pytest.raises(BadSignature):
        _verify_database(history)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format":"barnraise-delegations/1"}'])
def test_malformed_delegations_are_refused(data: bytes) -> None:
    with pytest.raises(BadRecord):
        Delegations.parse(data)


# ---- the command ----


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments)


def test_command_verifies_database_and_tiles(history: Any, tmp_path: Path) -> None:
    out, head = str(tmp_path / "mirror"), tmp_path / "head"
    head.write_text(_run("head", "--db", history.url).stdout)
    history.settle({1: 2})
    assert _run("export-tiles", "--db", history.url, "--out", out).exit_code == 0
    result = _run("verify", "--dir", out, "--root", history.manifest.root, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rounds"] == 4
    result = _run("verify", "--db", history.url, "--old-checkpoint", str(head))
    assert "verified:" in result.stdout
    assert "extends" in result.stdout


def test_command_checks_a_receipt(history: Any, tmp_path: Path) -> None:
    leaf, proof = _receipt(history)
    (tmp_path / "leaf.json").write_bytes(leaf)
    (tmp_path / "r.tlog-proof").write_text(proof)
    files = (str(tmp_path / "r.tlog-proof"), "--leaf", str(tmp_path / "leaf.json"))
    result = _run("receipt", "check", *files, "--root", history.manifest.root)
    assert result.exit_code == 0, result.output
    assert "genuine" in result.stdout
    assert isinstance(_run("receipt", "check", *files).exception, ProtocolError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify",), "exactly one"),
        (("verify", "--db", "sqlite:////nowhere/x.db"), "no database"),
        (("verify", "--db", "no url"), "not a database URL"),
        (("verify", "--dir", "/nowhere"), "not a folder"),
        (("verify", "--url", "ftp://example.org"), "not a web address"),
        (("verify", "--dir", "/", "--root", "zzz"), "--root"),
        (("verify", "--dir", "/", "--root", "z", "--vkey", "z"), "not both"),
        (("serve", "--db", "sqlite:////nowhere/x.db", "--listen", "8080"), "HOST:PORT"),
        (("head", "--db", "sqlite:////nowhere/x.db"), "no database"),
    ],
)
def test_bad_input_is_a_sentence(arguments: tuple[str, ...], words: str) -> None:
    result = _run(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, ProtocolError)
    assert words in str(result.exception)


def test_fold_counts_what_each_gave(history: Any) -> None:
    from ledger.fold import fold

    with Session(history.engine) as session:
        board = fold(read_leaves(session, 0, read_checkpoint(history.sign()).size))
        parsed = [parse_leaf(data) for data in read_leaves(session, 0, board.size)]
    credits = [leaf for leaf in parsed if isinstance(leaf, CreditLeaf)]
    for key, donor in board.donors.items():
        mine = [leaf for leaf in credits if leaf.donor == key]
        assert donor.tally.pending_microcredits == sum(leaf.microcredits for leaf in mine)
        assert donor.tally.tokens == sum(leaf.tokens for leaf in mine)
    assert board.total.pending_microcredits == sum(leaf.microcredits for leaf in credits)
    assert PublicKey.from_peer_id(next(iter(board.donors))).peer_id in board.donors
