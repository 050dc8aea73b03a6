"""Properties of the log and the fold over random histories."""

from __future__ import annotations

from collections import defaultdict
from types import ModuleType
from typing import Any

import tlog_scales.tlog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from ledger import tree
from ledger.fold import fold
from ledger.log import Log, latest_head, read_leaves
from ledger.records import EnrolLeaf, RoundLeaf
from ledger.schema import Base
from ledger.sources import DatabaseSource
from ledger.tiles import Tile
from ledger.verify import verify
from protocol import merkle
from protocol.identity import Identity
from protocol.notes import open_checkpoint

KEY = Identity.from_seed(b"k" * 32)


def _leaf(number: int) -> EnrolLeaf:
    return EnrolLeaf(
        run_id=bytes(32), at_s=number, worker=KEY.peer_id, donor=KEY.peer_id, device_class="cpu"
    )


class LogMachine(RuleBasedStateMachine):
    """Batches, rollbacks, and heads signed at any moment, against a list in memory."""

    @initialize()
    def begin(self) -> None:
        self.engine = create_engine("sqlite://")
        Base.metadata.create_all(self.engine)
        self.log = Log("example.org/log", KEY)
        self.hashes: list[bytes] = []
        self.heads: list[tuple[int, bytes]] = []

    def _append(self, session: Session, count: int) -> list[bytes]:
        leaves = [_leaf(len(self.hashes) + n) for n in range(count)]
        first = len(self.hashes)
        assert self.log.append(session, leaves) == list(range(first, first + count))
        return [merkle.leaf_hash(leaf.canonical()) for leaf in leaves]

    @rule(count=st.integers(0, 20))
    def append(self, count: int) -> None:
        with Session(self.engine) as session, session.begin():
            added = self._append(session, count)
        self.hashes += added

    @rule(count=st.integers(1, 20))
    def crash(self, count: int) -> None:
        with Session(self.engine) as session:
            self._append(session, count)
            session.rollback()

    @rule(commits=st.booleans())
    def sign(self, commits: bool) -> None:
        with Session(self.engine) as session:
            note = self.log.sign_head(session)
            head = open_checkpoint(note, [self.log.key])
            assert (head.size, head.root) == (len(self.hashes), merkle.root(self.hashes))
            if commits:
                session.commit()
                self.heads.append((head.size, head.root))

    @invariant()
    def every_published_head_is_a_prefix(self) -> None:
        if not self.heads:
            return
        with Session(self.engine) as session:
            size = tree.tree_size(session)
            assert size == len(self.hashes)
            root = tree.root(session, size)
            for old_size, old_root in self.heads[-4:]:
                proof = tree.consistency_proof(session, old_size, size)
                merkle.verify_consistency(old_size, old_root, size, root, proof)
            newest = latest_head(session)
            assert newest is not None
            assert newest.tree_size == self.heads[-1][0]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 300), data=st.data())
def test_proofs_satisfy_an_independent_implementation(size: int, data: st.DataObject) -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        Log("example.org/log", KEY).append(session, [_leaf(n) for n in range(size)])
        index = data.draw(st.integers(0, size - 1))
        old = data.draw(st.integers(1, size))
        root, old_root = tree.root(session, size), tree.root(session, old)
        inclusion = tree.inclusion_proof(session, index, size)
        consistency = tree.consistency_proof(session, old, size)
    engine.dispose()
    leaf_hash = merkle.leaf_hash(_leaf(index).canonical())
    tlog_scales.tlog.InclusionProof(index, size, inclusion).check(leaf_hash, root)
    tlog_scales.tlog.ConsistencyProof(old, size, consistency).check(old_root, root)


@settings(max_examples=200)
@given(
    level=st.none() | st.integers(0, 63), index=st.integers(0, 10**14), width=st.integers(1, 256)
)
def test_tile_paths_round_trip(level: int | None, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert Tile.parse(tile.path) == tile


ROUNDS = st.lists(
    st.one_of(
        st.none(), st.dictionaries(st.integers(0, 4), st.integers(1, 10), min_size=1, max_size=5)
    ),
    max_size=6,
)


@settings(max_examples=15, deadline=None)
@given(rounds=ROUNDS, donors=st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_totals_of_any_history_are_sums_of_its_leaves(
    ledger_history: ModuleType, manifest: Any, rounds: list[Any], donors: list[int]
) -> None:
    history = ledger_history.History(manifest)
    history.open()
    for number, donor in enumerate(donors):
        history.enrol(f"worker{number}", donor=f"donor{donor}")
    expected: dict[str, int] = defaultdict(int)
    for steps in rounds:
        if steps is None:
            history.skip()
            continue
        history.settle(steps)
        for number, count in steps.items():
            expected[history.workers[number][1]] += count * manifest.tokens_per_step
    with Session(history.engine) as session:
        report = verify(DatabaseSource(session), root=manifest.root)
        board = fold(read_leaves(session, 0, report.size))
    history.close()
    assert {key: donor.tally.tokens for key, donor in board.donors.items()} == {
        key: expected[key] for _, key in history.workers
    }
    assert report.merged_tokens == board.total.tokens == sum(expected.values())
    assert sum(tally.tokens for tally in board.credited.values()) == board.total.tokens
    for tallies in ([d.tally for d in board.donors.values()], board.credited.values()):
        assert (
            sum(tally.pending_microcredits for tally in tallies) == board.total.pending_microcredits
        )
    leaves = [entry.leaf for entry in board.rounds.values()]
    assert all(isinstance(leaf, RoundLeaf) for leaf in leaves)
    assert len(leaves) == len(rounds)
