"""Random histories: boards that follow the log equal boards that are counted from its leaves."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from fractions import Fraction
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from ledger.crowd_records import (
    CampaignEndLeaf,
    CampaignLeaf,
    DonationLeaf,
    KeyRotationLeaf,
    MembershipLeaf,
    MergeLeaf,
    PoolLeaf,
    TeamLeaf,
    VoidLeaf,
)
from ledger.fold import Board, fold
from ledger.leaderboard.donors import donors, matches, place_of
from ledger.leaderboard.names import About, Names
from ledger.leaderboard.snapshot import BOARDS, SORTS, Snapshot, entry_of, is_on
from ledger.leaderboard.standings import Standings
from ledger.log import read_leaves
from ledger.standing import standings
from protocol.errors import BadRecord
from protocol.notes import Checkpoint

WORKERS = 4
POLICY = {
    "p_min": 1.0,
    "probation_passes": 3,
    "pending_contributions": 2,
    "pending_s": 1200.0,
    "last_pending_s": 3000.0,
}
ACTS = ("merge", "rotate", "team", "member", "pool", "donate", "void", "campaign", "end")
AUDITS = ("judge", "draw", "final", "reverse", "appeal")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["settle", "settle", "wait", "look", "name", *AUDITS, *ACTS]),
        st.integers(0, WORKERS - 1),
        st.integers(0, 2**16),
    ),
    min_size=10,
    max_size=45,
)

BEGINNING = (
    ("settle", 0, 0),
    ("team", 0, 0),
    ("member", 1, 4),
    ("pool", 2, 0),
    ("donate", 0, 1),
    ("donate", 0, 4),  # by nobody that the record knows
    ("settle", 2, 0),
)
"""So that every history has a team with a member, and a pool with money and credit."""


class _Run:
    """A run whose organiser takes one step after another, as far as the fold lets it."""

    def __init__(self, rig: ModuleType, manifest: Any) -> None:
        self.rig = rig
        self.history = rig.History(manifest)
        self.history.open()
        for number in range(WORKERS):
            self.history.enrol(f"worker{number}", donor=f"donor{number % 3}")
        with Session(self.history.engine) as session:
            self.leaves = list(read_leaves(session, 0, self.history.size()))
        self.board = fold(self.leaves)
        self.names: dict[str, About] = {}
        self.acts = 0

    def take(self, leaf: Any) -> None:
        """Append a leaf, unless it contradicts what there is."""
        data = leaf.canonical()
        try:
            self.board.apply(data)
        except BadRecord:
            return
        self.leaves.append(data)

    def step(self, what: str, worker: int, salt: int) -> None:
        history = self.history
        donor = history.workers[worker][1]
        mine = [c for c in self.board.accounts.credits.values() if c.leaf.donor == donor]
        if what == "wait":
            history.now_s += (1500, 90_000, 8 * 86_400, 31 * 86_400)[salt % 4]
        elif what == "settle":
            for leaf in history.settled_leaves({worker: 1 + worker, (worker + 1) % WORKERS: 2}):
                self.take(leaf)
        elif what == "draw":
            self.take(history.draw_leaf(self.board.audits.chain.newest_round + 1))
        elif what in ("judge", "appeal"):
            self._judge(worker, salt, appeal=what == "appeal")
        elif what == "final":
            for credit in mine:
                self.take(history.final_leaf(worker, [credit.index]))
        elif what == "name":
            name = ("", "Ada", "ADA lovelace", "İstanbul", "zoë")[salt % 5]
            self.names = {**self.names, donor: About(name)}
            if not name:
                del self.names[donor]
        elif what in ACTS:
            self._act(what, donor, salt)
        if what in ("reverse", "appeal"):
            self._reverse(worker, mine, restored=what == "appeal")

    def _judge(self, worker: int, salt: int, *, appeal: bool) -> None:
        said = {"why": "appeal"} if appeal else {}
        verdict = "overturned" if appeal else ("passed", "failed", "unavailable")[salt % 3]
        for round_ in range(self.history.round):
            digest = hashlib.sha256(f"{len(self.leaves)} {round_}".encode()).digest()
            self.take(
                self.history.verdict_leaf(round_, worker, verdict, record_digest=digest, **said)
            )

    def _reverse(self, worker: int, mine: list[Any], *, restored: bool) -> None:
        for verdict_leaf in list(self.board.audits.judgements)[-4:]:
            for credit in mine:
                self.take(
                    self.history.reversal_leaf(
                        worker,
                        [credit.index],
                        verdict_leaf,
                        restored=restored,
                        microcredits=credit.leaf.microcredits,
                    )
                )

    def _act(self, what: str, donor: str, salt: int) -> None:
        other = self.rig.identity(f"donor{salt % 3}").peer_id
        fresh = self.rig.identity(f"new{salt % 2}").peer_id
        team, campaign = f"{salt % 2:032x}", f"{16 + salt % 2:032x}"
        zero = self.board.campaigns.zero.campaign
        money = {"campaign": zero, "currency": "EUR", "treasurer": self.rig.ROOT.peer_id}
        at_s = self.history.now_s
        leaves: dict[str, tuple[Any, dict[str, Any]]] = {
            "merge": (MergeLeaf, {"donor": donor, "into": other}),
            "rotate": (KeyRotationLeaf, {"donor": donor, "new": fresh}),
            "team": (TeamLeaf, {"team": team, "donor": donor}),
            "member": (MembershipLeaf, {"donor": donor, "team": team if salt % 3 else None}),
            "pool": (PoolLeaf, {"pool": donor, **money}),
            "donate": (
                DonationLeaf,
                {
                    "donation": f"{salt:032x}",
                    "donor": other if salt % 4 else None,
                    "pool": next(iter(self.board.crowd.pools.pools), None),
                    "amount_minor": 1 + salt % 997,
                    "received_s": at_s,
                    "visibility": "public",
                    **money,
                },
            ),
            "void": (
                VoidLeaf,
                {"leaf": max(self.board.crowd.voidable, default=0), "reason": "mistake"},
            ),
            "campaign": (
                CampaignLeaf,
                {
                    "campaign": campaign,
                    "revision": 0,
                    "goal_microcredits": 100 + salt,
                    "starts_s": at_s,
                    "when_reached": "close" if salt % 2 else "continue",
                    "when_missed": "continue",
                },
            ),
            "end": (CampaignEndLeaf, {"campaign": campaign, "outcome": "closed"}),
        }
        self.acts += 1
        digest = hashlib.sha256(b"act %d" % self.acts).digest()
        kind, fields = leaves[what]
        run_id = self.history.manifest.run_id
        self.take(kind(run_id=run_id, at_s=at_s, record_digest=digest, **fields))


def _frozen(standings_: Standings, names: dict[str, About]) -> Snapshot:
    head = Checkpoint("example.org/x", standings_.board.size, bytes(32))
    return standings_.freeze(1, "note", head, Names(donors=dict(names)))


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    """Every number and every order that a board shows."""
    everyone = len(snapshot.people)
    return {
        "people": dict(snapshot.people),
        "orders": {name: order.page(0, everyone) for name, order in snapshot.orders.items()},
        "ranks": {
            (board, key): snapshot.rank(board, person)
            for board in BOARDS
            for key, person in snapshot.people.items()
        },
        "averages": {key: snapshot.per_day(p.weighted) for key, p in snapshot.people.items()},
        "anonymous": snapshot.anonymous,
        "given up": dict(snapshot.given_up),
        "found": {word: matches(snapshot, "all", word) for word in ("ada", "İST", "e", "zz")},
        "newest": snapshot.newest_s,
    }


def _counted(leaves: list[bytes], board: Board) -> dict[str, tuple[int, int, Fraction]]:
    """Day, month and average of every person, counted from the leaves and from nothing else."""
    parsed = [json.loads(data) for data in leaves]
    newest_h = max(leaf["at_s"] for leaf in parsed) // 3600
    paid: dict[int, dict[str, Any]] = {}
    for index, leaf in enumerate(parsed):
        if leaf["kind"] == "credit":
            paid[index] = {**leaf, "stands": True}
        elif leaf["kind"] == "reversal":
            for credit in leaf["credits"]:
                paid[credit]["stands"] = leaf["restored"]
    sums: dict[str, tuple[int, int, Fraction]] = defaultdict(lambda: (0, 0, Fraction(0)))
    for leaf in paid.values():
        if not leaf["stands"]:
            continue
        owner = board.people.owner_of(leaf["donor"])
        age_h = newest_h - leaf["at_s"] // 3600
        day, month, average = sums[owner]
        amount = leaf["microcredits"]
        decayed = Fraction(amount) * Fraction(2.0 ** (-age_h / 168))
        sums[owner] = (
            day + (amount if age_h < 24 else 0),
            month + (amount if age_h < 720 else 0),
            average + decayed,
        )
    return sums


def _teams(leaves: list[bytes]) -> Counter[str]:
    """Standing credit of every team, counted from the leaves: of the team of the time."""
    owner: dict[str, str] = {}
    team: dict[str, str | None] = {}
    counts: dict[int, tuple[str | None, int, bool]] = {}

    def person(key: str) -> str:
        while key in owner:
            key = owner[key]
        return key

    for index, leaf in enumerate(map(json.loads, leaves)):
        if leaf["kind"] == "membership":
            team[person(leaf["donor"])] = leaf["team"]
        elif leaf["kind"] in ("merge", "key_rotation"):
            old = leaf["donor"]
            new = leaf["into"] if leaf["kind"] == "merge" else leaf["new"]
            owner[old] = new
            left = team.pop(old, None)
            if leaf["kind"] == "key_rotation":
                team[new] = left
        elif leaf["kind"] == "credit":
            counts[index] = (team.get(person(leaf["donor"])), leaf["microcredits"], True)
        elif leaf["kind"] == "reversal":
            for credit in leaf["credits"]:
                counts[credit] = (*counts[credit][:2], leaf["restored"])
    sums: Counter[str] = Counter()
    for name, amount, stands in counts.values():
        if name is not None and stands:
            sums[name] += amount
    return +sums


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_boards_that_follow_the_log_equal_boards_that_are_counted_from_it(
    ledger_history: ModuleType, make_manifest: Any, steps: list[Any]
) -> None:
    config = make_manifest().model_config_json
    manifest = make_manifest(
        model_config_json={**config, "hidden_size": 512, "num_hidden_layers": 8},
        verification=POLICY,
    )
    run = _Run(ledger_history, manifest)
    following, taken = Standings(Board()), 0
    for what, worker, salt in [*BEGINNING, *steps]:
        run.step(what, worker, salt)
        if what == "look":
            for data in run.leaves[taken:]:
                following.apply(data)
            taken = len(run.leaves)
            _frozen(following, run.names)
    for data in run.leaves[taken:]:
        following.apply(data)
    followed = _frozen(following, run.names)
    run.history.close()

    rebuilt = Standings(Board())
    for data in run.leaves:
        rebuilt.apply(data)
    assert _shown(_frozen(rebuilt, run.names)) == _shown(followed)
    _check_people(followed, run)
    _check_orders(followed, run)


def _check_people(snapshot: Snapshot, run: _Run) -> None:
    board = fold(run.leaves)
    assert set(snapshot.people) == {one.owner for one in standings(board)}
    totals = Counter[str]()
    counted = _counted(run.leaves, board)
    for one in standings(board):
        person = snapshot.people[one.owner]
        assert person.total_microcredits == one.total_microcredits
        assert person.sponsored_microcredits == one.sponsored.total_microcredits
        day, month, average = counted[one.owner]
        assert (person.day_microcredits, person.month_microcredits) == (day, month)
        per_day = float(average) * 0.693147181 / 7
        shown = snapshot.per_day(person.weighted)
        assert abs(shown - per_day) <= 1 + per_day / 10**6
        for status in ("pending", "final", "forfeited", "unpaid"):
            totals[status] += getattr(person, f"{status}_microcredits")
    for status in totals:
        unnamed = getattr(snapshot.anonymous.sponsored, f"{status}_microcredits")
        assert totals[status] + unnamed == getattr(board.total, f"{status}_microcredits")
    teams = board.crowd.teams.teams.items()
    assert +Counter({name: team.tally.total_microcredits for name, team in teams}) == _teams(
        run.leaves
    )


def _check_orders(snapshot: Snapshot, run: _Run) -> None:
    for board in BOARDS:
        for sort in SORTS:
            options: dict[str, Any] = {"board": board, "sort": sort}
            whole = donors(snapshot, search="", page=1, per_page=500, **options)
            keys = [row.donor for row in whole.donors]
            on_board = [p for p in snapshot.people.values() if is_on(board, p)]
            called = snapshot.names.donor
            wanted = sorted(entry_of(board, sort, p, called(p.donor)) for p in on_board)
            assert keys == [placed[-1] for placed in wanted]
            for number, key in enumerate(keys):
                page = donors(snapshot, search="", page=number + 1, per_page=1, **options)
                assert [row.donor for row in page.donors] == [key]
                assert place_of(snapshot, who=key, **options) == (key, number)
    for old, owner in snapshot.given_up.items():
        found = place_of(snapshot, "all", "credit", old)
        assert found is not None
        assert found[0] == owner
    for key, about in run.names.items():
        if key in snapshot.people:
            assert key in matches(snapshot, "all", about.name)
