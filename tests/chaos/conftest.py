"""The suite's modules import each other by their plain names, as its processes do.

Their names begin with ``chaos_``: other folders' helpers are on the same path. The rigs of
``tests/swarm`` are at hand as ``worker_rig`` and ``allreduce_rig``, those of ``tests`` by theirs.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "swarm"), str(_HERE.parent)]
