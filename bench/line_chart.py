"""A line chart as SVG, without a dependency: panels side by side, each with axes and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette: told apart with colour-blind eyes, too."""

_WIDTH, _HEIGHT = 460, 360
_LEFT, _RIGHT, _TOP, _PLOT_BOTTOM = 56, 18, 34, 250
_LEGEND_COLUMNS, _LEGEND_LINE = 2, 17
_TICKS = 5


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False  # what others are compared with


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False


def draw(panels: Sequence[Panel]) -> str:
    """The panels as one SVG document."""
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" '
        f'width="{width}" height="{_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({number * _WIDTH} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Scale:
    """From values to pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self.low, self.high, self._log = min(values), max(values), log
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        low, high = self._turn(self.low), self._turn(self.high)
        share = (self._turn(value) - low) / ((high - low) or 1.0)
        return round(self._start + share * (self._end - self._start), 1)

    def _turn(self, value: float) -> float:
        return math.log(value) if self._log else value

    def ticks(self) -> list[float]:
        """Round values: in equal steps of 1, 2 or 5 times a power of ten, or such values alone."""
        if self._log:
            return self._powers()
        span = (self.high - self.low) or 1.0
        size = 10 ** math.floor(math.log10(span / _TICKS))
        step = next(size * k for k in (1, 2, 5, 10) if span / (size * k) <= _TICKS)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]

    def _powers(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        values = [k * 10.0**power for power in range(first, last + 1) for k in steps]
        return [value for value in values if self.low <= value <= self.high]


def _panel(panel: Panel) -> list[str]:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    across = _Scale(xs, _LEFT, _WIDTH - _RIGHT, log=panel.log_x)
    up = _Scale(ys, _PLOT_BOTTOM, _TOP, log=panel.log_y)
    # Along a logarithmic axis the values themselves, which are few, say more than round numbers.
    x_ticks = sorted(set(xs)) if panel.log_x else across.ticks()
    return [
        _text(_WIDTH / 2, 18, panel.title, "middle", weight="bold"),
        *(_x_tick(across(x), x) for x in x_ticks),
        *(_y_tick(up(y), y) for y in up.ticks()),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _PLOT_BOTTOM + 32, panel.x_label, "middle"),
        f'<g transform="translate(14 {(_TOP + _PLOT_BOTTOM) / 2}) rotate(-90)">'
        f"{_text(0, 0, panel.y_label, 'middle')}</g>",
        *(part for n, line in enumerate(panel.lines) for part in _line(n, line, across, up)),
    ]


def _line(number: int, line: Line, across: _Scale, up: _Scale) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    style = f'stroke="{colour}" stroke-width="1.8" fill="none"'
    if line.dashed:
        style += ' stroke-dasharray="5 3"'
    where = [(across(x), up(y)) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in where)
    column, row = number % _LEGEND_COLUMNS, number // _LEGEND_COLUMNS
    x = _LEFT + column * (_WIDTH - _LEFT - _RIGHT) / _LEGEND_COLUMNS
    y = _PLOT_BOTTOM + 50 + row * _LEGEND_LINE
    return [
        f'<polyline points="{path}" {style}/>',
        *(f'<circle cx="{cx}" cy="{cy}" r="2.4" fill="{colour}"/>' for cx, cy in where),
        f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" {style}/>',
        _text(x + 28, y + 4, line.name, "start"),
    ]


def _x_tick(at: float, value: float) -> str:
    line = f'<line x1="{at}" y1="{_TOP}" x2="{at}" y2="{_PLOT_BOTTOM}" stroke="#ddd"/>'
    return line + _text(at, _PLOT_BOTTOM + 15, f"{value:,g}", "middle")


def _y_tick(at: float, value: float) -> str:
    line = f'<line x1="{_LEFT}" y1="{at}" x2="{_WIDTH - _RIGHT}" y2="{at}" stroke="#ddd"/>'
    return line + _text(_LEFT - 6, at + 4, f"{value:,g}", "end")


def _text(x: float, y: float, text: str, anchor: str, *, weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )
