"""Files of others are what their list says, to the bit, and nothing else is among them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import ledger.leaderboard

_SITE = Path(ledger.leaderboard.__file__).parent
_ROW = re.compile(r"\| `([^`]+)` \| \S+ [0-9.]+ \| .*`([^`,]+LICENSE)[^|]* \| `([0-9a-f]{64})` \|")


@pytest.mark.parametrize(
    ("folder", "count"), [(_SITE / "static/vendor", 4), (Path(__file__).parent / "vendor", 1)]
)
def test_vendored_files_are_those_of_the_list(folder: Path, count: int) -> None:
    listed = _ROW.findall((folder / "VENDORED.md").read_text())
    assert len(listed) == count
    for name, licence, digest in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
        assert (folder / licence).read_text().strip(), licence
    known = {"VENDORED.md", *(name for name, _, _ in listed), *(lic for _, lic, _ in listed)}
    found = {path.name for path in folder.iterdir()}
    assert {name for name in found if "LICENSE" not in name} <= known
