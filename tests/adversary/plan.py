"""What a faulty process was told to do wrong."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from faults import Fault, When

log = structlog.get_logger()


@dataclass
class Plan:
    """What this process does wrong, and when."""

    fault: Fault
    when: When
    victim: str = ""  # PeerID
    folder: Path | None = None  # what it got from elsewhere: a victim's, a partner's
    units: int = 0  # begun so far
    cheats: bool = False  # in the unit under way

    def begin_unit(self, assignment_id: bytes) -> None:
        self.cheats = self.when.cheats(self.units, assignment_id)
        self.units += 1

    def note(self, round_: int, **facts: Any) -> None:
        """One line for each cheat, at the moment when it happens."""
        log.warning("cheated", fault=self.fault, round=round_, **facts)

    def die(self, round_: int) -> None:
        """Be gone without a word, as a laptop whose lid is closed."""
        self.note(round_)
        os.kill(os.getpid(), signal.SIGKILL)
