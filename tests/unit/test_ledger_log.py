"""The log: RFC 6962 through the database, signed heads, crashes and tampering."""

from __future__ import annotations

import hashlib
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import delete, event, func, select, text, update
from sqlalchemy.orm import Session

from ledger import tree
from ledger.log import Log, latest_head
from ledger.records import EnrolLeaf, RunLeaf
from ledger.schema import LogHead, LogLeaf, LogNode, Profile
from protocol import merkle
from protocol.errors import BadDigest, UsageError
from protocol.identity import Identity
from protocol.notes import open_checkpoint, read_checkpoint

BOTH_DATABASES = True


def _leaves(count: int, first: int = 0) -> list[EnrolLeaf]:
    key = Identity.from_seed(bytes(32)).peer_id
    return [
        EnrolLeaf(run_id=bytes(32), at_s=at_s, worker=key, donor=key, device_class="cpu")
        for at_s in range(first, first + count)
    ]


@pytest.fixture
def empty(ledger_history: ModuleType, manifest: Any, ledger_url: str) -> Any:
    history = ledger_history.History(manifest, ledger_url)
    yield history
    history.close()


def test_roots_and_proofs_equal_rfc_6962_at_every_size(empty: Any) -> None:
    hashes = [merkle.leaf_hash(leaf.canonical()) for leaf in _leaves(40)]
    with Session(empty.engine) as session, session.begin():
        for size in range(1, 41):
            empty.log.append(session, _leaves(1, size - 1))
            expected = merkle.root(hashes[:size])
            assert tree.root(session, size) == expected
            for index in range(size):
                proof = tree.inclusion_proof(session, index, size)
                merkle.verify_inclusion(hashes[index], index, size, proof, expected)
            old = size // 2
            proof = tree.consistency_proof(session, old, size)
            merkle.verify_consistency(old, merkle.root(hashes[:old]), size, expected, proof)


def test_only_complete_subtrees_are_stored(empty: Any) -> None:
    with Session(empty.engine) as session, session.begin():
        assert empty.log.append(session, _leaves(11)) == list(range(11))
        stored = session.execute(select(LogNode.level, func.count()).group_by(LogNode.level)).all()
    assert dict(map(tuple, stored)) == {0: 11, 1: 5, 2: 2, 3: 1}


def test_rfc_6962_vectors_of_certificate_transparency() -> None:
    # certificate-transparency, merkletree/merkle_tree_test.cc: the reference implementation's.
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
    hashes = [merkle.leaf_hash(bytes.fromhex(value)) for value in inputs]
    frontier = tree.Frontier(0, [])
    assert frontier.root().hex() == hashlib.sha256(b"").hexdigest()
    roots = []
    for value in hashes:
        frontier.push(value)
        roots.append(frontier.root().hex())
    assert roots[0] == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert roots[1] == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert roots[6] == "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"


def test_a_crash_before_commit_leaves_neither_leaf_nor_row(history: Any) -> None:
    head = history.sign()
    with Session(history.engine) as session:
        session.add(Profile(donor="x", display_name="x", updated_at_s=0))
        history.log.append(session, history.settled_leaves({0: 3}))
        session.rollback()  # what a killed process leaves behind
    with Session(history.engine) as session:
        assert session.get(Profile, "x") is None
        assert tree.tree_size(session) == read_checkpoint(head).size
    assert history.sign() == head


def test_a_crash_between_commit_and_signing_is_made_good_by_the_next_head(history: Any) -> None:
    before = read_checkpoint(history.sign())
    with Session(history.engine) as session, session.begin():
        history.log.append(session, history.settled_leaves({0: 3}))
    with Session(history.engine) as session:
        assert latest_head(session).tree_size == before.size
        history.log.sign_head(session)  # killed before its commit: the head was never published
    note = history.sign()
    after = open_checkpoint(note, [history.log.key])
    assert after.size == before.size + 3
    with Session(history.engine) as session:
        proof = tree.consistency_proof(session, before.size, after.size)
        merkle.verify_consistency(before.size, before.root, after.size, after.root, proof)


def test_signing_again_gives_the_same_head_and_a_new_key_signs_anew(history: Any) -> None:
    note = history.sign()
    assert history.sign() == note
    successor = Log(history.manifest.origin, Identity.from_seed(b"n" * 32))
    with Session(history.engine) as session, session.begin():
        renewed = successor.sign_head(session)
    assert open_checkpoint(renewed, [successor.key]) == read_checkpoint(note)


def _tamper_old_leaf(session: Session) -> None:
    """Rewrites a signed leaf and every hash above it, as somebody with the database could."""
    rows = session.scalars(select(LogLeaf).order_by(LogLeaf.leaf_index)).all()
    rows[2].data = rows[2].data.replace(b'"cpu"', b'"mps"')
    frontier = tree.Frontier(0, [])
    for row in rows:
        for level, position, value in frontier.push(merkle.leaf_hash(row.data)):
            session.get_one(LogNode, (level, position)).hash = value


def _shorten(session: Session) -> None:
    last = tree.tree_size(session) - 1
    session.execute(delete(LogLeaf).where(LogLeaf.leaf_index == last))
    session.execute(delete(LogNode).where(LogNode.level == 0, LogNode.position == last))


def _tamper_new_leaf(session: Session) -> None:
    last = tree.tree_size(session) - 1
    session.execute(update(LogLeaf).where(LogLeaf.leaf_index == last).values(data=b"{}"))


def _tamper_new_node(session: Session) -> None:
    last = tree.tree_size(session) - 1
    session.execute(
        update(LogNode).where(LogNode.level == 0, LogNode.position == last).values(hash=bytes(32))
    )


def _lose_leaf(session: Session) -> None:
    last = tree.tree_size(session) - 1
    session.execute(delete(LogLeaf).where(LogLeaf.leaf_index == last - 1))


@pytest.mark.parametrize(
    ("tamper", "unsigned"),
    [
        (_tamper_old_leaf, 0),
        (_shorten, 0),
        (_tamper_new_leaf, 3),
        (_tamper_new_node, 3),
        (_lose_leaf, 3),
    ],
)
def test_an_inconsistent_head_is_never_signed(history: Any, tamper: Any, unsigned: int) -> None:
    head = history.sign()
    with Session(history.engine) as session, session.begin():
        if unsigned:
            history.log.append(session, history.settled_leaves({0: 3}))
        tamper(session)
    with pytest.raises(BadDigest, match="not signing"):
        history.sign()
    with Session(history.engine) as session:
        assert latest_head(session).checkpoint == head
        assert session.scalar(select(func.count()).select_from(LogHead)) > 1


def test_a_log_of_another_origin_is_not_signed(history: Any) -> None:
    other = Log("elsewhere.example", Identity.from_seed(b"o" * 32))
    with Session(history.engine) as session, pytest.raises(BadDigest, match="not signing"):
        other.sign_head(session)


def test_a_second_writer_is_refused(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(empty.engine) as session, session.begin():
        empty.log.append(session, _leaves(5))
    with Session(empty.engine) as session:
        # What a writer on another machine sees whose snapshot is one commit old.
        monkeypatch.setattr(tree, "tree_size", lambda _: 4)
        with pytest.raises(UsageError, match="one writer"):
            empty.log.append(session, _leaves(1))


def test_a_leaf_too_large_for_a_bundle_is_refused(make_manifest: Any, empty: Any) -> None:
    config = {**empty.manifest.model_config_json, "note": "x" * 66_000}
    big = make_manifest(model_config_json=config)
    with (
        Session(empty.engine) as session,
        pytest.raises(UsageError, match="shorten the texts"),
    ):
        empty.log.append(session, [RunLeaf.of(big, at_s=0, draw_tip=bytes(32))])


def test_appending_nothing_changes_nothing(empty: Any) -> None:
    with Session(empty.engine) as session:
        assert empty.log.append(session, []) == []
        assert tree.tree_size(session) == 0


def test_reading_nodes_does_not_grow_with_the_log(empty: Any) -> None:
    """Every query for nodes must go through the primary key: appends stay O(log n)."""
    statements: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "FROM log_node" in statement:
            statements.append((statement, parameters))

    with Session(empty.engine) as session, session.begin():
        empty.log.append(session, _leaves(300))
        event.listen(empty.engine, "before_cursor_execute", keep)
        tree.inclusion_proof(session, 77, 300)
        event.remove(empty.engine, "before_cursor_execute", keep)
        assert statements
        connection = session.connection()
        explain, scan = "EXPLAIN QUERY PLAN", "SCAN"
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")
            connection.exec_driver_sql("SET enable_seqscan = off")  # so few rows it would just read
            explain, scan = "EXPLAIN", "Seq Scan"
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            assert not [row for row in plan if scan in str(row)]
        assert session.scalar(text("SELECT count(*) FROM log_node")) < 600
