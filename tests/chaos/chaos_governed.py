"""A real ``barnraise`` command whose sensors read what a test writes into a file.

``chaos_governed.py READINGS COMMAND...``: ``READINGS`` is JSON with fields of
:class:`worker.verdict.Readings`; it is read at each look.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from barnraise import main as barnraise
from worker.clock import steady_s
from worker.sensors.machine import Sensors
from worker.verdict import Readings


def main() -> None:
    file, command = Path(sys.argv[1]), sys.argv[2:]

    def read(_sensors: Sensors) -> Readings:
        return Readings(time.time(), steady_s(), **json.loads(file.read_text()))

    Sensors.read = read  # type: ignore[method-assign]
    sys.argv = ["barnraise", *command]
    barnraise()


if __name__ == "__main__":
    main()
