"""What ``worker status`` and ``worker limits`` show: pure functions of the dicts that they print.

Invariants:

* Texts that came over the network are shown as they are or not at all: no markup, no control
  characters, and of bounded length.
* A part that is missing, of an older worker or one that this machine lacks, is left out.
* Every line fits the terminal; without one, there is a line for each fact.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from worker.delegation import day, trouble
from worker.durations import moment_text, span_text
from worker.limit_texts import LIMITS, in_words, limit_text
from worker.limits import Limits
from worker.plain import plain

Status = Mapping[str, Any]
Row = tuple[str, Text]

_BAR = "█░ "
_BAR_CELLS = 20
_LABEL_CELLS = 11
_MICRO = 1_000_000
_STYLES = {
    "training": "green",
    "reducing": "green",
    "committing": "green",
    "fetching": "cyan",
    "paused": "yellow",
}


def console(stream: TextIO) -> Console:
    """A console for a stream; characters that it cannot show are replaced."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    # rich heeds NO_COLOR by itself, but any value counts, and bold and dim are left out too.
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, no_color=_no_color() or None
    )


def _no_color() -> bool:
    return bool(os.environ.get("NO_COLOR"))


def status_view(status: Status, now_s: float | None = None) -> RenderableType:
    """A panel of a :meth:`worker.status.Board.snapshot`, for a terminal."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL_CELLS, no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, value in rows(status, time.time() if now_s is None else now_s):
        table.add_row(label, value)
    title = Text(f"barnraise worker · {_text(status, 'run')}")
    return Panel(table, title=title, expand=False)


def status_lines(status: Status, now_s: float | None = None) -> list[str]:
    """The same for a file or a program that reads lines: nothing is wrapped."""
    found = rows(status, time.time() if now_s is None else now_s)
    return [f"{label:<{_LABEL_CELLS}} {value.plain.lstrip(_BAR)}" for label, value in found]


def headline(status: Status, now_s: float) -> str:
    """What it does in one line; the same for as long as it does the same."""
    until = _until(status, now_s)
    return _doing(status).plain + (f" (until {moment_text(until, now_s)})" if until else "")


def rows(status: Status, now_s: float) -> list[Row]:
    """Label and value of each fact, the most wanted first."""
    until = _until(status, now_s)
    found: list[Row | None] = [
        ("doing", _doing(status)),
        ("until", Text(_moment(until, now_s))) if until else None,
        ("round", Text(f"{_count(status, 'round')} ({_count(status, 'settled_rounds')} settled)")),
        _unit(status),
        _ready(status, now_s),
        ("speed", Text(f"{_count(status, 'tokens_per_s'):,} tokens/s")),
        ("peers", _peers(status)),
        _network(status),
        (
            "given",
            Text(
                f"{_count(status, 'tokens_committed'):,} tokens in "
                f"{_count(status, 'units_committed')} unit(s) since the start"
            ),
        ),
        ("credit", _credit(status)),
        _energy(status),
        _cache(status),
        _limits(status),
        _reachable(status),
        ("coordinator", Text("connected" if status.get("connected") else "not reachable")),
        ("device", Text(_text(status, "worker"))),
        *_donor(status, now_s),
        _dropped(status),
        ("leaderboard", Text(_text(status, "public_url"))) if status.get("public_url") else None,
    ]
    return [row for row in found if row is not None]


def _doing(status: Status) -> Text:
    phase, reason = _text(status, "phase") or "waiting", _text(status, "reason")
    # "waiting: waiting for ..." says one thing twice.
    doing = reason if reason.startswith(phase) else phase + (f": {reason}" if reason else "")
    flags = [name for name in ("paused", "finishing") if status.get(name) and name not in doing]
    if flags:
        doing += f" ({', '.join(flags)})"
    return Text(doing, style=_STYLES.get(phase, ""))


def _until(status: Status, now_s: float) -> float | None:
    for key in ("until_s", "paused_until_s"):
        until = status.get(key)
        if isinstance(until, int | float) and until > now_s:
            return float(until)
    return None


def _moment(at_s: float, now_s: float) -> str:
    return f"{moment_text(at_s, now_s)}, in {span_text(at_s - now_s)}"


def _unit(status: Status) -> Row | None:
    steps, done = _count(status, "steps"), _count(status, "steps_done")
    if not steps:
        return "unit", Text("none")
    done = min(done, steps)
    filled = round(_BAR_CELLS * done / steps)
    text = Text("█" * filled, style="green")
    text.append("░" * (_BAR_CELLS - filled), style="dim")
    text.append(f" {100 * done // steps} %, {done}/{steps} steps", style="default")
    loss = status.get("loss")
    if isinstance(loss, int | float) and done:
        text.append(f", loss {loss:.3f}", style="default")
    return "unit", text


def _ready(status: Status, now_s: float) -> Row | None:
    eta_s, deadline_s = status.get("eta_s"), _number(status, "deadline_in_s")
    said = []
    if isinstance(eta_s, int | float):
        said.append(f"in {span_text(eta_s)}, at {moment_text(now_s + eta_s, now_s)}")
    if deadline_s > 0:
        said.append(f"deadline in {span_text(deadline_s)}")
    return ("ready", Text("; ".join(said))) if said else None


def _peers(status: Status) -> Text:
    problem = _text(status, "swarm_problem")
    return Text(problem or f"{_count(status, 'peers')} in the last reduce")


def _network(status: Status) -> Row | None:
    part = _part(status, "network")
    if not part:
        return None
    rates = f"{_count(part, 'up_kbit_s')} up, {_count(part, 'down_kbit_s')} down kbit/s"
    today = f"today {_size(part, 'up_bytes_today')} up, {_size(part, 'down_bytes_today')} down"
    quota = part.get("quota_left_bytes")
    left = f", {_bytes(quota)} left" if isinstance(quota, int | float) else ""
    return "network", Text(f"{rates}; {today}{left}")


def _credit(status: Status) -> Text:
    part = _part(status, "credit")
    pending, held = _count(status, "receipts_pending"), _count(status, "receipts_held")
    refused = _count(part, "rejected_units")
    verified = f"{_number(part, 'verified_microcredits') / _MICRO:.6f} verified in " if part else ""
    text = Text(f"{verified}{held} receipt(s), {pending} unit(s) pending")
    if refused:
        text.append(f", {refused} rejected", style="red")
    return text


def _energy(status: Status) -> Row | None:
    part = _part(status, "energy")
    if not isinstance(part.get("watt_hours"), int | float):
        return None
    source = f" ({_text(part, 'source')})" if part.get("source") else ""
    return "energy", Text(f"{_number(part, 'watt_hours'):,.1f} Wh{source}")


def _cache(status: Status) -> Row | None:
    part = _part(status, "cache")
    if not part:
        return None
    return "disk", Text(f"{_size(part, 'bytes')} in {_count(part, 'files')} file(s)")


def _limits(status: Status) -> Row | None:
    raw = status.get("limits")
    if not isinstance(raw, Mapping):
        return None
    known = {one.name for one in fields(Limits)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in raw.items()
        if name in known
    }
    said = [words for _, words in in_words(Limits(**values)) if words != "no limit"]
    return "limits", Text("; ".join(plain(words) for words in said))


def _reachable(status: Status) -> Row | None:
    mode = _text(status, "reachability")
    why = _text(status, "reachability_reason")
    return ("reachable", Text(f"{mode}: {why}" if why else mode)) if mode else None


def _donor(status: Status, now_s: float) -> Iterable[Row]:
    until_s = _count(status, "delegated_until_s")
    if not until_s:
        return
    yield "for donor", Text(f"{_text(status, 'donor')} (until {day(until_s)})")
    problem = trouble(_text(status, "worker"), until_s, now_s)
    if problem:
        yield "to do", Text(problem)


def _dropped(status: Status) -> Row | None:
    bad = status.get("bad_sources") or []
    if not bad:
        return None
    return "dropped", Text(f"{plain(', '.join(map(str, bad)))} that served wrong bytes")


def limits_view(limits: Limits, facts: Status, now_s: float) -> RenderableType:
    """The table of limits, and under it what keeps the machine from working now."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("limit", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("means", overflow="fold", style="dim")
    for name, limit in LIMITS.items():
        stops = name == facts.get("stopped_by")
        value = Text(limit_text(getattr(limits, name)), style="yellow" if stops else "")
        means = Text(limit.metadata["says"])
        if stops:
            means = Text("STOPS WORK NOW: ", style="yellow").append(means)
        table.add_row(Text(name), value, means)
    return Group(table, Text(""), Text(_stopped(facts, now_s)))


def _stopped(facts: Status, now_s: float) -> str:
    if not facts.get("confirmed", True):
        return "Nobody has agreed to the run yet: barnraise worker resume"
    if not facts.get("running"):
        return "No worker runs here; these hold when one starts."
    if not facts.get("because"):
        return "No limit keeps it from working now."
    until = _until(facts, now_s)
    said = f"Not working: {_text(facts, 'reason') or facts['because']}"
    return said + (f" Until {_moment(until, now_s)}." if until else "")


def last_known_lines(facts: Status) -> list[str]:
    """What ``status`` says of a worker that does not run, where it ever did."""
    lines = []
    if "worker" in facts:
        lines.append(f"device      {facts['worker']}")
    if facts.get("run"):
        lines.append(f"run         {facts['run']}")
    if facts.get("confirmed") is False:
        lines.append("agreed      not yet: barnraise worker resume")
    if facts.get("paused"):
        lines.append("paused      stays so when it starts, until: barnraise worker resume")
    if "receipts_held" in facts:
        pending = facts["receipts_pending"]
        lines.append(f"credit      {facts['receipts_held']} receipt(s), {pending} unit(s) pending")
    if facts.get("units_trained"):
        lines.append("kept        a trained unit, to be committed when it starts")
    return lines


def _part(status: Status, name: str) -> Status:
    parts = status.get("parts")
    found = status.get(name) or (parts.get(name) if isinstance(parts, Mapping) else None)
    return found if isinstance(found, Mapping) else {}


def _text(status: Status, key: str) -> str:
    value = status.get(key)
    return plain(value) if value else ""


def _number(status: Status, key: str) -> float:
    value = status.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _count(status: Status, key: str) -> int:
    return int(_number(status, key))


def _size(status: Status, key: str) -> str:
    return _bytes(_number(status, key))


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
