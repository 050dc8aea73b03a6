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
from worker.sizes import size_text

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
        *_working(status),
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
        ("coordinator", _coordinator(status)),
        *_devices(status),
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
    """When the unit under way is trained, and when it has to be."""
    if not _count(status, "steps"):
        return None
    eta_s, deadline_s = status.get("eta_s"), _number(status, "deadline_in_s")
    until_deadline = f"in {span_text(deadline_s)}" if deadline_s > 0 else ""
    if not isinstance(eta_s, int | float):
        return ("deadline", Text(until_deadline)) if until_deadline else None
    said = f"in {span_text(eta_s)}, at {moment_text(now_s + eta_s, now_s)}"
    return "ready", Text(said + (f"; deadline {until_deadline}" if until_deadline else ""))


def _working(status: Status) -> Iterable[Row]:
    """How fast it goes, and with whom: nothing of the kind while it sleeps."""
    if status.get("asleep"):
        return
    yield "speed", Text(f"{_count(status, 'tokens_per_s'):,} tokens/s")
    problem = _text(status, "swarm_problem")
    yield "peers", Text(problem or f"{_count(status, 'peers')} in the last reduce")


def _coordinator(status: Status) -> Text:
    """Who has not been asked is not unreachable: so it is in a quota's rest, or before 'resume'."""
    if status.get("connected"):
        return Text("connected")
    return Text("does not answer" if status.get("away") else "not connected")


def _network(status: Status) -> Row | None:
    part = _part(status, "network")
    if not part:
        return None
    rates = f"{_count(part, 'up_kbit_s')} up, {_count(part, 'down_kbit_s')} down kbit/s"
    today = f"today {_size(part, 'up_bytes_today')} up, {_size(part, 'down_bytes_today')} down"
    quota = part.get("quota_left_bytes")
    left = f", {size_text(quota)} left" if isinstance(quota, int | float) else ""
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
    limit = f", {_size(part, 'limit_bytes')} at most" if _count(part, "limit_bytes") else ""
    return "disk", Text(f"{_size(part, 'bytes')} in {_count(part, 'files')} file(s){limit}")


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
    words = in_words(Limits(**values))
    said = [f"{subject} {text}" for subject, text in words if text != "no limit"]
    return "limits", Text("; ".join(plain(text) for text in said))


def _reachable(status: Status) -> Row | None:
    mode = _text(status, "reachability")
    why = _text(status, "reachability_reason")
    return ("reachable", Text(f"{mode}: {why}" if why else mode)) if mode else None


def _devices(status: Status) -> Iterable[Row]:
    """The one device, or what each of several does."""
    members = [one for one in status.get("members") or [] if isinstance(one, Mapping)]
    if not members:
        yield "device", Text(_text(status, "worker"))
    for one in members:
        speed = f"{_count(one, 'tokens_per_s'):,} tokens/s"
        yield _text(one, "device"), Text(f"{speed}, ").append(_doing(one))


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
    reason = _text(facts, "reason") or str(facts["because"])
    said = f"Not working: {reason.rstrip('.')}."
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
    return size_text(_number(status, key))
