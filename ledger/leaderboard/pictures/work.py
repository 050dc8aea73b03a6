"""The pictures that need every credit: who gave how much when, and what verification takes.

Credit that was taken back counts only as *taken back*: what donors gave is what stands. Donors
are shown by name as far as they have one and are among the first; all others are two sums.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

from ledger.campaigns import permille
from ledger.fold import Board
from ledger.leaderboard.format import compact, credit, percent
from ledger.leaderboard.names import Names
from ledger.leaderboard.pictures.facts import settled
from ledger.leaderboard.pictures.series import Line, Series, thinned
from ledger.tally import Credit
from protocol.identity import PeerId

_TAKEN_BACK = ("forfeited", "unpaid")
_BINS = 120
_TOP = 6
_ORDER = (*(f"donor{n}" for n in range(1, _TOP + 1)), "others", "anonymous")
_OVERHEAD = (
    ("audited", "audited"),
    ("done on probation", "replicated"),
    ("taken back", "rejected"),
)


@dataclass
class Overhead:
    """Tokens of work that was done again, or in vain."""

    audited: int = 0
    replicated: int = 0
    rejected: int = 0

    def add(self, other: Overhead) -> None:
        """Count another round too."""
        self.audited += other.audited
        self.replicated += other.replicated
        self.rejected += other.rejected

    def shares(self, merged_tokens: int) -> tuple[int, int, int]:
        """In thousandths of these tokens."""
        done = (self.audited, self.replicated, self.rejected)
        audited, replicated, rejected = (permille(n, max(1, merged_tokens)) for n in done)
        return audited, replicated, rejected


@dataclass
class Group:
    """A line of the stack: one donor, or a sum of many."""

    label: str
    tone: str
    bins: list[int] = field(default_factory=lambda: [0] * _BINS)  # microcredits
    donors: int = 0


class Work:
    """One pass over all credit of the record."""

    def __init__(self, board: Board, names: Names) -> None:
        self.start_s = board.opened_s
        self.bin_s = (board.newest_s - board.opened_s) // _BINS + 1
        self.overhead: dict[int, Overhead] = {}  # by round
        self._of = _groups(board, names)
        for paid in board.accounts.credits.values():
            self._take(paid)

    @property
    def groups(self) -> list[Group]:
        """Those that gave something, in the order of the stack."""
        found = {id(group): group for group in self._of.values() if any(group.bins)}
        return sorted(found.values(), key=lambda group: _ORDER.index(group.tone))

    def _take(self, paid: Credit) -> None:
        leaf = paid.leaf
        tokens = self.overhead.setdefault(leaf.round, Overhead())
        if leaf.work == "probation":
            tokens.replicated += leaf.tokens
        elif paid.verdict is not None:
            tokens.audited += leaf.tokens
        if paid.status in _TAKEN_BACK:
            tokens.rejected += leaf.tokens
            return
        place = max(0, leaf.at_s - self.start_s) // self.bin_s
        self._of[leaf.donor].bins[place] += leaf.microcredits


def compute(board: Board, work: Work) -> Series:
    """What donors gave, added up over time."""
    used = (board.newest_s - work.start_s) // work.bin_s + 1
    groups = work.groups
    lines = [
        Line(label=g.label, tone=g.tone, values=list(accumulate(g.bins))[:used]) for g in groups
    ]
    return Series(
        name="compute",
        size=board.size,
        title="Compute given, by donor",
        summary=_compute_summary(groups),
        kind="stack",
        x_label="time, UTC",
        x_unit="unix_seconds",
        y_label="credits, added up",
        y_unit="microcredits",
        x=[min(work.start_s + (k + 1) * work.bin_s, board.newest_s) for k in range(used)],
        lines=lines,
    )


def audits(board: Board, work: Work) -> Series:
    """What verification takes, as shares of the tokens in the model so far."""
    rounds, so_far = settled(board), Overhead()
    shares: list[tuple[int, int, int]] = []
    for leaf in rounds:
        so_far.add(work.overhead.get(leaf.round, Overhead()))
        shares.append(so_far.shares(leaf.merged_tokens))
    said = "No round is settled yet."
    if shares:
        parts = zip(shares[-1], _OVERHEAD, strict=True)
        said = ", ".join(f"{percent(share)} was {label}" for share, (label, _) in parts)
        said = f"For all tokens in the model: {said}."
    shown = thinned(len(rounds))
    lines = [
        Line(label=label, tone=tone, values=[shares[index][place] for index in shown])
        for place, (label, tone) in enumerate(_OVERHEAD)
    ]
    return Series(
        name="audits",
        size=board.size,
        title="What verification takes",
        summary=said,
        kind="line",
        x_label="round",
        x_unit="round",
        y_label="share of merged tokens",
        y_unit="permille",
        x=[rounds[index].round for index in shown],
        lines=lines if rounds else [],
    )


def _groups(board: Board, names: Names) -> dict[PeerId, Group]:
    """Which line each donor's key counts in."""
    given: Counter[PeerId] = Counter()
    for key, donor in board.donors.items():
        given[board.people.owner_of(key)] += donor.tally.total_microcredits
    called = {person: name for person in given if (name := names.donor(person))}
    named = sorted((p for p in called if given[p]), key=lambda p: (-given[p], p))
    group_of = {
        person: Group(called[person], f"donor{n}") for n, person in enumerate(named[:_TOP], start=1)
    }
    others, anonymous = Group("others", "others"), Group("without a name", "anonymous")
    for person, amount in given.items():
        group = group_of.setdefault(person, others if person in called else anonymous)
        group.donors += amount > 0
    return {key: group_of[board.people.owner_of(key)] for key in board.donors}


def _compute_summary(groups: list[Group]) -> str:
    if not groups:
        return "Nobody has given anything yet."
    donors, given = sum(group.donors for group in groups), sum(sum(g.bins) for g in groups)
    first, most = groups[0], permille(sum(groups[0].bins), max(1, given))
    who = f"{compact(donors)} donor{'' if donors == 1 else 's'}"
    return f"{who} gave {credit(given)} credits, {percent(most)} of it {first.label}."
