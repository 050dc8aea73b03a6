"""``python tests/chaos/chaos_soak.py [--seed N] [--minutes M] [--workers W]``: a run under faults.

Real processes on loopback; prints a table and writes it, with machine and versions, to
``bench/results/soak.json``. The exit code is 0 only if all that must hold did.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for bench, which is not installed

from chaos_soak_checks import (
    ALL_OF_RECORD,
    Trend,
    ended_well,
    enough_is_merged,
    learns_as_in_peace,
    logs_are_clean,
    nothing_grows,
    nothing_left,
    trends,
)
from chaos_soak_driver import Driver
from chaos_soak_facts import losses, outcomes
from chaos_soak_goodput import Goodput, measure
from chaos_soak_meter import Meter
from chaos_soak_plan import Fired, make_plan
from chaos_soak_replay import Replay, again, in_peace, settled_rounds
from chaos_soak_run import Run, Shape

MOST_ROUNDS = 2000


@dataclass(frozen=True)
class Outcome:
    """How a soak ended."""

    seed: int
    minutes: float
    shape: Shape
    fired: list[Fired]
    rounds: dict[int, tuple[str, str, int]]
    goodput: Goodput
    loss: float
    calm: list[float]
    trends: list[Trend]
    wrong: list[str]


def soak(
    folder: Path, seed: int, minutes: float, shape: Shape, *, faults: int = 0, calm_runs: int = 1
) -> Outcome:
    """Run, end it, and look at what is left.

    Args:
        folder: made, and left to be looked at.
        seed: of the faults.
        minutes: under faults; the start, the quiet at the end and the checks come on top.
        shape: how large.
        faults: it goes on until so many have fired, should the minutes not be enough.
        calm_runs: runs in peace to compare with; each takes as much training again.

    Raises:
        Stuck: the run did not go on; then there is nothing to look at but the logs.
    """
    run = Run(folder, shape)
    run.make()
    meter = Meter()
    driver = Driver(run, make_plan(seed, shape.names, MOST_ROUNDS), meter)
    try:
        driver.play(minutes, faults)
    finally:
        codes = run.close()
    wrong = ended_well(codes) + nothing_left(run, meter) + logs_are_clean(run)
    for check in ALL_OF_RECORD:
        wrong += check(run)
    rounds = settled_rounds(run)
    with Replay(run) as replay:
        wrong += again(replay, rounds)
        calm = [in_peace(replay, rounds, number)[-1][1] for number in range(calm_runs)]
    loss = losses(run.database)[-1][2]
    goodput = measure(run, driver.fired)
    found = trends(meter)
    wrong += enough_is_merged(goodput) + learns_as_in_peace(loss, calm) + nothing_grows(found)
    return Outcome(
        seed,
        minutes,
        shape,
        driver.fired,
        outcomes(run.database),
        goodput,
        loss,
        calm,
        found,
        wrong,
    )


def main() -> int:
    from chaos_soak_table import as_text, write

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="keep the run and its logs here")
    given = parser.parse_args()
    shape = replace(Shape(), workers=given.workers)
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = given.folder or Path(temporary) / "soak"
        began_s = time.monotonic()
        outcome = soak(folder, given.seed, given.minutes, shape)
        print(as_text(outcome))
        print(f"took {(time.monotonic() - began_s) / 60:.1f} minutes", file=sys.stderr)
    write(outcome)
    for problem in outcome.wrong:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
