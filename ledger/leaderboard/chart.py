"""The loss curve, laid out on the server for an SVG: no script, no inline style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ledger.leaderboard.format import compact

Point = tuple[int, int, int]
"""(merged tokens, loss in micronats, round)"""

_MAX_POINTS = 400
_MAX_DOTS = 60
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


@dataclass(frozen=True)
class Tick:
    """A line of the grid with its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point, with what to say about it."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Geometry of the curve, for the template."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    line: str  # points of a polyline
    area: str  # points of the polygon below it
    dots: tuple[Dot, ...]
    last: Dot
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str  # in words, for who cannot see it


def loss_chart(points: Sequence[Point], *, width: int, height: int) -> Chart | None:
    """Lay out validation loss over merged tokens; None without a point.

    Args:
        points: in order of rounds.
        width: of the drawing, in its own units.
        height: likewise.
    """
    if not points:
        return None
    shown = _thinned(points)
    tokens = [point[0] for point in shown]
    losses = [point[1] / 1e6 for point in shown]
    low, high, y_step = _nice_range(min(losses), max(losses))
    x_low = 0 if len(shown) < 2 else min(tokens)
    x_span = max(1, max(tokens) - x_low)
    right, bottom = width - _RIGHT, height - _BOTTOM

    def place(point: Point) -> tuple[float, float]:
        x = _LEFT + (point[0] - x_low) / x_span * (right - _LEFT)
        y = bottom - (point[1] / 1e6 - low) / (high - low) * (bottom - _TOP)
        return round(x, 1), round(y, 1)

    places = [place(point) for point in shown]
    line = " ".join(f"{x},{y}" for x, y in places)
    dots = tuple(
        Dot(x, y, f"round {n}: {loss / 1e6:.4f} nats after {compact(count)} tokens")
        for (x, y), (count, loss, n) in zip(places, shown, strict=True)
    )
    x_step = _nice_step(x_span / (width / 130))
    first_x = math.ceil(x_low / x_step)
    return Chart(
        width=width,
        height=height,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        line=line,
        area=f"{places[0][0]},{bottom} {line} {places[-1][0]},{bottom}",
        dots=dots if len(dots) <= _MAX_DOTS else (),
        last=dots[-1],
        x_ticks=tuple(
            Tick(place((int(k * x_step), 0, 0))[0], compact(int(k * x_step)))
            for k in range(first_x, math.floor((x_low + x_span) / x_step) + 1)
        ),
        y_ticks=tuple(
            Tick(place((0, round((low + k * y_step) * 1e6), 0))[1], f"{low + k * y_step:.4g}")
            for k in range(round((high - low) / y_step) + 1)
        ),
        summary=(
            f"Validation loss fell from {losses[0]:.3f} to {losses[-1]:.3f} nats per token "
            f"over {len(points)} rounds."
            if losses[-1] < losses[0]
            else f"Validation loss is {losses[-1]:.3f} nats per token after {len(points)} rounds."
        ),
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most ``_MAX_POINTS`` of them, evenly spaced, the first and last always."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(k * last / (_MAX_POINTS - 1))] for k in range(_MAX_POINTS)]


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999))


def _nice_range(low: float, high: float) -> tuple[float, float, float]:
    """A round range around the values, and the step of its grid."""
    step = _nice_step(max(high - low, 0.04) / 6)
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step
