"""The pictures that need no more than rounds, releases and the goal, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ledger import campaigns
from ledger.fold import Board
from ledger.leaderboard.format import compact, credit, percent
from ledger.leaderboard.pictures.series import MAX_POINTS, Line, Mark, Series, thinned
from ledger.records import RoundLeaf

_MOST_MARKS = 6


def loss(board: Board) -> Series:
    """Validation loss over merged tokens, with releases and restores."""
    known = [leaf for leaf in settled(board) if leaf.validation_loss_micronats is not None]
    shown = [known[index] for index in thinned(len(known))]
    losses = [leaf.validation_loss_micronats or 0 for leaf in shown]
    return Series(
        name="loss",
        size=board.size,
        title="How the model learns",
        summary=_loss_summary(losses, len(known)),
        kind="line",
        x_label="tokens trained",
        x_unit="tokens",
        y_label="validation loss, nats per token",
        y_unit="micronats",
        x=[leaf.merged_tokens for leaf in shown],
        lines=[Line(label="validation loss", tone="accent", values=losses)] if shown else [],
        marks=_loss_marks(board) if shown else [],
    )


def members(board: Board) -> Series:
    """How many took part in each of the newest rounds; in a skipped one, nobody."""
    rounds = [entry.leaf for entry in board.rounds.values()][-MAX_POINTS:]
    counts = [leaf.members for leaf in rounds]
    said = "No round is over yet."
    if counts:
        said = f"{compact(counts[-1])} took part in round {rounds[-1].round}. "
        said += f"In {compact(len(counts))} round{'' if len(counts) == 1 else 's'}: at most "
        said += f"{compact(max(counts))}, {sum(counts) / len(counts):.1f} on average."
    return Series(
        name="members",
        size=board.size,
        title="Who takes part",
        summary=said,
        kind="bars",
        x_label="round",
        x_unit="round",
        y_label="members",
        y_unit="members",
        x=[leaf.round for leaf in rounds],
        lines=[Line(label="members", tone="donor2", values=counts)] if rounds else [],
    )


def goal(board: Board) -> Series:
    """The goal, and what of it is verified, pending and pledged."""
    state = campaigns.progress(board)
    assert state is not None
    parts = (
        ("verified", "final", state.final_microcredits),
        ("pending", "pending", state.pending_microcredits),
        ("pledged, still to come", "pledged", state.outstanding_microcredits),
    )
    said = ", ".join(f"{credit(amount)} {label}" for label, _, amount in parts)
    share = percent(campaigns.permille(state.final_microcredits, state.goal_microcredits))
    return Series(
        name="goal",
        size=board.size,
        title="The goal",
        summary=f"{share} of {credit(state.goal_microcredits)} credits is verified: {said}.",
        kind="progress",
        x_label="credits",
        x_unit="microcredits",
        y_label="credits",
        y_unit="microcredits",
        x=[state.goal_microcredits],
        lines=[Line(label=label, tone=tone, values=[n]) for label, tone, n in parts],
    )


def settled(board: Board) -> list[RoundLeaf]:
    """The rounds that were settled, oldest first."""
    return [e.leaf for e in board.rounds.values() if e.leaf.outcome == "settled"]


def _loss_summary(losses: Sequence[int], rounds: int) -> str:
    if not losses:
        return "No round is settled yet."
    first, last = losses[0] / 1e6, losses[-1] / 1e6
    if last < first:
        return (
            f"Validation loss fell from {first:.3f} to {last:.3f} nats per token "
            f"over {compact(rounds)} rounds."
        )
    after = f"{compact(rounds)} round{'' if rounds == 1 else 's'}"
    return f"Validation loss is {last:.3f} nats per token after {after}."


def _loss_marks(board: Board) -> list[Mark]:
    """The newest few: which state was released, and to which one the run went back."""
    entries = board.rounds.values()
    tokens_at = {entry.leaf.state_digest: entry.leaf.merged_tokens for entry in entries}
    released = [
        Mark(x=tokens_at[leaf.state_digest], label="release")
        for _, leaf in board.releases[-_MOST_MARKS:]
        if leaf.state_digest in tokens_at
    ]
    restored = [
        Mark(x=leaf.merged_tokens, label="restore") for _, leaf in board.restores[-_MOST_MARKS:]
    ]
    return sorted(released + restored, key=lambda mark: mark.x)
