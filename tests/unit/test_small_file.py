"""Small files that are replaced as a whole, and the sizes that a person reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.sizes import size_text
from worker.small_file import replace_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_and_nobody_else_reads_it(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("a longer text, of before", encoding="utf-8")
    replace_text(path, "näher", durable=durable)
    assert path.read_text(encoding="utf-8") == "näher"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    path.mkdir()  # no file can be renamed over it
    with pytest.raises(OSError, match="book"):
        replace_text(path, "{}")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (142_848, "139.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 62, "4194304.0 TiB"),
    ],
)
def test_sizes_are_in_the_units_of_the_limits(size_bytes: int, said: str) -> None:
    assert size_text(size_bytes) == said
