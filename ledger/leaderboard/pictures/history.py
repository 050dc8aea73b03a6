"""The picture of one person: what its devices were credited, added up over time.

Credit that was taken back counts in no point of it, and sponsored credit neither: a pool's is
divided anew whenever it changes, so it has no moment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from sqlalchemy import select

from ledger.leaderboard.format import credit
from ledger.leaderboard.pictures.series import Line, Series
from ledger.leaderboard.reader import Reading
from ledger.schema import LogLeaf
from ledger.tally import Credit
from protocol.identity import PeerId

_BINS = 120
_SHOWN = (("verified", "final"), ("pending", "pending"))  # label; status, which is its tone too


def history(reading: Reading, owner: PeerId) -> Series:
    """Verified and pending credit of all keys of a person, as of the reading's head."""
    board = reading.board
    start_s, newest_s = board.opened_s, board.newest_s
    bin_s = (newest_s - start_s) // _BINS + 1
    bins = {status: [0] * _BINS for _, status in _SHOWN}
    for paid in _credits(reading, board.people.keys_of(owner)):
        if paid.status in bins:
            bins[paid.status][max(0, paid.leaf.at_s - start_s) // bin_s] += paid.leaf.microcredits
    used = (newest_s - start_s) // bin_s + 1
    lines = [
        Line(label=label, tone=status, values=list(accumulate(bins[status]))[:used])
        for label, status in _SHOWN
        if any(bins[status])
    ]
    return Series(
        name="history",
        size=board.size,
        title="Credit over time",
        summary=_summary(lines),
        kind="stack",
        x_label="time, UTC",
        x_unit="unix_seconds",
        y_label="credits, added up",
        y_unit="microcredits",
        x=[min(start_s + (k + 1) * bin_s, newest_s) for k in range(used)],
        lines=lines,
    )


def _credits(reading: Reading, keys: Sequence[PeerId]) -> list[Credit]:
    """What these keys' devices were credited: by the index, not by a walk over all credit."""
    indexes = reading.session.scalars(
        select(LogLeaf.leaf_index).where(
            LogLeaf.donor.in_(keys),
            LogLeaf.kind == "credit",
            LogLeaf.leaf_index < reading.head.size,
        )
    )
    return [reading.board.accounts.credits[index] for index in indexes]


def _summary(lines: list[Line]) -> str:
    if not lines:
        return "No credit yet."
    said = " and ".join(f"{credit(line.values[-1])} {line.label}" for line in lines)
    return f"The devices of this donor were credited {said}."
