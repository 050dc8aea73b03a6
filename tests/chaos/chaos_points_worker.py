"""Where a worker can be killed or stopped: around each thing that it writes down for good, and at
the moments of its start and of a reduce that leave most behind."""

from __future__ import annotations

from typing import Any

from chaos_injector import Install, after, before

from worker import round_runner
from worker.allreduce import GroupReduce
from worker.journal import Journal
from worker.reducer import Reducer
from worker.streams import BoundedP2P
from worker.trainer import Trainer

WRITES = (
    "begin",
    "trained",
    "delivered",
    "post",
    "end",
    "expect_receipt",
    "keep_receipt",
    "keep_state",
    "drop_state",
)
"""Methods of the journal, each one durable transaction (but ``end``: a look and one)."""


def _kept(_reducer: Any, _inbox: Any, chunk: int, *_: Any) -> dict[str, int]:
    return {"chunk": chunk}


POINTS: dict[str, Install] = {
    **{f"before {name}": before(Journal, name) for name in WRITES},
    **{f"after {name}": after(Journal, name) for name in WRITES},
    "before adopt_update": before(round_runner, "adopt_update"),
    "after adopt_update": after(round_runner, "adopt_update"),
    "p2pd spawned": before(BoundedP2P, "_read_outputs"),  # and has not answered yet
    "trainer warms up": before(Trainer, "warm_up"),
    "chunk kept": before(Reducer, "_keep", _kept),
    "reduce begins": before(GroupReduce, "gather"),
    "reduce ends": before(GroupReduce, "finish"),
}
