"""A picture's numbers as a table: for who cannot see it, and who wants to know exactly."""

from __future__ import annotations

from dataclasses import dataclass

from ledger.leaderboard.pictures.scale import label
from ledger.leaderboard.pictures.series import MAX_TABLE_ROWS, Series, thinned


@dataclass(frozen=True)
class Table:
    """Words for the cells. The first column is the x axis."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]
    shortened: bool  # not every point of the picture is a row


def table_of(series: Series) -> Table:
    """The table of a picture; of a goal bar, a row for each of its colours."""
    if series.kind == "progress":
        amounts = [(line.label, label(line.values[0], series.y_unit)) for line in series.lines]
        goal = ("goal", label(series.x[0], series.y_unit))
        return Table(("What", series.y_label), (*amounts, goal), (), shortened=False)
    shown = thinned(len(series.x), MAX_TABLE_ROWS)
    return Table(
        columns=(series.x_label, *(line.label for line in series.lines)),
        rows=tuple(
            (
                label(series.x[at], series.x_unit),
                *(label(line.values[at], series.y_unit) for line in series.lines),
            )
            for at in shown
        ),
        marks=tuple(f"{mark.label} at {label(mark.x, series.x_unit)}" for mark in series.marks),
        shortened=len(shown) < len(series.x),
    )
