"""An SVG drawing in the making: shapes with their colours as attributes, every text escaped.

There is no style sheet in it, so the policy of the site lets a browser show it, and a renderer
without one draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Theme = Literal["light", "dark"]
Point = tuple[float, float]

FONT = "Inter, system-ui, sans-serif"


@dataclass(frozen=True)
class Palette:
    """The site's colours (static/site.css), by what they are for."""

    paper: str
    ink: str
    soft: str
    grid: str
    tones: dict[str, str]


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        paper="#fffdf9",
        ink="#2a2520",
        soft="#675f56",
        grid="#e5ddd0",
        tones={
            "accent": "#9c3527",
            "final": "#3d7a50",
            "pending": "#d69a3a",
            "pledged": "#c9bba4",
            "donor1": "#9c3527",
            "donor2": "#2f6f8f",
            "donor3": "#d69a3a",
            "donor4": "#3d7a50",
            "donor5": "#7a5195",
            "donor6": "#5f9ea0",
            "others": "#a89c8c",
            "anonymous": "#d4c8b6",
            "audited": "#2f6f8f",
            "replicated": "#b87a1e",
            "rejected": "#9c3527",
        },
    ),
    "dark": Palette(
        paper="#201c18",
        ink="#ece5da",
        soft="#b0a597",
        grid="#3a332c",
        tones={
            "accent": "#e28b78",
            "final": "#6fb487",
            "pending": "#e0ad58",
            "pledged": "#6b6053",
            "donor1": "#e28b78",
            "donor2": "#6fb0d0",
            "donor3": "#e0ad58",
            "donor4": "#6fb487",
            "donor5": "#b592d0",
            "donor6": "#84c5c4",
            "others": "#8d8274",
            "anonymous": "#5d5347",
            "audited": "#6fb0d0",
            "replicated": "#e0ad58",
            "rejected": "#e28b78",
        },
    ),
}


class Paper:
    """Collects shapes; :meth:`finish` gives the file."""

    def __init__(self, width: int, height: int, theme: Theme) -> None:
        self.width, self.height = width, height
        self.palette = PALETTES[theme]
        self._parts: list[str] = []

    def tone(self, name: str) -> str:
        """The colour of a line or area."""
        return self.palette.tones[name]

    def on(self, name: str) -> str:
        """The colour of letters on such an area: whichever of two differs more."""
        return min(("#ffffff", "#1d1915"), key=lambda ink: -_contrast(ink, self.tone(name)))

    def rule(self, x1: float, y1: float, x2: float, y2: float, stroke: str, dash: str = "") -> None:
        """A thin straight line."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._add(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{stroke}"{dashed}/>')

    def curve(self, points: Sequence[Point], stroke: str, dash: str = "") -> None:
        """A line through points."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._add(
            f'<path d="{_path(points)}" fill="none" stroke="{stroke}" stroke-width="2.2" '
            f'stroke-linejoin="round" stroke-linecap="round"{dashed}/>'
        )

    def area(self, points: Sequence[Point], fill: str, opacity: float = 1) -> None:
        """A filled shape."""
        faint = "" if opacity == 1 else f' fill-opacity="{opacity:g}"'
        edge = f' stroke="{self.palette.paper}" stroke-width=".6"' if opacity == 1 else ""
        self._add(f'<path d="{_path(points)}Z" fill="{fill}"{faint}{edge}/>')

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float = 0
    ) -> None:
        """A rectangle."""
        corner = f' rx="{radius:g}"' if radius else ""
        self._add(
            f'<rect x="{x:g}" y="{y:g}" width="{max(0, width):g}" height="{max(0, height):g}"'
            f'{corner} fill="{fill}"/>'
        )

    def dot(self, x: float, y: float, radius: float, fill: str, stroke: str) -> None:
        """A small circle."""
        self._add(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}" '
            'stroke-width="1.6"/>'
        )

    def text(
        self, x: float, y: float, text: str, *, fill: str = "", anchor: str = "", size: float = 12
    ) -> None:
        """A line of text, that of strangers too."""
        where = f' text-anchor="{anchor}"' if anchor else ""
        self._add(
            f'<text x="{x:g}" y="{y:g}" fill="{fill or self.palette.soft}"{where} '
            f'font-size="{size:g}" unicode-bidi="isolate">{_clean(text)}</text>'
        )

    def finish(self, title: str, description: str) -> str:
        """The whole file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" font-family="{FONT}" '
            f'aria-labelledby="t d"><title id="t">{_clean(title)}</title>'
            f'<desc id="d">{_clean(description)}</desc>'
            f'<rect width="{self.width}" height="{self.height}" fill="{self.palette.paper}"/>'
            f"{''.join(self._parts)}</svg>\n"
        )

    def _add(self, shape: str) -> None:
        self._parts.append(shape)


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _clean(text: str) -> str:
    """Escaped, without what no XML file may hold."""
    return escape("".join(c for c in text if c.isprintable()))


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
