"""``docs/loss.svg``: loss on the way, and loss against the number of workers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.line_chart import Line, Panel, draw
from bench.loss_arm import Arm
from bench.loss_record import Record

FIGURE = Path(__file__).parent.parent / "docs" / "loss.svg"
_Points = list[tuple[float, float]]


def write_figure(arms: Sequence[Arm], record: Record) -> Path:
    """Draw what has run; a way to train is one line, its first seed's."""
    ran = [arm for arm in arms if record.get(arm) is not None]
    FIGURE.write_text(draw([_on_the_way(ran, record), _by_workers(ran, record)]))
    return FIGURE


def _on_the_way(arms: Sequence[Arm], record: Record) -> Panel:
    reference = arms[0]
    same = [
        arm
        for arm in arms
        if (arm.workers, arm.size, arm.seed) == (reference.workers, reference.size, 0)
        and (arm.synchronous or (arm.codec in ("int4", "fp32") and arm.overlap == "none"))
    ]
    lines = []
    for arm in same:
        outcome = record.get(arm)
        assert outcome is not None
        # The first eighth would flatten the rest.
        points: _Points = [(tokens / 1000, loss) for tokens, loss in outcome.curve[1:]]
        lines.append(Line(_name(arm), points, dashed=arm.synchronous))
    title = f"{reference.workers} workers, {reference.size} parameters"
    return Panel(title, "thousand tokens", "loss, nats per byte", lines)


def _by_workers(arms: Sequence[Arm], record: Record) -> Panel:
    size = arms[0].size
    lines: dict[str, dict[int, float]] = {}
    dashed = {}
    for arm in arms:
        if (
            arm.size == size and arm.overlap == "none" and arm.codec == arms[0].codec
        ) or arm.synchronous:
            lines.setdefault(_name(arm), {})[arm.workers] = _mean_loss(arm, arms, record)
            dashed[_name(arm)] = arm.synchronous
    return Panel(
        "equal tokens, more workers",
        "workers",
        "loss, nats per byte",
        [
            Line(name, sorted((float(x), y) for x, y in points.items()), dashed=dashed[name])
            for name, points in lines.items()
            if len(points) > 1
        ],
        log_x=True,
    )


def _mean_loss(arm: Arm, arms: Iterable[Arm], record: Record) -> float:
    alike = [each for each in arms if each.seeded(0) == arm.seeded(0)]
    return statistics.mean(
        outcome.loss for each in alike if (outcome := record.get(each)) is not None
    )


def _name(arm: Arm) -> str:
    return arm.label if arm.synchronous else f"{arm.label}, H = {arm.steps}"
