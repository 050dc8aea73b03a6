"""Amounts of memory, disk and traffic, in the units in which the owner's limits are given."""

from __future__ import annotations


def size_text(size_bytes: float) -> str:
    """``512 B``, ``139.5 KiB``, ``1.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
