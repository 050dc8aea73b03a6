"""The table of ``docs/loss.md``, between its two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.report import Row

PAGE = Path(__file__).parent.parent / "docs" / "loss.md"
BEGIN, END = "<!-- table: python -m bench loss -->", "<!-- end of table -->"


def write_table(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Put the rows into the page; everything else in it stays."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")


def markdown(rows: Sequence[Row]) -> str:
    head = [name.replace("_", " ") for name in rows[0]]
    lines = [head, ["---"] * len(head), *(map(_cell, row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
