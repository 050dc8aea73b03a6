"""Badges: a small picture of somebody's credit, to be shown on other sites.

Invariant: whatever a name is, the picture is well-formed, loads nothing, runs nothing, and is of
bounded size.
"""

from __future__ import annotations

import unicodedata
from xml.sax.saxutils import escape

LABEL = "Barnraise"
_PADDING = 8
_MOST_CHARS = 32
_UNITS = {"W": 12.0, "F": 12.0}  # East Asian wide forms
_NARROW, _USUAL, _BROAD = 4.0, 6.6, 9.5  # of an 11 px sans-serif
_TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" \
viewBox="0 0 {width} 20" role="img" aria-labelledby="t">
<title id="t">{title}</title>
<rect width="{width}" height="20" rx="4" fill="#3d3a36"/>
<path d="M{left} 0h{flat}a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4h-{flat}z" fill="#2a6b43"/>
<g fill="#ffffff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="8" y="14" textLength="{label_width}" lengthAdjust="spacingAndGlyphs">{label}</text>
<text x="{text_x}" y="14" textLength="{text_width}" \
lengthAdjust="spacingAndGlyphs">{text}</text>
</g>
</svg>
"""


def badge(name: str, amount: str) -> str:
    """The picture.

    Args:
        name: of whose credit it is; may be hostile.
        amount: with its unit.
    """
    text = f"{shortened(name, _MOST_CHARS)}: {amount}"
    label_width, text_width = width_of(LABEL), width_of(text)
    left = label_width + 2 * _PADDING
    width = left + text_width + 2 * _PADDING
    return _TEMPLATE.format(
        width=width,
        left=left,
        flat=width - left - 4,
        label=LABEL,
        label_width=label_width,
        text=xml_text(text),
        text_x=left + _PADDING,
        text_width=text_width,
        title=xml_text(f"{LABEL}: {name}: {amount}"),
    )


def shortened(text: str, most: int) -> str:
    """At most so many characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def xml_text(text: str) -> str:
    """Escaped for text and attributes, without what XML cannot hold."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return escape(kept, {'"': "&quot;", "'": "&apos;"})


def width_of(text: str, size: float = 11.0) -> int:
    """About how wide a text is, in pixels."""
    units = sum(_width(c) for c in text)
    return max(1, round(units * size / 11.0))


def _width(c: str) -> float:
    if unicodedata.combining(c):
        return 0.0
    if c in "iIl.,:;'|!()[] ":
        return _NARROW
    if c in "mwMW@…":
        return _BROAD
    return _UNITS.get(unicodedata.east_asian_width(c), _USUAL)
