"""Points of a member: what it knows of a reduce.

* ``inclusion.taken``: it holds the signed inclusion set, and has not acted on it.
"""

from __future__ import annotations

from chaos_injector import Install, after

from worker.watch import Watch

POINTS: dict[str, Install] = {"inclusion.taken": after(Watch, "offer_inclusion")}
