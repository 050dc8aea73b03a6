"""The suite's modules import each other by their plain names, as its processes do.

Their names begin with ``chaos_``: other folders' helpers are on the same path.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
