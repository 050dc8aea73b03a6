"""``docs/scale.svg``: what was measured, and what was simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import Row
from ledger.leaderboard.pictures.paper import Paper, Point

FIGURE = Path(__file__).parent.parent / "docs" / "scale.svg"
_WIDTH, _HEIGHT, _LEFT, _TOP, _INNER_WIDTH, _INNER_HEIGHT = 1120, 460, 56, 46, 300, 270
_GAP = 372
_TONES = ("donor1", "donor2", "donor3", "donor4", "donor5", "donor6", "others")

Line = tuple[Sequence[Point], bool]
"""Points (x, y) of one line, and whether it is dashed."""


@dataclass(frozen=True)
class Panel:
    """One chart with logarithmic axes."""

    title: str
    lines: Mapping[str, Line]

    @property
    def _points(self) -> list[Point]:
        return [point for points, _ in self.lines.values() for point in points]

    def draw(self, paper: Paper, left: float) -> None:
        xs, ys = zip(*self._points, strict=True)
        across = _Axis(min(xs), max(xs), left, left + _INNER_WIDTH)
        up = _Axis(min(ys), max(ys), _TOP + _INNER_HEIGHT, _TOP)
        ink, grid = paper.palette.ink, paper.palette.grid
        paper.text(left, _TOP - 18, self.title, fill=ink, size=13)
        for y in up.powers():
            paper.rule(left, up.at(y), left + _INNER_WIDTH, up.at(y), grid)
            paper.text(left - 6, up.at(y) + 4, f"{y:,g}", anchor="end", size=11)
        for x in sorted(set(xs)):
            paper.text(across.at(x), _TOP + _INNER_HEIGHT + 17, f"{x:,g}", anchor="middle", size=11)
        for number, (name, (points, dashed)) in enumerate(self.lines.items()):
            tone = paper.tone(_TONES[number])
            places = [(across.at(x), up.at(y)) for x, y in points]
            paper.curve(places, tone, "5 4" if dashed else "")
            for x, y in places if not dashed else []:
                paper.dot(x, y, 3, tone, paper.palette.paper)
            row = _TOP + _INNER_HEIGHT + 38 + 15 * number
            paper.rule(left, row - 4, left + 18, row - 4, tone, "5 4" if dashed else "")
            paper.text(left + 24, row, name, size=11)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> float:
        low, high = math.log(self.low), math.log(self.high * 1.0001)
        return self.first + (self.last - self.first) * (math.log(value) - low) / (high - low)

    def powers(self) -> list[float]:
        """1, 2 and 5 times powers of ten within; powers alone where those are many."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        values = [k * 10.0**power for power in range(first, last + 1) for k in steps]
        return [value for value in values if self.low <= value <= self.high]


def write_figure(
    measured: Sequence[Row], checked: Sequence[Row], times: Sequence[Row], loads: Sequence[Row]
) -> None:
    """Draw the three charts.

    Args:
        measured: rows of :mod:`bench.scale`.
        checked: of :mod:`bench.scale_check`, in the same order.
        times: of :mod:`bench.scale_model`, and so ``loads``.
    """
    paper = Paper(_WIDTH, _HEIGHT, "light")
    panels = (_measured(measured, checked), _rounds(times), _reports(loads))
    for number, panel in enumerate(panels):
        panel.draw(paper, _LEFT + number * _GAP)
    text = paper.finish(
        "Scale of a reduce",
        f"Measured rounds of up to {max(int(str(row['members'])) for row in measured)} members;"
        " simulated rounds and reports of up to 10,000 homes",
    )
    FIGURE.write_text(text)


def _measured(measured: Sequence[Row], checked: Sequence[Row]) -> Panel:
    alike = [
        (m, c)
        for m, c in zip(measured, checked, strict=True)
        if m["members"] == m["reducers"] and (m["elements"], m["chunks"]) == (1 << 20, 64)
    ]
    return Panel(
        "Measured, all reduce, 1 M elements",
        {
            "round, s": (_line([m for m, _ in alike], "members", "round_s"), False),
            "processor time, predicted from the other sizes, s": (
                _line([c for _, c in alike], "members", "predicted_cpu_s"),
                True,
            ),
            "processor time of all, s": (_line([m for m, _ in alike], "members", "cpu_s"), False),
        },
    )


def _rounds(model: Sequence[Row]) -> Panel:
    return Panel("Simulated homes, 124 M elements: round, s", _by_topology(model, "round_s"))


def _reports(model: Sequence[Row]) -> Panel:
    return Panel("Reports to the coordinator in a round, MB", _by_topology(model, "reports_MB"))


def _by_topology(model: Sequence[Row], value: str) -> dict[str, Line]:
    rows = [row for row in model if row["links"] == "all"]
    names = dict.fromkeys(str(row["topology"]) for row in rows)
    return {
        name: (_line([row for row in rows if row["topology"] == name], "homes", value), False)
        for name in names
    }


def _line(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[Point]:
    return [(float(row[x]), max(0.1, float(row[y]))) for row in rows]
