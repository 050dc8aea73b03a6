"""A real ``barnraise`` command with a soak's faults before it.

``chaos_soak_process.py FAULTS worker|coordinator -- COMMAND``
"""

from __future__ import annotations

import sys
from pathlib import Path

from chaos_soak_points import Armed, install_coordinator, install_worker

from barnraise import main as barnraise


def main() -> None:
    faults, kind, _, *command = sys.argv[1:]
    armed = Armed.load(Path(faults))
    {"worker": install_worker, "coordinator": install_coordinator}[kind](armed)
    sys.argv = ["barnraise", *command]
    barnraise()


if __name__ == "__main__":
    main()
