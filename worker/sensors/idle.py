"""How long ago somebody used this machine: the most recent use counts, whoever tells of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class IdleTime:
    """Asks all who may know."""

    dev: Path = Path("/dev")

    def seconds(self) -> float | None:
        """Since the last use; None where nothing tells it."""
        return typed_ago_s(self.dev, time.time())


def typed_ago_s(dev: Path, now_s: float) -> float | None:
    """Since somebody typed at a terminal, local or remote: when it was last read from."""
    read_s: list[float] = []
    for pattern in ("pts/[0-9]*", "tty[0-9]*"):
        for terminal in dev.glob(pattern):
            try:
                read_s.append(terminal.stat().st_atime)
            except OSError:  # it was closed while we looked
                continue
    return max(0.0, now_s - max(read_s)) if read_s else None
