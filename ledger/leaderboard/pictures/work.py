"""The pictures that need every credit: who gave how much when, and what verification takes.

Credit that was taken back counts only as *taken back*: what donors gave is what stands. Donors
are shown by name as far as they had one and are among the first; all others are two sums. A name
is asked for whenever a picture is made, never kept: one that was erased is not shown again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

from ledger.campaigns import permille
from ledger.donors import short_key
from ledger.fold import Board
from ledger.leaderboard.format import compact, credit, percent
from ledger.leaderboard.names import Names
from ledger.leaderboard.pictures.facts import settled
from ledger.leaderboard.pictures.series import Line, Series, thinned
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

    tone: str
    person: PeerId | None = None
    bins: list[int] = field(default_factory=lambda: [0] * _BINS)  # microcredits
    donors: int = 0

    def label(self, names: Names) -> str:
        """What it is called now."""
        if self.person is None:
            return "others" if self.tone == "others" else "without a name"
        return names.donor(self.person) or short_key(self.person)


class Work:
    """One pass over all credit of the record, as of ``size`` leaves: two seconds for a million."""

    def __init__(self, board: Board, names: Names) -> None:
        self.size = board.size
        self.start_s, self.newest_s = board.opened_s, board.newest_s
        self.bin_s = (board.newest_s - board.opened_s) // _BINS + 1
        self.rounds = settled(board)
        self.overhead: dict[int, Overhead] = {}  # by round
        groups = _groups(board, names)
        self._add_up(board, groups)
        given = {id(group): group for group in groups.values() if any(group.bins)}
        self.groups = sorted(given.values(), key=lambda group: _ORDER.index(group.tone))

    def _add_up(self, board: Board, groups: dict[PeerId, Group]) -> None:
        bins_of = {key: group.bins for key, group in groups.items()}
        start_s, bin_s, overhead = self.start_s, self.bin_s, self.overhead
        for paid in board.accounts.credits.values():
            leaf = paid.leaf
            rejected = paid.status in _TAKEN_BACK
            if not rejected:
                bins_of[leaf.donor][max(0, leaf.at_s - start_s) // bin_s] += leaf.microcredits
            probation = leaf.work == "probation"
            if not (rejected or probation or paid.verdict):
                continue  # most of them
            tokens = overhead.get(leaf.round)
            if tokens is None:
                tokens = overhead[leaf.round] = Overhead()
            tokens.rejected += rejected * leaf.tokens
            if probation:
                tokens.replicated += leaf.tokens
            elif paid.verdict is not None:
                tokens.audited += leaf.tokens


def compute(work: Work, names: Names) -> Series:
    """What donors gave, added up over time."""
    used = (work.newest_s - work.start_s) // work.bin_s + 1
    lines = [
        Line(label=g.label(names), tone=g.tone, values=list(accumulate(g.bins))[:used])
        for g in work.groups
    ]
    return Series(
        name="compute",
        size=work.size,
        title="Compute given, by donor",
        summary=_compute_summary(work.groups, lines),
        kind="stack",
        x_label="time, UTC",
        x_unit="unix_seconds",
        y_label="credits, added up",
        y_unit="microcredits",
        x=[min(work.start_s + (k + 1) * work.bin_s, work.newest_s) for k in range(used)],
        lines=lines,
    )


def audits(work: Work) -> Series:
    """What verification takes, as shares of the tokens in the model so far."""
    rounds, so_far = work.rounds, Overhead()
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
        size=work.size,
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
    owner_of = board.people.owner_of
    given: Counter[PeerId] = Counter()
    for key, donor in board.donors.items():
        given[owner_of(key)] += donor.tally.total_microcredits
    named = {person for person in given if names.donor(person)}
    first = sorted((p for p in named if given[p]), key=lambda p: (-given[p], p))[:_TOP]
    group_of = {person: Group(f"donor{n}", person) for n, person in enumerate(first, start=1)}
    others, anonymous = Group("others"), Group("anonymous")
    for person, amount in given.items():
        group = group_of.setdefault(person, others if person in named else anonymous)
        group.donors += amount > 0
    return {key: group_of[owner_of(key)] for key in board.donors}


def _compute_summary(groups: list[Group], lines: list[Line]) -> str:
    if not groups:
        return "Nobody has given anything yet."
    donors, given = sum(group.donors for group in groups), sum(line.values[-1] for line in lines)
    share = percent(permille(lines[0].values[-1], max(1, given)))
    who = f"{compact(donors)} donor{'' if donors == 1 else 's'}"
    return f"{who} gave {credit(given)} credits, {share} of it {lines[0].label}."
