"""Points at every write of the record: files of a folder, statements and commits of a database."""

from __future__ import annotations

from pathlib import Path

from chaos_injector import Install, Reached, after, before
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from ledger import tile_folder
from ledger.tile_folder import TileFolder


def _half_written(reached: Reached) -> None:
    """A file has half of its bytes."""
    whole = tile_folder._fill

    def fill(path: Path, data: bytes) -> None:
        whole(path, data[: len(data) // 2])
        reached(path=str(path))
        whole(path, data)

    tile_folder._fill = fill


def _statement(reached: Reached) -> None:
    """A statement is about to be sent."""
    event.listen(Engine, "before_cursor_execute", lambda *_: reached())


def _commit(reached: Reached) -> None:
    """A transaction is about to be committed."""
    event.listen(Engine, "commit", lambda *_: reached())


def _committed(reached: Reached) -> None:
    """A transaction was committed."""
    event.listen(Session, "after_commit", lambda *_: reached())


FILES: dict[str, Install] = {
    "folder.half": _half_written,
    "folder.rename": before(tile_folder, "_rename"),
    "folder.renamed": after(tile_folder, "_rename"),
    "folder.remove": before(tile_folder, "_remove"),
    "folder.drop": before(TileFolder, "drop_staged"),
}

STATEMENTS: dict[str, Install] = {
    "sql.statement": _statement,
    "sql.commit": _commit,
    "sql.committed": _committed,
}

POINTS = FILES | STATEMENTS
