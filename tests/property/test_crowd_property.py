"""Random histories of everything that a record can hold, read a second time by a dumb reader.

``Naive`` keeps no running sums: for each question it goes through all leaves again. The fold must
agree with it at every prefix that is looked at, and with itself, however it came there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from ledger.donors import erase_profile, set_profile
from ledger.fold import Board, fold
from ledger.log import read_leaves
from ledger.records import (
    CampaignEndLeaf,
    CampaignLeaf,
    CreditLeaf,
    DonationLeaf,
    EnrolLeaf,
    FinalLeaf,
    KeyRotationLeaf,
    Leaf,
    MembershipLeaf,
    MergeLeaf,
    PledgeLeaf,
    PoolLeaf,
    ReversalLeaf,
    RunLeaf,
    TeamLeaf,
    VerdictLeaf,
    VoidLeaf,
)
from ledger.schema import ActRow
from ledger.sources import DatabaseSource
from ledger.standing import Standing, anonymous, standing, standings, take_touched
from ledger.tally import Amounts
from ledger.verify import verify
from protocol.audit_policy import Verdict, Why
from protocol.errors import BadRecord

STATUSES = ("pending", "final", "forfeited", "unpaid")
NAMES = ("d0", "d1", "d2", "pool", "n0", "n1", "n2")
CAMPAIGNS = ("one", "two", "three")
THINGS = ("t0", "t1", "t2", "t3")
DAY_S = 86_400

Results = dict[str, Any]


class Naive:
    """The record, read by the documents' text alone."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = leaves
        self.status: dict[int, str] = {}  # by index of the credit leaf
        self.tags: dict[int, set[Any]] = {}
        self.owner: dict[str, str] = {}  # of every key that was seen
        self.team: dict[str, str | None] = {}  # by owner
        self.open: str | None = None
        self.now_s = 0
        for index, leaf in enumerate(leaves):
            self.now_s = max(self.now_s, leaf.at_s)
            self._close()
            self._read(index, leaf)

    def amount(self, tag: Any, status: str) -> int:
        return sum(
            self.leaves[index].microcredits
            for index, now in self.status.items()
            if now == status and tag in self.tags[index]
        )

    def amounts(self, tag: Any) -> Amounts:
        return Amounts(*(self.amount(tag, status) for status in STATUSES))

    def results(self) -> Results:
        people = {name: Amounts() for name in self.owner.values()}
        unnamed = Amounts()
        for key in self.owner:
            people[self.owner[key]] += self.amounts(("donor", key))
        stretches = {tag for tags in self.tags.values() for tag in tags if tag[0] == "stretch"}
        for _, pool, gifts in stretches:
            given = self.amounts(("stretch", pool, gifts))
            people[pool] -= given
            weights = [self.leaves[gift].amount_minor for gift in gifts]
            parts = zip(*(divided(a, weights) for a in given.by_status()), strict=True)
            for gift, part in zip(gifts, parts, strict=True):
                donor = self.leaves[gift].donor
                if donor is None:
                    unnamed += Amounts(*part)
                else:
                    people[self.owner[donor]] += Amounts(*part)
        kinds = {"campaign": CampaignLeaf, "pledge": PledgeLeaf, "team": TeamLeaf}
        counted = {
            (kind, getattr(leaf, kind)): self.amounts((kind, getattr(leaf, kind)))
            for kind, leaf_class in kinds.items()
            for leaf in self.leaves
            if isinstance(leaf, leaf_class)
        }
        return {"people": people, "anonymous": unnamed, "counted": counted, "open": self.open}

    def _newest(self, leaf_class: type, field: str, name: str) -> Any:
        found = [
            leaf
            for leaf in self.leaves[: self.index]
            if isinstance(leaf, leaf_class) and getattr(leaf, field) == name
        ]
        return found[-1] if found else None

    index = 0

    def _close(self) -> None:
        if self.open is None:
            return
        terms = self._newest(CampaignLeaf, "campaign", self.open)
        reached = self.amount(("campaign", self.open), "final") >= terms.goal_microcredits
        late = terms.ends_s is not None and self.now_s > terms.ends_s
        if (reached and terms.when_reached == "close") or (
            late and not reached and terms.when_missed == "close"
        ):
            self.open = None

    def _read(self, index: int, leaf: Leaf) -> None:
        self.tags[index] = set()
        if isinstance(leaf, EnrolLeaf):
            self.owner.setdefault(leaf.donor, leaf.donor)
        elif isinstance(leaf, CreditLeaf):
            self.status[index] = "pending"
            self.tags[index] = self._tags(leaf)
        elif isinstance(leaf, FinalLeaf):
            self.status.update(dict.fromkeys(leaf.credits, "final"))
        elif isinstance(leaf, ReversalLeaf):
            verdict = self.leaves[leaf.verdict_leaf]
            assert isinstance(verdict, VerdictLeaf)
            taken = "forfeited" if verdict.verdict == "failed" else "unpaid"
            self.status.update(dict.fromkeys(leaf.credits, "pending" if leaf.restored else taken))
        elif isinstance(leaf, CampaignLeaf):
            self.open = leaf.campaign
        elif isinstance(leaf, CampaignEndLeaf):
            self.open = None if self.open == leaf.campaign else self.open
        elif isinstance(leaf, MembershipLeaf):
            self.team[leaf.donor] = leaf.team
        elif isinstance(leaf, KeyRotationLeaf | MergeLeaf):
            new = leaf.new if isinstance(leaf, KeyRotationLeaf) else leaf.into
            self.owner.setdefault(new, new)
            for key, owner in self.owner.items():
                if owner == leaf.donor:
                    self.owner[key] = new
            team = self.team.pop(leaf.donor, None)
            if isinstance(leaf, KeyRotationLeaf):
                self.team[new] = team
        self.index = index + 1

    def _tags(self, leaf: CreditLeaf) -> set[Any]:
        owner = self.owner[leaf.donor]
        tags: set[Any] = {("donor", leaf.donor)}
        campaigns = {leaf.run_id[:32]}
        if self.open is not None:
            terms = self._newest(CampaignLeaf, "campaign", self.open)
            if leaf.at_s >= terms.starts_s:
                campaigns.add(self.open)
                tags.add(("campaign", self.open))
        if self.team.get(owner):
            tags.add(("team", self.team[owner]))
        pledge = self._pledge(owner, leaf.at_s, campaigns)
        if pledge is not None:
            tags.add(("pledge", pledge))
        gifts = self._gifts(leaf.donor)
        if gifts:
            tags.add(("stretch", leaf.donor, gifts))
        return tags

    def _void(self) -> set[int]:
        return {leaf.leaf for leaf in self.leaves[: self.index] if isinstance(leaf, VoidLeaf)}

    def _pledge(self, owner: str, at_s: int, campaigns: set[str]) -> str | None:
        newest: dict[str, tuple[int, PledgeLeaf]] = {}
        for index, leaf in enumerate(self.leaves[: self.index]):
            if isinstance(leaf, PledgeLeaf):
                newest[leaf.pledge] = (index, leaf)
        mine = [
            leaf
            for index, leaf in newest.values()
            if leaf.donor is not None
            and self.owner[leaf.donor] == owner
            and leaf.microcredits
            and at_s <= leaf.until_s
            and leaf.campaign in campaigns
            and index not in self._void()
        ]
        for leaf in mine:
            has = self.amounts(("pledge", leaf.pledge)).total_microcredits
            if has < leaf.microcredits:
                return leaf.pledge
        return mine[0].pledge if mine else None

    def _gifts(self, pool: str) -> tuple[int, ...]:
        void = self._void()
        pools = [
            index
            for index, leaf in enumerate(self.leaves[: self.index])
            if isinstance(leaf, PoolLeaf) and leaf.pool == pool and index not in void
        ]
        return tuple(
            index
            for index, leaf in enumerate(self.leaves[: self.index])
            if pools and isinstance(leaf, DonationLeaf) and leaf.pool == pool and index not in void
        )


def divided(amount: int, weights: list[int]) -> list[int]:
    """Largest remainder, with fractions."""
    exact = [Fraction(amount * weight, sum(weights)) for weight in weights]
    parts = [int(share) for share in exact]
    while sum(parts) < amount:
        lack = [share - part for share, part in zip(exact, parts, strict=True)]
        parts[lack.index(max(lack))] += 1
    return parts


def folded(board: Board) -> Results:
    """What the fold says of the same things."""
    crowd = board.crowd
    counted = {
        ("campaign", name): Amounts.of(campaign.tally)
        for name, campaign in board.campaigns.campaigns.items()
        if not campaign.is_zero
    }
    counted |= {("pledge", name): Amounts.of(p.tally) for name, p in crowd.pledges.pledges.items()}
    counted |= {("team", name): Amounts.of(t.tally) for name, t in crowd.teams.teams.items()}
    current = board.campaigns.current
    return {
        "people": {person.owner: person.net for person in standings(board)},
        "anonymous": anonymous(board),
        "counted": counted,
        "open": current.campaign if current else None,
    }


class Writer:
    """Makes leaves at random; only what the fold accepts is kept."""

    def __init__(self, history: Any, crowd: Any, rig: ModuleType) -> None:
        self.history, self.crowd, self.rig = history, crowd, rig
        self.board = Board()
        self.leaves: list[Leaf] = []
        self.rows: list[ActRow] = []
        self.shown: dict[str, Standing] = {}  # kept up to date by what was touched
        self.checked: list[tuple[int, Results]] = []
        self.drawn = -1
        self.failed: list[tuple[int, int, int]] = []  # (leaf, round, worker)
        self.revisions: dict[str, int] = {}

    def offer(self, leaf: Leaf) -> bool:
        try:
            self.board.apply(leaf.canonical())
        except BadRecord:
            return False
        self.leaves.append(leaf)
        self.board.check_sums()
        for key in take_touched(self.board):
            if self.board.people.is_given_up(key):
                self.shown.pop(key, None)
            else:
                self.shown[key] = standing(self.board, key)
        return True

    def act(self, record: Any, signer: Any) -> bool:
        act = self.crowd.sign(record, signer)
        leaf = self.crowd.leaf(record, signer)
        if not self.offer(leaf):
            return False
        row = ActRow(
            leaf_index=self.board.size - 1,
            digest=act.digest.hex(),
            signer=act.signer,
            public=self.board.crowd.is_public(leaf),
            envelope=act.envelope.SerializeToString(deterministic=True),
        )
        self.rows.append(row)
        return True

    def play(self, moves: Sequence[tuple[str, int, int]]) -> None:
        for name, first, second in moves:
            getattr(self, name)(first, second)
            if len(self.leaves) % 7 == 0:
                self.checked.append((len(self.leaves), folded(self.board)))

    # ---- moves ----

    def enrol(self, first: int, second: int) -> None:
        name = NAMES[first % len(NAMES)]
        worker = self.rig.identity(f"device {first} {second}").peer_id
        leaf = EnrolLeaf(
            run_id=self.history.manifest.run_id,
            at_s=self.history.now_s,
            worker=worker,
            donor=self.rig.identity(name).peer_id,
            device_class="cpu",
        )
        if self.offer(leaf):
            self.history.workers.append((worker, leaf.donor))

    def settle(self, first: int, second: int) -> None:
        workers = [n for n in range(len(self.history.workers)) if first >> (n % 8) & 1] or [0]
        for leaf in self.history.settled_leaves({n: 1 + (second + n) % 9 for n in workers}):
            assert self.offer(leaf)

    def audit(self, first: int, _second: int) -> None:
        """Draw for a round, judge each of its contributions, then settle what became of them."""
        rounds = {leaf.round for leaf in self.leaves if isinstance(leaf, CreditLeaf)}
        number = min((r for r in rounds if r > self.drawn), default=None)
        if number is None:
            return
        self.drawn = number
        assert self.offer(self.history.draw_leaf(number))
        keys = [worker for worker, _ in self.history.workers]
        for leaf in list(self.leaves):
            if isinstance(leaf, CreditLeaf) and leaf.round == number and leaf.work == "training":
                worker = next(
                    n
                    for n in range(len(keys))
                    if keys[n] == leaf.worker
                    and self.history.workers[n][1] == leaf.donor
                    and leaf.assignment_id == self._assignment(number, n)
                )
                word = (Verdict.PASSED, Verdict.PASSED, Verdict.FAILED, Verdict.UNAVAILABLE)[
                    (first >> worker % 6) % 4
                ]
                self._judge(number, worker, word)
        self.history.now_s += 8 * DAY_S
        self._final()

    def overturn(self, first: int, _second: int) -> None:
        if not self.failed:
            return
        index, number, worker = self.failed.pop(first % len(self.failed))
        leaf = self._verdict(number, worker, Verdict.OVERTURNED, why=Why.APPEAL)
        if self.offer(leaf):
            self._reverse(self.board.size - 1, restored=True)
        assert index < self.board.size

    def merge(self, first: int, second: int) -> None:
        old, new = self._name(first), self._name(second)
        self.act(self.crowd.account_merge(old, new), old)

    def rotate(self, first: int, second: int) -> None:
        old, new = self._name(first), NAMES[4 + second % 3]
        self.act(self.crowd.key_change(old, new), old)

    def pledge(self, first: int, second: int) -> None:
        name, donor = THINGS[first % len(THINGS)], self._name(second)
        revision = self.revisions.get(name, 0)
        record = self.crowd.pledged(
            name,
            donor,
            revision=revision,
            campaign=self._campaign(first // 4),
            microcredits=(0, 1, 200, 500, 10**6)[second % 5],
            until_s=self.history.now_s + (1000, 10**8)[first % 2],
            visibility=("public", "public", "private")[first % 3],
        )
        if self.act(record, donor):
            self.revisions[name] = revision + 1

    def pool(self, first: int, second: int) -> None:
        record = self.crowd.pooled(NAMES[3 + first % 2], campaign=self._campaign(second))
        self.act(record, self.rig.TREASURER)

    def donate(self, first: int, second: int) -> None:
        record = self.crowd.gift(
            f"g{first} {second}",
            ("", *NAMES)[first % 8],
            ("", "pool", "pool", "n0")[second % 4],
            amount_minor=1 + 37 * first + second,
            campaign=self._campaign(second // 4),
            visibility=("public", "public", "secret")[second % 3],
        )
        self.act(record, self.rig.TREASURER)

    def void(self, first: int, _second: int) -> None:
        indexes = list(self.board.crowd.voidable)
        if not indexes:
            return
        index = indexes[first % len(indexes)]
        leaf = self.leaves[index]
        names = {self.rig.identity(name).peer_id: name for name in NAMES}
        signer: Any = self.rig.TREASURER
        if isinstance(leaf, PledgeLeaf):
            signer = names.get(leaf.donor or "", "d0")
        self.act(self.crowd.voiding(index), signer)

    def campaign(self, first: int, second: int) -> None:
        name = CAMPAIGNS[first % 3]
        known = self.board.campaigns.campaigns.get(self.rig.name_id(name).hex())
        record = self.crowd.terms(
            name,
            revision=len(known.revisions) if known else 0,
            goal_microcredits=(1, 100, 300, 10**6)[second % 4],
            starts_s=self.history.now_s + (0, 0, 600)[second % 3],
            ends_s=(0, self.history.now_s + 2000)[first // 3 % 2],
            when_reached=("continue", "close")[second // 4 % 2],
            when_missed=("continue", "close")[second // 8 % 2],
        )
        self.act(record, self.rig.CAMPAIGNER)

    def end(self, first: int, second: int) -> None:
        record = self.rig.wire.CampaignEnd(
            run_id=self.crowd.run_id,
            campaign=bytes.fromhex(self.board.campaigns.current.campaign)
            if self.board.campaigns.current
            else self.rig.name_id(CAMPAIGNS[first % 3]),
            outcome=("reached", "missed", "closed")[second % 3],
            at_s=self.history.now_s,
        )
        self.act(record, self.rig.CAMPAIGNER)

    def team(self, first: int, second: int) -> None:
        founder = NAMES[second % len(NAMES)]
        self.act(self.crowd.founding(THINGS[first % 2], founder), founder)

    def member(self, first: int, second: int) -> None:
        donor = self._name(second)
        team = ("", *THINGS[:2], *THINGS[:2])[first % 5]
        self.act(self.crowd.membership(donor, team), donor)

    # ---- parts of moves ----

    def _name(self, pick: int) -> str:
        """Mostly of somebody who may act."""
        names = {self.rig.identity(name).peer_id: name for name in NAMES}
        owners = [names[key] for key in self.board.people.owners()]
        return NAMES[pick % len(NAMES)] if pick % 5 == 0 else owners[pick % len(owners)]

    def _campaign(self, pick: int) -> bytes:
        named = [self.rig.name_id(name) for name in CAMPAIGNS]
        campaign: bytes = (self.crowd.zero, self.crowd.zero, *named)[pick % 5]
        return campaign

    def _assignment(self, round_: int, worker: int) -> str:
        return hashlib.sha256(f"training {round_}/{worker}".encode()).digest()[:16].hex()

    def _verdict(self, round_: int, worker: int, word: Verdict, **fields: Any) -> VerdictLeaf:
        digest = hashlib.sha256(f"verdict {len(self.leaves)}".encode()).digest()
        leaf: VerdictLeaf = self.history.verdict_leaf(
            round_, worker, word, record_digest=digest, **fields
        )
        return leaf

    def _judge(self, round_: int, worker: int, word: Verdict) -> None:
        assert self.offer(self._verdict(round_, worker, word))
        index = self.board.size - 1
        if word == Verdict.FAILED:
            self.failed.append((index, round_, worker))
        if word != Verdict.PASSED:
            self._reverse(index, restored=False)

    def _reverse(self, verdict: int, *, restored: bool) -> None:
        """Whatever that verdict may take or give back, one by one."""
        for index, leaf in enumerate(list(self.leaves)):
            if isinstance(leaf, CreditLeaf):
                self.offer(
                    ReversalLeaf(
                        run_id=leaf.run_id,
                        at_s=self.history.now_s,
                        donor=leaf.donor,
                        credits=(index,),
                        reason="differs",
                        verdict_leaf=verdict,
                        restored=restored,
                        microcredits=leaf.microcredits,
                    )
                )

    def _final(self) -> None:
        for index, leaf in enumerate(list(self.leaves)):
            if isinstance(leaf, CreditLeaf) and leaf.round <= self.drawn:
                self.offer(
                    FinalLeaf(
                        run_id=leaf.run_id,
                        at_s=self.history.now_s,
                        donor=leaf.donor,
                        credits=(index,),
                    )
                )


KINDS = (
    *("settle",) * 4,
    *("audit", "audit", "donate", "donate", "campaign", "campaign", "member", "member"),
    *("pledge", "pledge", "pledge", "overturn", "enrol", "merge", "merge", "rotate", "rotate"),
    *("pool", "void", "end", "team"),
)
MOVES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 255), st.integers(0, 255)),
    min_size=15,
    max_size=30,
)
BEGIN = [("enrol", n, 0) for n in range(4)] + [
    ("team", 0, 0),
    ("member", 1, 1),
    ("pool", 0, 0),
    ("donate", 1, 1),
    ("pledge", 0, 2),
]


@settings(max_examples=25, deadline=None)
@given(moves=MOVES)
def test_every_reading_of_any_history_gives_the_same_numbers(
    ledger_history: ModuleType,
    crowd_history: ModuleType,
    make_manifest: Callable[..., Any],
    moves: list[tuple[str, int, int]],
) -> None:
    manifest = make_manifest(
        model_config_json={**_config(make_manifest), "hidden_size": 512, "num_hidden_layers": 8},
        update={"chunk_elements": 131_072},
    )
    history = ledger_history.History(manifest)
    history.open()
    crowd = crowd_history.CrowdHistory(history)
    writer = Writer(history, crowd, crowd_history)
    with Session(history.engine) as session:
        opening = next(read_leaves(session, 0, 1))
    writer.leaves.append(writer.board.apply(opening))
    writer.play([*BEGIN, *moves])
    names = {crowd_history.identity(name).peer_id: name for name in NAMES}

    def also(session: Session) -> None:
        session.add_all(writer.rows)
        for key, name in names.items():
            set_profile(session, key, name, now_s=history.now_s)

    history.write(writer.leaves[1:], also)
    now = folded(writer.board)
    # 1. The dumb reader finds the same, at the end and before.
    for size, before in writer.checked:
        assert before == Naive(writer.leaves[:size]).results()
    assert now == Naive(writer.leaves).results()
    # 2. What was kept up to date by what was touched is what all have.
    assert writer.shown == {person.owner: person for person in standings(writer.board)}
    # 3. One fold of the stored log gives the same; so it does once nobody has a name any more.
    with Session(history.engine) as session:
        assert folded(fold(read_leaves(session, 0, history.size()))) == now
        report = verify(DatabaseSource(session), root=manifest.root)
    with Session(history.engine) as session, session.begin():
        for key in names:
            erase_profile(session, key)
    with Session(history.engine) as session:
        assert verify(DatabaseSource(session), root=manifest.root) == report
    history.close()
    assert isinstance(writer.leaves[0], RunLeaf)
    assert report.crowd.acts + report.crowd.unnamed == len(writer.rows)


def _config(make_manifest: Callable[..., Any]) -> dict[str, Any]:
    config: dict[str, Any] = dict(make_manifest().model_config_json)
    return config
