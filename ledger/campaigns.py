"""The campaign of a run, as a view of the fold.

This version knows the run manifest's own campaign: its goal in credit, the credit that audits have
made final, and what is pending. The goal is met by final credit alone: only verified work counts.
Pledges are zero until leaves of that kind exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.fold import Board

_RATE_ROUNDS = 20
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Progress:
    """How far the campaign is. Amounts in microcredits."""

    title: str
    purpose: str
    goal_microcredits: int
    pledged_microcredits: int
    pending_microcredits: int
    final_microcredits: int
    rate_microcredits_per_day: int | None  # over the last rounds; None before there are any
    remaining_s: int | None  # at that rate, until enough is trained; it is verified later


def permille(microcredits: int, goal_microcredits: int) -> int:
    """Share of a goal in thousandths, rounded down."""
    return 1000 * microcredits // goal_microcredits


def progress(board: Board) -> Progress | None:
    """The campaign's state, or None before the run leaf."""
    if board.manifest is None:
        return None
    campaign = board.manifest.campaign
    rate = _rate(board)
    left = max(0, campaign.goal_microcredits - board.total.total_microcredits)
    return Progress(
        title=campaign.title,
        purpose=campaign.purpose,
        goal_microcredits=campaign.goal_microcredits,
        pledged_microcredits=0,
        pending_microcredits=board.total.pending_microcredits,
        final_microcredits=board.total.final_microcredits,
        rate_microcredits_per_day=rate,
        remaining_s=-(-left * _SECONDS_PER_DAY // rate) if rate else None,
    )


def _rate(board: Board) -> int | None:
    """Microcredits per day over the last rounds, idle time between them included."""
    recent = list(board.rounds)[-_RATE_ROUNDS:]
    if not recent:
        return None
    span_s = board.rounds[recent[-1]].leaf.ended_at_s - board.rounds[recent[0]].leaf.started_at_s
    earned = sum(
        board.credited[number].total_microcredits for number in recent if number in board.credited
    )
    return earned * _SECONDS_PER_DAY // max(1, span_s)
