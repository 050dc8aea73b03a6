from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from coordinator import views
from coordinator.terminal import configure_logging
from coordinator.troubles import Troubles, read_note
from protocol.errors import TransientError


def test_a_trouble_is_told_when_it_begins_and_when_it_is_over(tmp_path: Path) -> None:
    now_s = [100.0]
    note = tmp_path / "troubles.json"
    troubles = Troubles(note, lambda: now_s[0])
    assert not note.exists(), "a start that is refused changes nothing"
    troubles.begin_anew()
    assert read_note(note) == [] and note.stat().st_size == 4096
    with structlog.testing.capture_logs() as told:
        for second in range(10):
            now_s[0] = 100.0 + second
            troubles.begin("settle", TransientError("no space"))
            troubles.begin("settle", TransientError(f"no space for {second} bytes"))
            troubles.begin("database", TransientError("away"))
        assert {(t["doing"], t["since_s"]) for t in read_note(note)} == {
            ("settle", 100.0),
            ("database", 100.0),
        }
        troubles.end("database", quiet_s=5.0)
        assert len(read_note(note)) == 2, "it failed a moment ago"
        now_s[0] += 5.0
        for _ in range(3):
            troubles.end("database", quiet_s=5.0)
            troubles.end("settle")
    assert [(line["event"], line["doing"]) for line in told] == [
        ("trouble", "settle"),
        ("trouble", "database"),
        ("trouble_over", "database"),
        ("trouble_over", "settle"),
    ]
    assert read_note(note) == [] and note.stat().st_size == 4096


def test_a_note_of_an_earlier_process_is_forgotten(tmp_path: Path) -> None:
    note = tmp_path / "troubles.json"
    Troubles(note).begin("settle", TransientError("no space"))
    Troubles(note).begin_anew()
    assert read_note(note) == []
    note.write_text("[{")
    assert read_note(note) == []
    assert read_note(tmp_path / "none") == []


def test_a_sentence_of_any_length_and_alphabet_fits(tmp_path: Path) -> None:
    note = tmp_path / "troubles.json"
    troubles = Troubles(note)
    troubles.begin("settle", TransientError("kein Platz für [bold]Gewichte[/] " * 100))
    (trouble,) = read_note(note)
    assert "Platz für" in views._trouble_text(trouble)
    assert len(json.dumps(trouble)) < 4096


def test_a_log_on_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")  # every write fails with ENOSPC
    monkeypatch.setattr(sys, "stderr", full)
    try:
        configure_logging(json_lines=True)
        for number in range(100):
            structlog.get_logger().warning("lost", number=number)
        with pytest.raises(OSError, match="No space"):
            os.write(full.fileno(), b"x")
    finally:
        with suppress(OSError):
            full.close()
