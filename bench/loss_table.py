"""The rows of the benchmark of losses: seeds together, with what each way of training sends."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.loss_arm import Arm
from bench.loss_link import HOME, sent_bytes, wall_s
from bench.loss_record import Record
from bench.report import Row
from protocol.model import element_count, parameter_spec


def make_rows(arms: Sequence[Arm], record: Record, step_s: float, *, note: str = "") -> list[Row]:
    """One row for all seeds of an arm, of those that have run."""
    families: dict[str, list[Arm]] = {}
    for arm in arms:
        if record.get(arm) is not None:
            families.setdefault(arm.seeded(0).key, []).append(arm)
    return [_row(family, record, step_s, note) for family in families.values()]


def _row(family: Sequence[Arm], record: Record, step_s: float, note: str) -> Row:
    arm = family[0]
    elements = elements_of(arm)
    losses = [outcome.loss for each in family if (outcome := record.get(each)) is not None]
    return {
        "training": arm.label + note,
        "size": arm.size,
        "workers": arm.workers,
        "H": arm.steps,
        "codec": "fp16" if arm.synchronous else arm.codec,
        "lr": arm.learning_rate,
        "outer": arm.outer_label,
        "tokens": arm.tokens,
        "seeds": len(losses),
        "loss": round(statistics.mean(losses), 4),
        "loss_min": round(min(losses), 4),
        "loss_max": round(max(losses), 4),
        "exchanges": arm.rounds,
        "sent_MB": round(arm.rounds * sent_bytes(arm, elements) / 1e6, 2),
        "wall_s": round(wall_s(arm, elements, step_s, HOME), 1),
    }


def elements_of(arm: Arm) -> int:
    return element_count(parameter_spec(arm.manifest().model_config_json))
