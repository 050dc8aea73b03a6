"""What each unit of work cost, and what the verified ones cost together; survives restarts.

Invariants:

* A unit's energy counts as verified when, and only when, its receipt has been verified: energy and
  tokens are always of the same units, whatever was trained before energy was measured.
* A kill loses what was not yet saved: a minute's energy at most, never a whole file.
* The file is bounded: units whose receipt nobody asks for any more are summed up and forgotten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.journal import StoredReceipt
from worker.small_file import replace_text

MOST_OPEN = 1024
"""Units without a verified receipt that are remembered; the oldest are given up."""

_J_PER_WH = 3600.0


@dataclass
class EnergyBook:
    """Joules, by unit of work."""

    total_j: float = 0.0
    verified_j: float = 0.0
    verified_tokens: int = 0
    open_j: dict[str, float] = field(default_factory=dict)  # assignment, hex: oldest first

    def add(self, assignment_id: str, joules: float) -> None:
        """Joules for a unit under way."""
        self.total_j += joules
        self.open_j[assignment_id] = self.open_j.get(assignment_id, 0.0) + joules
        while len(self.open_j) > MOST_OPEN:
            del self.open_j[next(iter(self.open_j))]

    def verify(self, receipts: Iterable[StoredReceipt]) -> None:
        """Count the units whose receipt is held: those that are kept have been verified."""
        for receipt in receipts:
            if receipt.leaf and receipt.assignment_id.hex() in self.open_j:
                self.verified_j += self.open_j.pop(receipt.assignment_id.hex())
                self.verified_tokens += int(json.loads(receipt.leaf)["tokens"])

    @property
    def watt_hours(self) -> float:
        return self.total_j / _J_PER_WH

    @property
    def verified_watt_hours(self) -> float:
        return self.verified_j / _J_PER_WH

    @property
    def watt_hours_per_million_verified_tokens(self) -> float | None:
        """None until a unit that was measured is verified."""
        if not self.verified_tokens:
            return None
        return self.verified_watt_hours / self.verified_tokens * 1e6

    def save(self, path: Path) -> None:
        """Write atomically.

        Raises:
            OSError: the disk failed.
        """
        replace_text(path, json.dumps(self.__dict__))

    @classmethod
    def load(cls, path: Path) -> EnergyBook:
        """What :meth:`save` wrote; a new book where there is none, or where it is damaged."""
        try:
            return cls._read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return cls()

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> EnergyBook:
        book = cls(
            float(raw["total_j"]),
            float(raw["verified_j"]),
            int(raw["verified_tokens"]),
            {str(key): float(value) for key, value in raw["open_j"].items()},
        )
        numbers = [book.total_j, book.verified_j, book.verified_tokens, *book.open_j.values()]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError("no energy is below zero")
        return book
