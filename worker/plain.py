"""Texts of strangers, made harmless for a terminal and bounded."""

from __future__ import annotations

MAX_PLAIN_CHARS = 1000


def plain(text: object, most: int = MAX_PLAIN_CHARS) -> str:
    """One line without control characters, escape sequences or turned writing directions."""
    kept = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    return kept if len(kept) <= most else kept[: most - 1] + "…"
