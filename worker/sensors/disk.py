"""How much room a disk has left."""

from __future__ import annotations

import os
from pathlib import Path


def free_disk_mib(folder: Path) -> int:
    """What this user may still write there.

    Raises:
        OSError: no such folder, or it cannot be reached.
    """
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >> 20
