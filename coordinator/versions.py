"""Which versions of the program may take part: the organiser's minimum, and nothing above it.

A version is compared by the numbers at its start. A newer one than the coordinator's own may come:
what decides results is named in the manifest, and whoever does not know it refuses the run itself.
"""

from __future__ import annotations

import re

from coordinator.schema import WorkerRow
from coordinator.turn import Turn
from protocol.hello import upgrade_sentence


def supported(version: str, minimum: str) -> bool:
    """Whether ``version`` is at least ``minimum``."""
    return _numbers(version) >= _numbers(minimum) and bool(_numbers(version))


def too_old(turn: Turn, worker: WorkerRow) -> str | None:
    """What a device has to do whose program was let in before the minimum rose; None: nothing."""
    minimum = turn.context.options.min_client_version
    if not minimum or supported(worker.client_version, minimum):
        return None
    return upgrade_sentence(worker.client_version, minimum)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d{1,6}(\.\d{1,6}){0,3}", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
