"""What must hold at the end of a soak, whatever went wrong in it.

Each check returns what it found wrong, in words, and nothing when all is well.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from chaos_soak_facts import rows, units
from chaos_soak_goodput import Goodput
from chaos_soak_meter import Growth, Meter, growth
from chaos_soak_run import Run, call

from protocol.link import JoinLink

LEAST_GOODPUT = 0.9
LOSS_TOLERANCE = 0.03
_MEMORY_SHARE, _MEMORY_FLOOR_MIB = 0.10, 12.0
_DESCRIPTORS_SHARE, _DESCRIPTORS_FLOOR = 0.25, 4.0
_WARM_UP_S = 60.0
"""Programs fill their caches within it; a shorter life says nothing of a leak."""


@dataclass(frozen=True)
class Trend:
    """How the memory or the descriptors of a process went."""

    name: str
    what: str
    growth: Growth
    grows: bool


# ---- the record


def merged_once(run: Run) -> list[str]:
    """Every sequence that is consumed was merged by one unit, and the other way round."""
    merged = [unit for unit in units(run.database) if unit.status == "merged"]
    batches = Counter(
        (unit.epoch, unit.start_batch + step) for unit in merged for step in range(unit.steps)
    )
    wrong = [f"batch {key} was merged {count} times" for key, count in batches.items() if count > 1]
    consumed = {
        (epoch, batch)
        for epoch, start, stop in rows(
            run.database, "SELECT epoch, start, stop FROM intervals WHERE state = 'consumed'"
        )
        for batch in range(start, stop)
    }
    if consumed != set(batches):
        wrong.append(f"{len(consumed ^ set(batches))} batches are consumed or merged, not both")
    ((tokens,),) = rows(run.database, "SELECT max(merged_tokens) FROM states")
    if tokens != sum(unit.tokens for unit in merged):
        wrong.append(f"the state counts {tokens} tokens, its units {sum(u.tokens for u in merged)}")
    return wrong


def credited_once(run: Run) -> list[str]:
    """One leaf of training credit for each merged unit, and none for any other."""
    merged = {unit.assignment for unit in units(run.database) if unit.status == "merged"}
    leaves = Counter(
        assignment
        for (assignment,) in rows(
            run.database, "SELECT assignment_id FROM log_leaf WHERE kind = 'credit'"
        )
        if assignment is not None
    )
    wrong = [f"{unit} was credited {count} times" for unit, count in leaves.items() if count > 1]
    wrong += [f"{unit} was merged and not credited" for unit in merged - set(leaves)]
    wrong += [f"{unit} was credited and not merged" for unit in set(leaves) - merged]
    return wrong


def ledger_verifies(run: Run) -> list[str]:
    """The public record, replayed by the command that everybody has."""
    url = f"sqlite:///{run.database}"
    try:
        call("ledger", "verify", "--db", url, "--root", JoinLink.parse(run.link).root)
    except AssertionError as error:
        return [str(error)]
    return []


# ---- the weights


def weights_agree(run: Run) -> list[str]:
    """No member ever reported another state; those that are alive have the head's, by its bytes."""
    wrong = [
        f"round {round_}: {run.peer_ids.get(worker, worker)} reported another state"
        for round_, worker in rows(
            run.database,
            "SELECT p.round, p.worker FROM reports p JOIN rounds r ON r.number = p.round "
            "JOIN states s ON s.settled_rounds = r.settled_rounds + 1 "
            "WHERE r.phase = 'SETTLED' AND p.state_digest != s.digest",
        )
    ]
    if not rows(run.database, "SELECT 1 FROM reports WHERE agrees LIMIT 1"):
        wrong.append("nobody reported a state")
    ((digest, weights),) = rows(
        run.database,
        "SELECT digest, weights_sha256 FROM states ORDER BY settled_rounds DESC LIMIT 1",
    )
    for name in run.shape.names:
        path = _weights_file(run.home(name), digest, weights)
        if path is None:
            wrong.append(f"{name} does not have the head's weights")
        elif hashlib.sha256(path.read_bytes()).digest() != weights:
            wrong.append(f"{name} has other bytes under the name of the head's weights")
    return wrong


def _weights_file(home: Path, digest: bytes, sha256: bytes) -> Path | None:
    journal = home / "journal.db"
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
        found = database.execute(
            "SELECT 1 FROM state WHERE digest = ? AND weights_sha256 = ?", (digest, sha256)
        ).fetchone()
    paths = [path for path in (home / "blobs").rglob("*") if sha256.hex() in path.name]
    return paths[0] if found and paths else None


# ---- goodput and loss


def enough_is_merged(goodput: Goodput) -> list[str]:
    if goodput.ratio >= LEAST_GOODPUT:
        return []
    return [f"only {goodput.ratio:.1%} of the tokens trained were merged: {goodput.lost}"]


def learns_as_in_peace(seen: float, calm: list[float]) -> list[str]:
    """The loss against the mean of calm runs with as many rounds and merged tokens."""
    expected = sum(calm) / len(calm)
    if seen <= expected * (1 + LOSS_TOLERANCE):
        return []
    return [f"the loss is {seen:.3f}, {seen / expected - 1:.1%} above {expected:.3f} in peace"]


# ---- processes


def trends(meter: Meter, *, warm_up_s: float = _WARM_UP_S) -> list[Trend]:
    """Of every process that lived long enough to tell."""
    return list(_trends(meter, warm_up_s))


def _trends(meter: Meter, warm_up_s: float) -> Iterator[Trend]:
    for series in meter.series.values():
        for what, samples, share, floor in (
            ("memory MiB", series.memory, _MEMORY_SHARE, _MEMORY_FLOOR_MIB),
            ("descriptors", series.descriptors, _DESCRIPTORS_SHARE, _DESCRIPTORS_FLOOR),
        ):
            found = growth(samples, warm_up_s=warm_up_s)
            if found is not None:
                yield Trend(series.name, what, found, found.beyond(share, floor))


def nothing_grows(found: list[Trend]) -> list[str]:
    wrong = [
        f"{t.name}: {t.what} rise by {t.growth.rise:.1f} from {t.growth.first:.1f}"
        for t in found
        if t.grows
    ]
    if not found:
        wrong.append("no process lived long enough to say whether it grows")
    return wrong


def ended_well(codes: dict[str, int | None]) -> list[str]:
    return [f"{name} ended with {code}" for name, code in codes.items() if code != 0]


def nothing_left(run: Run, meter: Meter) -> list[str]:
    """No process that the soak ever saw, no socket, no half-made file."""
    wrong = [f"process {pid} is left: {name}" for pid, name in meter.alive()]
    for name in run.shape.names:
        home = run.home(name)
        wrong += [f"{path} is left" for path in (home / "scratch").iterdir()]
        wrong += [f"{path} is left" for path in home.rglob("*") if path.is_socket()]
        wrong += [f"{path} is left" for path in home.rglob("*.new")]
    if (run.run / "evaluation").exists():
        wrong.append("the coordinator's evaluation folder is left")
    return wrong


# ---- logs


def logs_are_clean(run: Run) -> list[str]:
    """No traceback and no line of level error, in any log."""
    logs = {path.name: path for path in (*run.logs.glob("*.log"), *(run.run / "logs").glob("*"))}
    return [f"{name}: {line[:300]}" for name, path in sorted(logs.items()) for line in _bad(path)]


def _bad(path: Path) -> Iterator[str]:
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                level = json.loads(line).get("level")
            except ValueError:
                continue  # cut by a kill
            if level in ("error", "critical"):
                yield line
        elif "Traceback (most recent call last)" in line or " [error " in line:
            yield line


ALL_OF_RECORD = (merged_once, credited_once, ledger_verifies, weights_agree)
