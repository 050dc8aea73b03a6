"""Finished runs of the benchmark of losses, one JSON line each: it goes on where it ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.loss_arm import Arm
from bench.loss_run import Outcome
from bench.loss_text import text_sha256


class Record:
    """Runs on this very text; lines about another one are kept and left alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text_sha256 = text_sha256()
        self._outcomes: dict[str, Outcome] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for line in map(json.loads, lines):
            if line["text_sha256"] == self._text_sha256:
                self._outcomes[Arm(**line["arm"]).key] = _outcome(line)

    def get(self, arm: Arm) -> Outcome | None:
        return self._outcomes.get(arm.key)

    def add(self, arm: Arm, outcome: Outcome) -> None:
        """Keep a run, on the disk first."""
        line = {
            "arm": asdict(arm),
            **asdict(outcome),
            "text_sha256": self._text_sha256,
            "torch": version("torch"),
        }
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._outcomes[arm.key] = outcome


def _outcome(line: dict[str, Any]) -> Outcome:
    curve = [(int(tokens), float(loss)) for tokens, loss in line["curve"]]
    return Outcome(line["loss"], curve, line["step_s"])
