"""Loss against tokens and against time: ours, and what it is an alternative to.

Everybody trains the same Llama on the same bytes of Shakespeare in the same order, with as many
tokens in all, and is evaluated on plays that nobody trained on. *Synchronous* AdamW and Muon
average gradients after every step, as in a data centre; *DiLoCo* is AdamW that keeps its state,
averaged in float32 every H steps by the outer optimizer of its paper; *ours* is the protocol's own
code. All share clipping, weight decay and the cosine schedule of the learning rate; each has the
peak that was best for it among those tried (``docs/lab-notes.md``).

Wall time is reckoned (:mod:`bench.loss_link`): the measured step, and a home's line between steps.
*In the same time* trains the synchronous ones anew, on as many tokens as fit in ours, with a
schedule that ends there but the peak of the longer runs.

Every finished run is a line of ``results/loss-runs.jsonl``; only what is missing there is trained.
To train all of it anew, delete that file. No run begins after half an hour, and what there is makes
the report; ``LOSS_MINUTES`` is another time, ``inf`` none. The table and the figure go to
``docs/loss.md``.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench import loss_plan
from bench.loss_arm import Arm
from bench.loss_figure import write_figure
from bench.loss_link import HOME, rounds_within, wall_s
from bench.loss_page import write_table
from bench.loss_record import Record
from bench.loss_run import run_arm
from bench.loss_table import elements_of, make_rows
from bench.report import RESULTS, Row, write_report

NOTE = (
    "nats per byte of plays that were held out, mean of the seeds; equal tokens, but for what is"
    " trained in the same time; sent: by a member; wall time on"
    f" {HOME.bandwidth_bit_s / 1e6:.0f} Mbit/s both ways, {HOME.round_trip_s * 1000:.0f} ms"
)

MINUTES = "30"
"""``LOSS_MINUTES`` where nobody said."""


def run(quick: bool) -> list[Row]:
    """Train what has not been trained yet; ``quick`` only proves that everything runs."""
    torch.set_num_threads(1)
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            rows = _measure(loss_plan.quick(), Record(Path(folder) / "runs.jsonl"), math.inf)
        write_report("loss-quick", rows, note=NOTE)
        return rows
    plan, record = loss_plan.full(), Record(RESULTS / "loss-runs.jsonl")
    rows = _measure(plan, record, time.monotonic() + 60 * allowed_minutes(os.environ))
    write_report("loss", rows, note=NOTE)
    write_figure(plan, record)
    write_table(rows)
    return rows


def allowed_minutes(environment: Mapping[str, str]) -> float:
    """For how long runs are begun."""
    told = environment.get("LOSS_MINUTES", MINUTES)
    try:
        minutes = float(told)
    except ValueError:
        minutes = math.nan
    if not minutes >= 0:
        raise SystemExit(f"LOSS_MINUTES is {told!r}: give minutes, or inf for all that is missing.")
    return minutes


def _measure(plan: Sequence[Arm], record: Record, end_s: float) -> list[Row]:
    reference = plan[0]
    _train_missing([reference], record, math.inf)  # by its time that of others is reckoned
    outcome = record.get(reference)
    assert outcome is not None
    timed = [
        budgeted
        for arm in plan
        if arm.synchronous and (arm.workers, arm.size) == (reference.workers, reference.size)
        if (budgeted := in_the_same_time(arm, reference, outcome.step_s)) is not None
    ]
    _train_missing([*timed, *plan], record, end_s)
    rows = make_rows(plan, record, outcome.step_s)
    return rows + make_rows(timed, record, outcome.step_s, note=", in the same time")


def in_the_same_time(arm: Arm, reference: Arm, step_s: float) -> Arm | None:
    """A synchronous arm with the tokens for which ours leaves it time; None if it needs no less."""
    elements = elements_of(arm)
    budget_s = wall_s(reference, elements, step_s, HOME)
    steps = rounds_within(arm, elements, step_s, HOME, budget_s)
    return replace(arm, member_steps=steps * arm.workers) if steps < arm.rounds else None


def _train_missing(arms: Iterable[Arm], record: Record, end_s: float) -> None:
    missing = [arm for arm in arms if record.get(arm) is None]
    for number, arm in enumerate(missing, start=1):
        started_s = time.monotonic()
        if started_s >= end_s:
            return
        outcome = run_arm(arm)
        record.add(arm, outcome)
        print(
            f"{number}/{len(missing)} {arm.label}, {arm.workers} workers, H {arm.steps}, seed"
            f" {arm.seed}: {outcome.loss:.4f} in {time.monotonic() - started_s:.0f} s",
            file=sys.stderr,
            flush=True,
        )
