"""``python tests/adversary/table.py [--only NAME]...``: all adversaries, one after another.

Prints a table and writes it, with machine and versions, to ``bench/results/adversary.json``. Each
row is a run of real processes on loopback; the loss is compared with the same run (id, keys, data,
weights) without the adversary, after as many settled rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for bench, which is not installed

from catalogue import ALL, BASELINE
from ground import GROUNDS, Ground
from outcome import HORIZON, Outcome, Scenario, play

from bench.report import Row, write_report

_BASELINE_ROUNDS = 30
NOTE = (
    "real processes on loopback; units: dishonest ones that were merged, to the one that convicts; "
    "bound: at most so many with 99 %; excess: loss against the same run without the adversary, "
    "nats per token, after as many settled rounds; its bound: to lose the rounds that held a "
    "dishonest unit, and one more"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [scenario.name for scenario in ALL]
    parser.add_argument("--only", action="append", choices=names, help="this one; may be repeated")
    parser.add_argument("--folder", type=Path, help="keep the runs and their logs here")
    given = parser.parse_args()
    chosen = [s for s in ALL if given.only is None or s.name in given.only]
    if given.folder is not None:
        given.folder.mkdir(parents=True)
        return _run_all(chosen, given.folder, whole=given.only is None)
    with tempfile.TemporaryDirectory(prefix="adversary-") as folder:
        return _run_all(chosen, Path(folder), whole=given.only is None)


def _run_all(chosen: list[Scenario], folder: Path, *, whole: bool) -> int:
    """Returns the exit code: 0 only if every adversary was beaten within its bounds."""
    board = _Board(folder)
    for number, scenario in enumerate(chosen, 1):
        began_s = time.monotonic()
        board.play(scenario)
        took_s = time.monotonic() - began_s
        print(f"{number}/{len(chosen)} {scenario.name}: {took_s:.0f} s", file=sys.stderr)
    if board.rows:
        write_report("adversary" if whole else "adversary-part", board.rows, note=NOTE)
    for problem in board.problems:
        print(f"NOT BEATEN: {problem}", file=sys.stderr)
    return 1 if board.problems else 0


class _Board:
    """Grounds and their baselines, made when first needed; and what came out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._grounds: dict[str, Ground] = {}
        self._baselines: dict[str, dict[int, float]] = {}
        self.rows: list[Row] = []
        self.problems: list[str] = []

    def play(self, scenario: Scenario) -> None:
        ground = self._ground(scenario.ground)
        try:
            outcome = play(scenario, ground, horizon=HORIZON)
        except AssertionError as error:
            self.problems.append(f"{scenario.name}: {error}")
            (ground.folder / "live").rename(ground.folder / f"lost-to-{scenario.name}")
            return
        row = _row(outcome, self._baselines[scenario.ground])
        self.rows.append(row)
        self.problems += _problems(row)

    def _ground(self, name: str) -> Ground:
        if name not in self._grounds:
            ground = Ground(self._folder / name.replace(" ", "-"), GROUNDS[name])
            ground.make()
            ground.calibrate()
            self._grounds[name] = ground
            self._baselines[name] = play(BASELINE, ground, horizon=_BASELINE_ROUNDS).losses
        return self._grounds[name]


def _row(outcome: Outcome, baseline: dict[int, float]) -> Row:
    last = min(outcome.settled, max(baseline))
    lost = last - outcome.dishonest_rounds - 1
    return {
        "adversary": outcome.adversary,
        "beaten_by": outcome.beaten_by,
        "units_bound": outcome.bound_units,
        "units_seen": outcome.seen_units,
        "merged_until_out": outcome.merged_units,
        "rounds": last,
        "excess_bound_nats": round(baseline[max(lost, 0)] - baseline[last], 3),
        "excess_seen_nats": round(outcome.losses[last] - baseline[last], 3),
        "honest_punished": outcome.honest_punished,
        "note": outcome.note,
    }


def _problems(row: Row) -> list[str]:
    name, found = row["adversary"], []
    if row["honest_punished"]:
        found.append(f"{name}: honest workers were punished: {row['honest_punished']}")
    if int(str(row["units_seen"])) > int(str(row["units_bound"])):
        found.append(f"{name}: found after {row['units_seen']} units")
    if float(str(row["excess_seen_nats"])) > float(str(row["excess_bound_nats"])) + _NOISE_NATS:
        found.append(f"{name}: the loss is {row['excess_seen_nats']} nats higher")
    return found


_NOISE_NATS = 0.1
"""Between two runs without an adversary: they draw other data at other times."""


if __name__ == "__main__":
    sys.exit(main())
