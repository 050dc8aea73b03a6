"""What others keep or feed on: dumps, and BOINC's files.

Invariants:

* Nobody who asks can make the site write a dump, however often they ask: dumps are files that
  ``ledger dump`` wrote.
* A name in an address leads to a file only if the newest dump's list has it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from ledger.exports.dumps import newest_dump
from ledger.leaderboard.pages import page

router = APIRouter(include_in_schema=False)

_KINDS = {
    ".jsonl": "application/jsonl; charset=utf-8",
    ".csv": "text/csv; charset=utf-8; header=present",
    ".json": "application/json",
    ".gz": "application/gzip",
    ".xml": "application/xml; charset=utf-8",
}
_SUMS = "SHA256SUMS"
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([a-z0-9_./]{1,64}?)")
_FRESH = "public, max-age=300"


@dataclass(frozen=True)
class Dump:
    """The newest dump."""

    folder: Path
    about: dict[str, Any]
    sums: dict[str, str]  # by path in it


def _newest(request: Request) -> Dump:
    """Raises HTTPException: 404, the site has no dumps, or none yet."""
    kept: Path | None = request.app.state.dumps
    if kept is None:
        raise HTTPException(404, "This site offers no dumps: `ledger serve --dumps` does.")
    folder = newest_dump(kept)
    try:
        if folder is not None:
            lines = (folder / _SUMS).read_text().splitlines()
            matches = (_SUM_LINE.fullmatch(line) for line in lines)
            sums = {match[2]: match[1] for match in matches if match}
            return Dump(folder, json.loads((folder / "dump.json").read_bytes()), sums)
    except FileNotFoundError:
        pass  # it was dropped just now, for a newer one
    raise HTTPException(404, "No dump was made yet: `ledger dump` makes one.")


@router.get("/dumps/")
def dumps_page(request: Request) -> Response:
    """What there is to download, and of which head it was made."""
    dump = _newest(request)
    files = [
        (name, (dump.folder / name).stat().st_size, digest)
        for name, digest in sorted(dump.sums.items())
    ]
    return page("dumps.html", request, about=dump.about, files=files)


@router.get("/dumps/{name:path}")
def dump_file(request: Request, name: str) -> Response:
    """A file of the newest dump."""
    return _file(_newest(request), name)


@router.get("/boinc/{name}")
def boinc_file(request: Request, name: str) -> Response:
    """BOINC's statistics, at the address where statistics sites look for them."""
    return _file(_newest(request), f"boinc/{name}")


def _file(dump: Dump, name: str) -> Response:
    path = dump.folder / name
    if name == _SUMS:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    elif name in dump.sums:
        digest = dump.sums[name]
    else:
        raise HTTPException(404, "The newest dump has no such file.")
    headers = {"ETag": f'"{digest[:32]}"', "Cache-Control": _FRESH}
    kind = _KINDS.get(path.suffix, "text/plain; charset=utf-8")
    return FileResponse(path, media_type=kind, headers=headers, stat_result=path.stat())
