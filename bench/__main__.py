"""``python -m bench [--quick] [NAME...]``: run the benchmarks and write their reports."""

from __future__ import annotations

import argparse
import importlib
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


def main() -> None:
    available = [name for name in BENCHES if find_spec(f"bench.{name}") is not None]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*available, []], help="which; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    arguments = parser.parse_args()
    for name in arguments.names or available:
        importlib.import_module(f"bench.{name}").run(arguments.quick)


if __name__ == "__main__":
    main()
