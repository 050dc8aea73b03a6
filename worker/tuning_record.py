"""What tuning found out, in a file of the worker's home: what a restart need not measure again.

Invariants:

* It holds for one model, device, number of threads, version of torch and memory limit; when any of
  these is another, it is as if there were no file. So is a damaged one.
* What is about to be tried is in the file before it is tried. Whoever finds such a note knows that
  the try ended the process, and does not try it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protocol.manifest import RunManifest
from worker.choice import Choice
from worker.small_file import replace_text
from worker.tuning_search import MOST_TOKENS_PER_S, Tried

_FORMAT = "barnraise-tuning/1"
_MAX_BYTES = 64 << 10
_MAX_TRIED = 64
KILLED = "the process was ended while it was tried"


@dataclass(frozen=True)
class TuningKey:
    """What a measurement holds for."""

    model: str  # digest of what decides a step's work
    device: str
    threads: int
    torch: str
    gpu_memory_percent: int
    memory_mib: int
    autocast_bf16: bool
    micro_batch_sequences: int  # as configured; 0: as measured


def model_digest(manifest: RunManifest) -> str:
    """Of the model, a sequence's length and a batch's size."""
    decides = [
        manifest.model_config_json,
        manifest.sequence_length,
        manifest.inner.sequences_per_batch,
    ]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TuningRecord:
    """Everything that is known so far."""

    tried: tuple[Tried, ...] = ()
    trying: Choice | None = None
    choice: Choice | None = None  # None: not decided yet, or nothing fits
    decided: bool = False
    unit_since_kills: int | None = None  # kernel's count when a unit was begun that has not ended
    unit_tokens_per_s: float = 0.0  # of the last unit; 0: there was none
    measured_at_s: int = 0

    def after_a_kill(self) -> TuningRecord:
        """With the try that ended the last process taken as failed."""
        if self.trying is None:
            return self
        return replace(self, tried=(*self.tried, Tried(self.trying, failed=KILLED)), trying=None)

    def out_of_memory(self, lighter: Choice | None, why: str) -> TuningRecord:
        """With the choice taken as failed, and a lighter one, if there is one, in its place."""
        failed = () if self.choice is None else (Tried(self.choice, failed=why),)
        others = tuple(one for one in self.tried if one.choice != self.choice)
        return replace(
            self, tried=(*others, *failed), choice=lighter, decided=True, unit_tokens_per_s=0.0
        )

    @property
    def tokens_per_s(self) -> float:
        """Of the last unit, else as measured for the choice; 0: neither."""
        found = (one.tokens_per_s for one in self.tried if one.choice == self.choice)
        return self.unit_tokens_per_s or next(found, 0.0)


class TuningFile:
    """Reads and writes the record; blocking."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, key: TuningKey) -> TuningRecord:
        """The record of a key; an empty one if there is none."""
        found = self.read_any()
        return found[1] if found is not None and found[0] == key else TuningRecord()

    def read_any(self) -> tuple[TuningKey, TuningRecord] | None:
        """Whatever is there."""
        try:
            with self.path.open("rb") as file:
                return _parse(json.loads(file.read(_MAX_BYTES)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, key: TuningKey, record: TuningRecord) -> None:
        """Replace the file; a disk that is full costs the next start some seconds, no more."""
        with suppress(OSError):
            replace_text(self.path, json.dumps(_dump(key, record), indent=1) + "\n")

    def forget(self) -> None:
        """Whoever looks next measures anew."""
        self.path.unlink(missing_ok=True)


def _dump(key: TuningKey, record: TuningRecord) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "key": dict(key.__dict__),
        "tried": [one.dump() for one in record.tried],
        "trying": record.trying and record.trying.dump(),
        "choice": record.choice and record.choice.dump(),
        "decided": record.decided,
        "unit_since_kills": record.unit_since_kills,
        "unit_tokens_per_s": record.unit_tokens_per_s,
        "measured_at_s": record.measured_at_s,
    }


def _parse(raw: Mapping[str, Any]) -> tuple[TuningKey, TuningRecord]:
    if raw["format"] != _FORMAT or len(raw["tried"]) > _MAX_TRIED:
        raise ValueError("not such a file")
    kills = raw["unit_since_kills"]
    if type(raw["decided"]) is not bool or not (kills is None or type(kills) is int):
        raise ValueError("not such a file")
    speed = float(raw["unit_tokens_per_s"])
    if not 0 <= speed < MOST_TOKENS_PER_S:
        raise ValueError("not a speed")
    return TuningKey(**raw["key"]), TuningRecord(
        tried=tuple(Tried.load(one) for one in raw["tried"]),
        trying=_choice(raw["trying"]),
        choice=_choice(raw["choice"]),
        decided=raw["decided"],
        unit_since_kills=kills,
        unit_tokens_per_s=speed,
        measured_at_s=int(raw["measured_at_s"]),
    )


def _choice(raw: Mapping[str, Any] | None) -> Choice | None:
    return None if raw is None else Choice.load(raw)
