"""An SVG of ours as PNG.

The font is here, so that every machine draws the same bytes. It has Latin, Greek and Cyrillic
letters; for a name in others, the machine's own fonts are asked too.
"""

from __future__ import annotations

from pathlib import Path

import resvg_py

_FONT_FILE = str(Path(__file__).with_name("Inter-Regular.ttf"))
_FONT_FAMILY = "Inter"
_LAST_LETTER = "\u052f"  # of Cyrillic


def to_png(svg: str, *, zoom: int = 2) -> bytes:
    """Render a drawing.

    Args:
        svg: made here, never a stranger's.
        zoom: pixels per unit of the drawing.
    """
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=zoom,
            skip_system_fonts=not any(c.isalpha() and c > _LAST_LETTER for c in svg),
            font_files=[_FONT_FILE],
            font_family=_FONT_FAMILY,
            sans_serif_family=_FONT_FAMILY,
            resources_dir=str(Path(__file__).parent),  # nothing of ours refers to a file
        )
    )
