"""Cards: what another site shows of a page that is linked there (Open Graph), 1200 x 630.

Invariant: as a badge's (:mod:`ledger.exports.badge`): well-formed and bounded whatever a name is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.exports.badge import shortened, xml_text

WIDTH, HEIGHT = 1200, 630
_COLOURS = {"final": "#2a6b43", "pending": "#d39b2f", "pledged": "#b9b1a6"}
_BAR_X, _BAR_Y, _BAR_WIDTH, _BAR_HEIGHT = 80, 520, 1040, 36
_COLUMN = 350
_MOST_FIGURES = 3


@dataclass(frozen=True)
class Figure:
    """A number and what it is of."""

    value: str
    label: str


@dataclass(frozen=True)
class Segment:
    """Of the bar: a colour's name, where it starts and how wide it is, in permille."""

    name: str
    start: int
    width: int


def card(eyebrow: str, title: str, figures: Sequence[Figure], bar: Sequence[Segment] = ()) -> str:
    """The picture, as SVG.

    Args:
        eyebrow: a line above the title.
        title: a name; may be hostile.
        figures: at most three.
        bar: of a goal.
    """
    shown = shortened(title, 44)
    size = 76 if len(shown) <= 22 else 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t">',
        f'<title id="t">{xml_text(alt_text(title, figures))}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fffdf9"/>',
        f'<rect width="{WIDTH}" height="14" fill="#9c3d22"/>',
        '<g font-family="Inter,DejaVu Sans,sans-serif">',
        _text(80, 120, 34, shortened(eyebrow, 40), "#6b6258"),
        _text(1120, 120, 34, "Barnraise", "#9c3d22", anchor="end"),
        _text(80, 220, size, shown),
    ]
    for place, figure in enumerate(figures[:_MOST_FIGURES]):
        x = 80 + place * _COLUMN
        parts.append(_text(x, 370, 62, shortened(figure.value, 12)))
        parts.append(_text(x, 420, 28, shortened(figure.label, 22), "#6b6258"))
    parts.append("</g>")
    if bar:
        parts += _bar(bar)
    return "\n".join([*parts, "</svg>\n"])


def alt_text(title: str, figures: Sequence[Figure]) -> str:
    """What the card says, for who does not see it."""
    return "; ".join([title, *(f"{figure.label}: {figure.value}" for figure in figures)])


def _bar(bar: Sequence[Segment]) -> list[str]:
    rects = [_rect(0, 1000, "#ece6dd")]
    rects += [_rect(one.start, one.width, _COLOURS[one.name]) for one in bar if one.width]
    return rects


def _rect(start: int, width: int, fill: str) -> str:
    x = _BAR_X + start * _BAR_WIDTH // 1000
    wide = max(2, width * _BAR_WIDTH // 1000)
    return f'<rect x="{x}" y="{_BAR_Y}" width="{wide}" height="{_BAR_HEIGHT}" fill="{fill}"/>'


def _text(
    x: int, y: int, size: int, text: str, fill: str = "#2b2722", *, anchor: str = "start"
) -> str:
    place = f'x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"'
    return f"<text {place}>{xml_text(text)}</text>"
