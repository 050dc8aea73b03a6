"""Dumps: the record's numbers as tables, in JSON lines and CSV, each with the names as of now.

A dump is a folder. ``dump.json`` names the head that everything in it was made of, ``checkpoint``
is that signed head, and ``SHA256SUMS`` covers every other file; ``boinc/`` holds the same in
BOINC's format (:mod:`ledger.exports.boinc`).

Invariants:

* The same head and profiles give the same bytes; no clock is read.
* A dump appears whole or not at all: it is written beside and renamed.
* Private pledges and donations name nobody, secret ones are not listed (the record counts them).
* Whoever erased its profile has no name in any row, and a row of its own in ``erased``.
* CSV is RFC 4180 in UTF-8. A spreadsheet takes no text for a formula: a text that begins with one
  of ``= + - @ ' TAB CR LF``, or a wide form of the first four, gets one apostrophe before it, and
  nothing else is changed: whoever drops one leading apostrophe from a text has it as it was.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from ledger.exports.boinc import write_boinc
from ledger.exports.profiles import Profiles
from ledger.exports.tables import COLUMNS, TABLES, Row, Value
from ledger.fold import Board
from protocol.errors import UsageError
from protocol.notes import read_checkpoint

FORMAT = "barnraise-dump/1"
KEPT = 2
"""Dumps that stay in a folder: the newest, and the one that somebody may be reading."""

_FORMULA = (*"=+-@'\t\r\n", *"\uff1d\uff0b\uff0d\uff20")  # the latter: their wide forms
_STAMP = "%Y%m%dT%H%M%S.%fZ"


def write_dump(
    board: Board, profiles: Profiles, note: str, out: Path, *, now: datetime | None = None
) -> Path:
    """Write a dump into a new folder in ``out``, named by the time, and drop old ones.

    Args:
        board: the fold of the leaves under the head.
        profiles: what people show now.
        note: the signed head.
        out: where dumps are kept; made if it is not there.
        now: names the folder; for tests.

    Returns:
        The folder.

    Raises:
        UsageError: it cannot be written.
    """
    name = (now or datetime.now(UTC)).strftime(_STAMP)
    partial, final = out / f".{name}.partial", out / name
    try:
        partial.mkdir(parents=True)
        _write_all(board, profiles, note, partial)
        partial.rename(final)
        _drop_old(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"cannot write a dump to {out}: {error.strerror or error}") from error
    return final


def newest_dump(out: Path) -> Path | None:
    """The newest whole dump in a folder, or None."""
    try:
        names = [entry.name for entry in os.scandir(out) if not entry.name.startswith(".")]
    except OSError:
        return None
    return out / max(names) if names else None


def _drop_old(out: Path) -> None:
    dumps = sorted(path for path in out.iterdir() if path.is_dir())
    whole = [path for path in dumps if not path.name.startswith(".")]
    for path in [*whole[:-KEPT], *(path for path in dumps if path.name.startswith("."))]:
        shutil.rmtree(path)


def _write_all(board: Board, profiles: Profiles, note: str, folder: Path) -> None:
    files: list[Path] = []
    for name, table in TABLES.items():
        files += _write_table(folder, name, table(board, profiles))
    (folder / "boinc").mkdir()
    files += write_boinc(board, profiles, folder / "boinc")
    files.append(folder / "checkpoint")
    files[-1].write_text(note)
    files.append(folder / "dump.json")
    files[-1].write_text(json.dumps(_about(board, note), indent=2) + "\n")
    sums = "".join(f"{_sha256(file)}  {file.relative_to(folder)}\n" for file in sorted(files))
    (folder / "SHA256SUMS").write_text(sums)


def _about(board: Board, note: str) -> dict[str, object]:
    """What the dump was made of."""
    head = read_checkpoint(note)
    return {
        "format": FORMAT,
        "run_id": board.run_id,
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "newest_s": board.newest_s,
        "tables": list(TABLES),
    }


def _write_table(folder: Path, name: str, rows: Iterable[Row]) -> list[Path]:
    """Write a table in both forms, a row at a time."""
    lines, table = folder / f"{name}.jsonl", folder / f"{name}.csv"
    with (
        lines.open("w", encoding="utf-8") as as_json,
        table.open("w", encoding="utf-8", newline="") as as_csv,
    ):
        writer = csv.writer(as_csv)  # RFC 4180: CRLF, quotes doubled
        writer.writerow(COLUMNS[name])
        for row in rows:
            as_json.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            writer.writerow([cell(row[column]) for column in COLUMNS[name]])
    return [lines, table]


def cell(value: Value) -> str | int:
    """A value as CSV has it: lists are parted by spaces, null is empty, truth is 1."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    text = " ".join(value) if isinstance(value, list) else value
    return f"'{text}" if text.startswith(_FORMULA) else text


def plain(text: str) -> str:
    """The text that :func:`cell` was given."""
    return text.removeprefix("'")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
