"""A database that somebody edited with plain SQL: ``ledger verify`` says where.

Each case works on a copy of a real record. The clumsy thief changes rows only; the clever one also
holds the log key, rebuilds the tree and signs the lie: what then remains is the fold's audit, the
earlier head in an honest hand, and the fingerprint of the root key.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from click.testing import CliRunner
from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import store_delegations
from ledger.cli import cli
from protocol import merkle
from protocol.envelope import seal
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.notes import Checkpoint, read_checkpoint, sign_checkpoint
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

Edit = Callable[[sqlite3.Connection], None]
Leaf = dict[str, Any]


@pytest.fixture
def stolen(history: Any, tmp_path: Path) -> Path:
    """A copy of the record: leaves 0 run, 1-3 enrol, 4-7 round 0, 8 skip, 9-13 round 2."""
    copy = tmp_path / "stolen.db"
    shutil.copy(tmp_path / "ledger.db", copy)
    return copy


def verify(database: Path, *options: str) -> str:
    """What the command says: its report, or the error's sentence."""
    result = CliRunner().invoke(cli, ["verify", "--db", f"sqlite:///{database}", *options])
    if result.exception is None:
        return str(result.stdout)
    assert isinstance(result.exception, ProtocolError), repr(result.exception)
    return str(result.exception)


def sql(database: Path, *statements: str) -> None:
    connection = sqlite3.connect(database)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_the_copy_itself_is_whole(history: Any, stolen: Path) -> None:
    assert "verified: 14 leaves" in verify(stolen, "--root", history.manifest.root)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM log_leaf WHERE leaf_index = 5", "leaf 5 is missing"),
        ("DELETE FROM log_leaf WHERE leaf_index = 13", "leaf 13 is missing"),
        ("DELETE FROM log_leaf WHERE leaf_index = 0", "leaf 0 is missing"),
        ("UPDATE log_leaf SET data = x'7b7d' WHERE leaf_index = 2", "leaf 2"),
        ("UPDATE log_leaf SET data = x'ff' WHERE leaf_index = 2", "leaf 2"),
        ("UPDATE log_leaf SET data = x'' WHERE leaf_index = 2", "leaf 2"),
        ("UPDATE log_leaf SET data = replace(data, '5120', '9999')", "leaf 0 is not bytes"),
        ("DELETE FROM log_node WHERE level = 1 AND position = 2", "node 2 of level 1"),
        ("UPDATE log_node SET hash = zeroblob(32) WHERE level = 3", "leaf 0"),
        ("UPDATE log_head SET checkpoint = replace(checkpoint, '14', '13')", "hash to the root"),
        ("UPDATE log_head SET checkpoint = 'no note'", "not a signed note"),
        ("DELETE FROM log_head", "no head"),
        ("UPDATE log_head SET checkpoint = CAST(checkpoint AS BLOB)", "not text"),
        ("DELETE FROM delegations", "--vkey"),
        ("UPDATE delegations SET envelope = 'text'", "not bytes"),
        ("UPDATE delegations SET envelope = x'0a01ff'", "delegation is damaged"),
        ("UPDATE delegations SET envelope = zeroblob(40)", ""),
        ("UPDATE log_leaf SET donor = 'eve' WHERE leaf_index = 4", "leaf 4 is filed under another"),
        ("UPDATE log_leaf SET round = 9 WHERE leaf_index = 9", "leaf 9 is filed under another"),
        ("UPDATE log_leaf SET kind = 'enrol' WHERE leaf_index = 9", "leaf 9 is filed under"),
        ("UPDATE log_leaf SET assignment_id = NULL WHERE leaf_index = 9", "leaf 9 is filed under"),
    ],
)
def test_a_clumsy_edit_is_named(stolen: Path, statement: str, words: str) -> None:
    sql(stolen, statement)
    said = verify(stolen)
    assert "verified" not in said
    assert words in said


def test_two_leaves_that_changed_places_are_named(stolen: Path) -> None:
    sql(
        stolen,
        "UPDATE log_leaf SET leaf_index = -1 WHERE leaf_index = 4",
        "UPDATE log_leaf SET leaf_index = 4 WHERE leaf_index = 5",
        "UPDATE log_leaf SET leaf_index = 5 WHERE leaf_index = -1",
    )
    assert "leaf 4" in verify(stolen)


# ---- with the log key in the wrong hands ----


def forge(history: Any, change: Callable[[list[Leaf]], None]) -> None:
    """Change the list of leaves at will, rebuild the tree, sign it with the real log key."""
    path = history.engine.url.database
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT data FROM log_leaf ORDER BY leaf_index")
    leaves = [json.loads(data) for (data,) in rows]
    change(leaves)
    frontier, nodes = tree.Frontier(0, []), []
    with connection:
        for table in ("log_leaf", "log_node", "log_head"):
            connection.execute(f"DELETE FROM {table}")
        for index, leaf in enumerate(leaves):
            data = rfc8785.dumps(leaf)
            nodes += frontier.push(merkle.leaf_hash(data))
            names = ("kind", "round", "donor", "assignment_id")
            connection.execute(
                "INSERT INTO log_leaf (leaf_index, data, kind, round, donor, assignment_id) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (index, data, *(leaf.get(name) for name in names)),
            )
        connection.executemany("INSERT INTO log_node VALUES (?, ?, ?)", nodes)
    connection.close()
    history.sign()


def without(*indexes: int) -> Callable[[list[Leaf]], None]:
    def change(leaves: list[Leaf]) -> None:
        for index in sorted(indexes, reverse=True):
            del leaves[index]

    return change


def put(index: int, **fields: Any) -> Callable[[list[Leaf]], None]:
    return lambda leaves: leaves[index].update(fields)


def again(index: int, **fields: Any) -> Callable[[list[Leaf]], None]:
    """A copy of a leaf, right behind it."""
    return lambda leaves: leaves.insert(index + 1, {**leaves[index], **fields})


def swap(first: int, second: int) -> Callable[[list[Leaf]], None]:
    def change(leaves: list[Leaf]) -> None:
        leaves[first], leaves[second] = leaves[second], leaves[first]

    return change


FORGED: dict[str, tuple[Callable[[list[Leaf]], None], str]] = {
    "the run left out": (without(0), "leaf 0: the log does not begin"),
    "an enrolment left out": (without(1), "not enrolled"),
    "a credit left out": (without(4), "tokens were paid for round 0"),
    "a skipped round left out": (without(8), "round 2 comes after round 0"),
    "the first round left out": (without(4, 5, 6, 7), "first round of a run is 0"),
    "rounds in another order": (swap(7, 8), "first round of a run is 0"),
    "a credit paid twice": (again(4), "pays the same work twice"),
    "a credit paid twice by another name": (again(4, assignment_id="0" * 32), "were paid"),
    "reducing paid twice": (again(6), "pays the same work twice"),
    "more tokens than merged": (put(13, merged_tokens=2000), "were merged"),
    "fewer tokens than merged": (put(13, merged_tokens=10**6), "were merged"),
    "fewer members": (put(7, members=1), "contributions were paid"),
    "no result": (put(7, result_digest=None), "names its roster and its result"),
    "members of a skipped round": (put(8, members=1), "neither members nor a result"),
    "an unknown kind": (put(5, kind="gift"), "leaf 5"),
    "another run": (put(5, run_id="0" * 64), "leaf 5: speaks of another run"),
    "a negative credit": (put(5, microcredits=-1), "leaf 5"),
    "a fraction of a credit": (put(5, microcredits=0.5), "leaf 5"),
    "a huge credit": (put(5, microcredits=2**53 - 1), "the formula gives"),
    "nobody's key": (put(5, worker="nobody"), "leaf 5"),
    "deep rubbish": (put(0, manifest={"a": json.loads("[" * 400 + "]" * 400)}), "leaf 0"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_signed_lie_is_named(history: Any, name: str) -> None:
    change, words = FORGED[name]
    forge(history, change)
    said = verify(history.engine.url.database, "--root", history.manifest.root)
    assert "verified" not in said
    assert words in said


def test_a_history_without_contradictions_is_caught_by_an_earlier_head(
    history: Any, tmp_path: Path
) -> None:
    saved = tmp_path / "head"
    saved.write_text(history.sign())
    forge(history, without(9, 10, 11, 12, 13))
    database = history.engine.url.database
    assert "verified: 9 leaves" in verify(database)
    assert "shrank" in verify(database, "--old-checkpoint", str(saved))


def test_a_stranger_with_a_root_key_of_its_own_is_not_the_run(history: Any) -> None:
    stranger = Identity.from_seed(b"e" * 32).peer_id
    assert "root key" in verify(history.engine.url.database, "--root", stranger)


# ---- heads by the wrong key, or of the wrong log ----


def sign_as(history: Any, key: Identity, *, origin: str = "") -> None:
    """Replace the newest head by one that ``key`` signed."""
    head = read_checkpoint(history.sign())
    note = sign_checkpoint(Checkpoint(origin or head.origin, head.size, head.root), key)
    connection = sqlite3.connect(history.engine.url.database)
    with connection:
        connection.execute("UPDATE log_head SET checkpoint = ?", (note,))
    connection.close()


def delegate_log(history: Any, ledger_history: Any, key: Identity, **window: int) -> None:
    envelope = delegate(
        ledger_history.ROOT,
        run_id=history.manifest.run_id,
        purpose=wire.KEY_PURPOSE_LOG,
        public_key=key.public.raw,
        serial=77,
        **window,
    )
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [envelope])


def test_a_head_by_a_key_that_nobody_delegated_is_refused(history: Any) -> None:
    sign_as(history, Identity.from_seed(b"e" * 32))
    assert "no signature of a key that is believed" in verify(history.engine.url.database)


def test_a_head_of_another_log_is_refused(history: Any, ledger_history: Any) -> None:
    sign_as(history, ledger_history.LOG_KEY, origin="evil.example")
    assert "head is of 'evil.example'" in verify(history.engine.url.database)


def test_a_key_that_expired_before_the_newest_leaf_is_refused(
    history: Any, ledger_history: Any
) -> None:
    old = Identity.from_seed(b"o" * 32)
    delegate_log(history, ledger_history, old, not_before_s=0, not_after_s=history.now_s - 1)
    sign_as(history, old)
    assert "no signature of a key that is believed" in verify(history.engine.url.database)


def test_a_revoked_key_is_refused(history: Any, ledger_history: Any) -> None:
    assert "verified" in verify(history.engine.url.database)
    revocation = wire.Revocation(run_id=history.manifest.run_id, serial=1, reason="stolen")
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [], [seal(revocation, ledger_history.ROOT)])
    assert "revoked" in verify(history.engine.url.database)


def test_a_delegation_that_the_root_did_not_sign_is_refused(history: Any) -> None:
    eve = Identity.from_seed(b"e" * 32)
    envelope = delegate(
        eve,
        run_id=history.manifest.run_id,
        purpose=wire.KEY_PURPOSE_LOG,
        public_key=eve.public.raw,
        serial=78,
        not_before_s=0,
        not_after_s=1 << 40,
    )
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [envelope])
    sign_as(history, eve)
    assert "expected a record signed by" in verify(history.engine.url.database)
