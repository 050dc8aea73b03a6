"""``python -m bench [--quick] [NAME...]``: run the benchmarks and write their reports."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from importlib.util import find_spec

BENCHES = (
    "train",
    "data",
    "settling",
    "validation",
    "loss",
    "allreduce",
    "wan",
    "ledger",
    "leaderboard",
    "economics",
    "audit",
    "hostile",
    "honest",
    "flood",
    "lost_reducer",
    "links",
    "network_cap",
    "daemon",
    "coordinator",
    "scale",
    "scale_model",
)
LONG_MINUTES = {
    "loss": 30,
    "allreduce": 120,
    "wan": 60,
    "lost_reducer": 15,
    "network_cap": 15,
    "coordinator": 15,
    "scale": 30,
    "scale_model": 15,
}
"""Reckoned, for two cores with nothing else to do. The others take minutes."""
ROOT, POSTGRESQL = "root", "a PostgreSQL's programs"
NEEDS = {
    "allreduce": ROOT,
    "wan": ROOT,
    "links": ROOT,
    "network_cap": ROOT,
    "ledger": POSTGRESQL,
    "coordinator": POSTGRESQL,
    "scale": "8 GB of memory",
    "scale_model": "a report of scale",
}
_EPILOG = (
    "BENCH_ONLY=PART,PART takes those configurations of allreduce and wan whose names have all the"
    " parts. LOSS_MINUTES (30) is how long loss begins to train what its record lacks; inf: all."
)


def main() -> None:
    available = [name for name in BENCHES if find_spec(f"bench.{name}") is not None]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__} About {told_time(available)} in all; {describe(available)}.",
        epilog=_EPILOG,
    )
    parser.add_argument("names", nargs="*", choices=[*available, []], help="which; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    arguments = parser.parse_args()
    chosen = choose(arguments.names, available, is_root=os.geteuid() == 0)
    if not arguments.quick and any(name in LONG_MINUTES for name in chosen):
        print(f"About {told_time(chosen)}: {describe(chosen)}.", flush=True)
    for name in chosen:
        importlib.import_module(f"bench.{name}").run(arguments.quick)


def choose(names: Sequence[str], available: Sequence[str], *, is_root: bool) -> list[str]:
    """What to run: what was named, or all that may run.

    Raises:
        SystemExit: one was named that needs root.
    """
    barred = [] if is_root else [name for name in names or available if NEEDS.get(name) == ROOT]
    if barred and names:
        raise SystemExit(f"{', '.join(barred)} make network namespaces: run them as root.")
    if barred:
        print(f"Left out, because only root may make network namespaces: {', '.join(barred)}.")
    return [name for name in names or available if name not in barred]


def told_time(names: Sequence[str]) -> str:
    """How long these take together, without those that take minutes."""
    minutes = sum(LONG_MINUTES.get(name, 0) for name in names)
    return f"{minutes} minutes" if minutes < 90 else f"{round(minutes / 60)} hours"


def describe(names: Sequence[str]) -> str:
    """What takes long and what needs something, name by name."""
    parts = []
    for name in names:
        facts = [f"{LONG_MINUTES[name]} minutes"] if name in LONG_MINUTES else []
        facts += [f"needs {NEEDS[name]}"] if name in NEEDS else []
        parts += [f"{name} ({', '.join(facts)})"] if facts else []
    return ", ".join(parts)


if __name__ == "__main__":
    main()
