"""Draws a series on paper, in a wide shape for screens and a narrow one for phones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from ledger.leaderboard.pictures import scale
from ledger.leaderboard.pictures.paper import Paper, Point, Theme
from ledger.leaderboard.pictures.scale import Scale
from ledger.leaderboard.pictures.series import Series

Shape = Literal["wide", "narrow"]

_SIZES: dict[Shape, tuple[int, int]] = {"wide": (760, 400), "narrow": (360, 300)}
_BAR_SIZES: dict[Shape, tuple[int, int]] = {"wide": (760, 120), "narrow": (360, 156)}
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 16, 50, 44
_LEGEND_ROW = 18
_LEGEND_COLUMNS: dict[Shape, int] = {"wide": 4, "narrow": 2}
_LABEL_CHARS = 19
_MOST_DOTS = 60
_DASHES = ("", "8 5", "1 5")  # lines differ by more than their colour
_BAND_WITH_NUMBER = 13


@dataclass(frozen=True)
class Frame:
    """Where the axes are."""

    paper: Paper
    x: Scale
    y: Scale
    shape: Shape


def draw(series: Series, theme: Theme = "light", shape: Shape = "wide") -> str:
    """The picture as an SVG file."""
    sizes = _BAR_SIZES if series.kind == "progress" else _SIZES
    paper = Paper(*sizes[shape], theme)
    paper.text(
        _LEFT if series.kind != "progress" else 16,
        26,
        series.title,
        fill=paper.palette.ink,
        size=16,
    )
    if series.empty:
        paper.text(paper.width / 2, paper.height / 2, series.summary, anchor="middle", size=13)
    elif series.kind == "progress":
        _progress(paper, series)
    else:
        _chart(paper, series, shape)
    return paper.finish(series.title, series.summary)


def _chart(paper: Paper, series: Series, shape: Shape) -> None:
    bottom: float = paper.height - _BOTTOM
    if len(series.lines) > 1:
        bottom -= _legend(paper, series, shape)
    frame = _axes(paper, series, shape, bottom)
    if series.kind == "stack":
        _stack(frame, series)
    elif series.kind == "bars":
        _bars(frame, series)
    else:
        _lines(frame, series)
    _marks(frame, series)


def _axes(paper: Paper, series: Series, shape: Shape, bottom: float) -> Frame:
    soft, right = paper.palette.soft, paper.width - _RIGHT
    values = [n for line in series.lines for n in line.values]
    if series.kind == "stack":
        values = [sum(column) for column in zip(*(li.values for li in series.lines), strict=True)]
    if series.kind == "line" and series.y_unit == "micronats":
        low, high, step = scale.around(values, 6)
    else:
        low, high, step = scale.from_zero(values, 5, whole=series.y_unit == "members")
    y = Scale(low, high, bottom, _TOP)
    for value in scale.ticks(low, high, step):
        paper.rule(_LEFT, y.at(value), right, y.at(value), paper.palette.grid)
        text = scale.label(value, series.y_unit, step=step)
        paper.text(_LEFT - 8, y.at(value) + 4, text, anchor="end")
    paper.text(_LEFT, 42, series.y_label)
    x = _x_scale(series, right)
    for value, text in _x_ticks(series, x, 7 if shape == "wide" else 3):
        paper.text(x.at(value), bottom + 18, text, anchor="middle")
    paper.text(right, bottom + 34, series.x_label, anchor="end", fill=soft)
    return Frame(paper, x, y, shape)


def _x_scale(series: Series, right: float) -> Scale:
    first, last = series.x[0], series.x[-1]
    if series.kind == "bars":
        return Scale(first - 0.5, last + 0.5, _LEFT, right)
    if first == last:
        return Scale(first - 1, last + 1, _LEFT, right)
    return Scale(first, last, _LEFT + 6, right - 6)


def _x_ticks(series: Series, x: Scale, most: int) -> list[tuple[float, str]]:
    if series.x_unit == "unix_seconds":
        low, high = series.x[0], max(series.x[-1], series.x[0] + 1)
        found = scale.time_ticks(low, high, most)
        step = found[1] - found[0] if len(found) > 1 else 1
    elif series.x[0] == series.x[-1]:
        found, step = [float(series.x[0])], 1
    else:
        step = scale.nice_step((series.x[-1] - series.x[0]) / most)
        step = max(1.0, step)
        found = scale.ticks(series.x[0], series.x[-1], step)
    return [(value, scale.label(value, series.x_unit, step=step)) for value in found]


def _points(frame: Frame, series: Series, values: list[int]) -> list[Point]:
    return [(frame.x.at(a), frame.y.at(b)) for a, b in zip(series.x, values, strict=True)]


def _lines(frame: Frame, series: Series) -> None:
    paper, single = frame.paper, len(series.lines) == 1
    for line, dash in zip(series.lines, _DASHES, strict=False):
        points, colour = _points(frame, series, line.values), paper.tone(line.tone)
        if single:
            base = frame.y.start
            paper.area([(points[0][0], base), *points, (points[-1][0], base)], colour, 0.08)
        paper.curve(points, colour, dash)
        if single and len(points) <= _MOST_DOTS:
            for point in points[:-1]:
                paper.dot(*point, 2.6, paper.palette.paper, colour)
        paper.dot(*points[-1], 4.4, colour, paper.palette.paper)


def _stack(frame: Frame, series: Series) -> None:
    below = [0] * len(series.x)
    for place, line in enumerate(series.lines, start=1):
        above = [a + b for a, b in zip(below, line.values, strict=True)]
        edge = _points(frame, series, above) + _points(frame, series, below)[::-1]
        if len(series.x) == 1:  # a moment is as wide as the paper
            edge = [
                (frame.x.start, edge[0][1]),
                (frame.x.end, edge[0][1]),
                (frame.x.end, edge[1][1]),
                (frame.x.start, edge[1][1]),
            ]
        frame.paper.area(edge, frame.paper.tone(line.tone))
        inside = (len(series.x) - 1) * 24 // 25
        high, low = frame.y.at(above[inside]), frame.y.at(below[inside])
        if low - high >= _BAND_WITH_NUMBER:
            where = (frame.x.at(series.x[inside]) - 4, (high + low) / 2 + 4)
            frame.paper.text(*where, str(place), fill=frame.paper.on(line.tone), size=11)
        below = above


def _bars(frame: Frame, series: Series) -> None:
    line, base = series.lines[0], frame.y.start
    each = (frame.x.end - frame.x.start) / (series.x[-1] - series.x[0] + 1)
    width = min(48.0, max(0.8, each * 0.72))
    for at, value in zip(series.x, line.values, strict=True):
        top = frame.y.at(value)
        left = round(frame.x.at(at) - width / 2, 1)
        frame.paper.box(
            left,
            top,
            round(width, 1),
            round(base - top, 1),
            frame.paper.tone(line.tone),
            min(3.0, width / 4),
        )


def _marks(frame: Frame, series: Series) -> None:
    paper = frame.paper
    for row, mark in enumerate(series.marks):
        at = frame.x.at(min(max(mark.x, frame.x.low), frame.x.high))
        paper.rule(at, frame.y.start, at, frame.y.end, paper.palette.soft, "3 3")
        side = "end" if at > paper.width / 2 else "start"
        gap = -5 if side == "end" else 5
        paper.text(at + gap, frame.y.end + 11 + 14 * (row % 3), mark.label, anchor=side, size=11)


def _legend(paper: Paper, series: Series, shape: Shape) -> float:
    """Below the axes, row by row; returns the height that it takes."""
    lines, columns = series.lines, _LEGEND_COLUMNS[shape]
    rows = -(-len(lines) // columns)
    each = (paper.width - _LEFT - _RIGHT) / columns
    left: float = _LEFT
    if shape == "narrow":
        left, each = 16, (paper.width - 32) / columns
    top = paper.height - 14 - (rows - 1) * _LEGEND_ROW
    for place, line in enumerate(lines):
        x, y = left + place % columns * each, top + place // columns * _LEGEND_ROW
        if series.kind == "stack":
            paper.box(x, y - 9, 10, 10, paper.tone(line.tone), 2)
            number = f"{place + 1} "
        else:
            paper.curve([(x, y - 4), (x + 22, y - 4)], paper.tone(line.tone), _DASHES[place])
            x, number = x + 12, ""
        paper.text(x + 16, y, number + shortened(line.label), fill=paper.palette.ink)
    return rows * _LEGEND_ROW + 6


def _progress(paper: Paper, series: Series) -> None:
    left, width, top, height = 16.0, paper.width - 32.0, 44.0, 22.0
    amounts = [line.values[0] for line in series.lines]
    x = Scale(0, max(series.x[0], sum(amounts)), left, left + width)
    paper.box(left, top, width, height, paper.palette.grid, 4)
    ends = list(accumulate(amounts, initial=0))
    for line, start, end in zip(series.lines, ends, ends[1:], strict=False):
        paper.box(x.at(start), top, x.at(end) - x.at(start), height, paper.tone(line.tone))
    if x.high > series.x[0]:
        at = x.at(series.x[0])
        paper.rule(at, top - 5, at, top + height + 5, paper.palette.ink)
    goal = f"goal {scale.label(series.x[0], series.y_unit)} credits"
    rows = [
        (f"{li.label} {scale.label(li.values[0], series.y_unit)}", li.tone) for li in series.lines
    ]
    _row_of_amounts(paper, [*rows, (goal, "")], top + height + 22)


def _row_of_amounts(paper: Paper, rows: list[tuple[str, str]], y: float) -> None:
    columns = 4 if paper.width > 500 else 1
    each = (paper.width - 32) / columns
    for place, (text, tone) in enumerate(rows):
        x = 16 + place % columns * each
        at = y + place // columns * _LEGEND_ROW
        if tone:
            paper.box(x, at - 9, 10, 10, paper.tone(tone), 2)
        paper.text(x + (16 if tone else 0), at, text, fill=paper.palette.ink)


def shortened(text: str) -> str:
    """A label that fits its column."""
    return text if len(text) <= _LABEL_CHARS else f"{text[: _LABEL_CHARS - 1]}…"
