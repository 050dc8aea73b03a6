"""What ``status`` and ``limits`` show, of dicts: true, bounded, harmless, in any width."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import RenderableType

from worker.limits import Limits
from worker.status import Board, Phase
from worker.view import console, headline, last_known_lines, limits_view, status_lines, status_view

NOW_S = 1_800_000_000.0
WIDTHS = (20, 40, 80, 200)
HOSTILE = "[bold red]owned[/] \x1b]0;title\x07\x1b[2J\u202e\n\rnext 日本語のとても長い名前 " * 40


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(view: RenderableType, width: int) -> str:
    out = Terminal()
    shown = console(out)
    shown.width = width
    shown.print(view)
    return out.getvalue()


def full() -> dict[str, Any]:
    """A worker of which everything is known."""
    board = Board("12D3KooWKsShz9wdaTcaawvSYuv5CDkKr9HpqYWai6ZVMNgVUEDD", "ea5c19d13ad3e108")
    board.at_work(Phase.TRAINING)
    board.round, board.steps, board.steps_done, board.steps_per_s = 72, 100, 45, 0.5
    board.loss, board.tokens_per_s, board.deadline_in_s, board.connected = 1.009, 6611.4, 300, True
    board.receipts_held, board.receipts_pending, board.reachability = 3, 2, "direct"
    return board.snapshot() | {
        "limits": {"threads": 2, "schedule": ["mon-fri 22:00-07:00"], "on_battery": True},
        "network": {
            "up_bytes_today": 5 << 20,
            "down_bytes_today": 1 << 30,
            "up_kbit_s": 800,
            "down_kbit_s": 90,
            "quota_left_bytes": 3 << 29,
        },
        "energy": {"watt_hours": 12.34, "source": "RAPL"},
        "cache": {"bytes": 3 << 20, "files": 7},
        "credit": {"verified_microcredits": 1_500_000, "rejected_units": 1},
    }


def facts(status: dict[str, Any]) -> dict[str, str]:
    return {line[:11].strip(): line[12:] for line in status_lines(status, NOW_S)}


def test_everything_that_is_known_is_shown() -> None:
    shown = facts(full())
    assert shown["doing"] == "training"
    assert shown["unit"] == "45 %, 45/100 steps, loss 1.009"
    assert shown["ready"] == "in 1 min 50 s, at 08:01; deadline in 5 min"
    assert shown["speed"] == "6,611 tokens/s"
    assert shown["network"] == (
        "800 up, 90 down kbit/s; today 5.0 MiB up, 1.0 GiB down, 1.5 GiB left"
    )
    assert shown["credit"] == "1.500000 verified in 3 receipt(s), 2 unit(s) pending, 1 rejected"
    assert shown["energy"] == "12.3 Wh (RAPL)"
    assert shown["disk"] == "3.0 MiB in 7 file(s)"
    assert "mon-fri 22:00-07:00" in shown["limits"]
    assert shown["reachable"] == "direct"


def test_while_it_sleeps_nothing_is_said_of_what_it_would_do_awake() -> None:
    board = Board("12D3KooWKsShz9wdaTcaawvSYuv5CDkKr9HpqYWai6ZVMNgVUEDD", "ea5c19d13ad3e108")
    board.asleep, board.deadline_in_s = True, 30.0
    shown = facts(board.snapshot())
    assert not {"speed", "peers", "ready", "deadline"} & set(shown)
    assert shown["unit"] == "none"


def test_a_unit_whose_speed_is_not_known_yet_has_a_deadline_alone() -> None:
    assert facts(full() | {"eta_s": None})["deadline"] == "in 5 min"


@pytest.mark.parametrize(
    ("answers", "said"), [(True, "connected"), (False, "does not answer"), (None, "not connected")]
)
def test_who_was_not_asked_is_not_said_to_be_silent(answers: bool | None, said: str) -> None:
    board = Board("12D3KooWKsShz9wdaTcaawvSYuv5CDkKr9HpqYWai6ZVMNgVUEDD", "ea5c19d13ad3e108")
    if answers is not None:
        board.heard_of_coordinator(answers)
    assert facts(board.snapshot())["coordinator"] == said


def test_a_limit_of_the_disk_stands_beside_what_is_used() -> None:
    cache = {"bytes": 3 << 20, "files": 7, "limit_bytes": 1 << 30}
    assert facts(full() | {"cache": cache})["disk"] == "3.0 MiB in 7 file(s), 1.0 GiB at most"


def test_parts_may_lie_in_one_place() -> None:
    status = full()
    parts = {name: status.pop(name) for name in ("network", "energy", "cache", "credit")}
    assert status_lines(status | {"parts": parts}, NOW_S) == status_lines(full(), NOW_S)


def test_what_is_missing_is_left_out() -> None:
    shown = facts({"phase": "waiting", "reason": "starting"})
    assert shown["doing"] == "waiting: starting"
    assert not {"network", "energy", "disk", "limits", "until", "leaderboard"} & set(shown)
    assert "waiting" in drawn(status_view({}, NOW_S), 80)


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [
        (2 * 3600 + 600, "10:10, in 2 h 10 min"),
        (45, "08:00, in 45 s"),
        (20 * 3600, "Sat 04:00, in 20 h"),
        (40 * 86_400, "2027-02-24 08:00, in 40 d"),
        (1e300, "a time out of reach, in more than a year"),
    ],
)
def test_the_one_reason_says_until_when(ahead_s: float, said: str) -> None:
    status = full() | {
        "phase": "paused",
        "reason": "the schedule allows no work now",
        "until_s": NOW_S + ahead_s,
    }
    shown = facts(status)
    assert shown["doing"] == "paused: the schedule allows no work now"
    assert shown["until"].startswith(said)
    assert headline(status, NOW_S).startswith("paused: the schedule allows no work now (until ")


@pytest.mark.parametrize("until_s", [None, NOW_S - 5, "soon", 0])
def test_a_time_that_is_past_or_unknown_is_not_shown(until_s: Any) -> None:
    assert "until" not in facts(full() | {"phase": "paused", "until_s": until_s})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("key", ["reason", "run", "public_url", "reachability_reason", "phase"])
def test_hostile_texts_neither_escape_nor_overflow(key: str, width: int) -> None:
    status = full() | {key: HOSTILE, "bad_sources": [HOSTILE, HOSTILE]}
    text = drawn(status_view(status, NOW_S), width)
    assert all(cell_len(line) <= width for line in _plain(text).splitlines())
    assert "\x1b]" not in text and "\x1b[2J" not in text
    assert not {"\x07", "\r", "\u202e"} & set(text)
    if width == 200 and key == "reason":
        assert "[bold red]owned[/]" in text  # shown as it came
    for line in status_lines(status, NOW_S):
        assert line.isprintable()
        assert len(line) < 2100


@pytest.mark.parametrize("width", WIDTHS)
def test_limits_fit_every_width(width: int) -> None:
    limits = Limits(schedule=("mon-fri 22:00-07:00",) * 20)
    text = _plain(drawn(limits_view(limits, {"running": True}, NOW_S), width))
    assert all(cell_len(line) <= width for line in text.splitlines())


def test_limits_say_which_one_stops_the_work() -> None:
    stopped = {
        "running": True,
        "because": "busy",
        "stopped_by": "busy_cpu_percent",
        "reason": "other programs use 60 % of the CPU.",
        "until_s": NOW_S + 120,
    }
    text = _plain(drawn(limits_view(Limits(busy_cpu_percent=25), stopped, NOW_S), 120))
    (marked,) = [line for line in text.splitlines() if "STOPS WORK NOW" in line]
    assert marked.startswith("busy_cpu_percent")
    assert "Not working: other programs use 60 % of the CPU. Until 08:02, in 2 min." in text
    working = _plain(drawn(limits_view(Limits(), {"running": True}, NOW_S), 120))
    assert "STOPS" not in working
    assert "No limit keeps it from working now." in working


def test_colours_end_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[32m" in drawn(status_view(full(), NOW_S), 80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in drawn(status_view(full(), NOW_S), 80)
    out = StringIO()  # not a terminal
    console(out).print(status_view(full(), NOW_S))
    assert "\x1b" not in out.getvalue()


def test_progress_is_a_bar_that_never_overflows() -> None:
    for done, blocks in ((0, 0), (50, 10), (100, 20), (250, 20)):
        text = drawn(status_view(full() | {"steps": 100, "steps_done": done}, NOW_S), 80)
        assert text.count("█") == blocks
        assert text.count("█") + text.count("░") == 20


def test_a_worker_that_does_not_run_tells_what_it_left() -> None:
    lines = last_known_lines(
        {
            "worker": "12D3",
            "run": "ea5c",
            "paused": True,
            "receipts_held": 2,
            "receipts_pending": 1,
            "units_trained": 1,
        }
    )
    assert any("2 receipt(s), 1 unit(s) pending" in line for line in lines)
    assert any(line.startswith("paused") for line in lines)
    assert any("to be committed" in line for line in lines)


def _plain(text: str) -> str:
    from rich.text import Text

    return Text.from_ansi(text).plain
