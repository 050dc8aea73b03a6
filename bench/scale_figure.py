"""``docs/scale.svg``: what was measured, and what was simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.line_chart import Line, Panel, draw
from bench.report import Row

FIGURE = Path(__file__).parent.parent / "docs" / "scale.svg"
_LEAST = 0.1
"""Smaller values are drawn as this: the axes are logarithmic."""


def write_figure(
    measured: Sequence[Row], checked: Sequence[Row], times: Sequence[Row], loads: Sequence[Row]
) -> None:
    """Draw the three charts.

    Args:
        measured: rows of :mod:`bench.scale`.
        checked: of :mod:`bench.scale_check`, in the same order.
        times: of :mod:`bench.scale_model`, and so ``loads``.
    """
    panels = (_measured(measured, checked), _rounds(times), _reports(loads))
    FIGURE.write_text(draw(panels))


def _measured(measured: Sequence[Row], checked: Sequence[Row]) -> Panel:
    alike = [
        (m, c)
        for m, c in zip(measured, checked, strict=True)
        if m["members"] == m["reducers"] and (m["elements"], m["chunks"]) == (1 << 20, 64)
    ]
    taken, predicted = ([pair[n] for pair in alike] for n in (0, 1))
    lines = [
        Line("round", _points(taken, "members", "round_s")),
        Line("processor time", _points(taken, "members", "cpu_s")),
        Line("the same, predicted", _points(predicted, "members", "predicted_cpu_s"), dashed=True),
    ]
    title = "measured, all reduce, 1 M elements"
    return Panel(title, "members", "seconds", lines, log_x=True, log_y=True)


def _rounds(model: Sequence[Row]) -> Panel:
    lines = _by_topology(model, "round_s")
    title = "simulated, 124 M elements: round"
    return Panel(title, "homes", "seconds", lines, log_x=True, log_y=True)


def _reports(model: Sequence[Row]) -> Panel:
    lines = _by_topology(model, "reports_MB")
    title = "the same: reports to the coordinator"
    return Panel(title, "homes", "MB in a round", lines, log_x=True, log_y=True)


def _by_topology(model: Sequence[Row], value: str) -> list[Line]:
    rows = [row for row in model if row["links"] == "all"]
    names = dict.fromkeys(str(row["topology"]) for row in rows)
    return [
        Line(name, _points([row for row in rows if row["topology"] == name], "homes", value))
        for name in names
    ]


def _points(rows: Sequence[Row], x: str, y: str) -> list[tuple[float, float]]:
    return [(float(str(row[x])), max(_LEAST, float(str(row[y])))) for row in rows]
