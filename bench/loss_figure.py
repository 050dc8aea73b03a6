"""``docs/loss.svg``: loss on the way, and loss against the number of workers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.line_chart import Line, Panel, draw
from bench.loss_arm import Arm
from bench.loss_record import Record

FIGURE = Path(__file__).parent.parent / "docs" / "loss.svg"
_Points = list[tuple[float, float]]


def write_figure(arms: Sequence[Arm], record: Record) -> Path:
    """Draw what has run; a way to train is one line, its first seed's."""
    ran = [arm for arm in arms if record.get(arm) is not None]
    panels = [_on_the_way(ran, record), _by_workers(ran, record)]
    FIGURE.write_text(draw([panel for panel in panels if panel.lines]))
    return FIGURE


def _on_the_way(arms: Sequence[Arm], record: Record) -> Panel:
    reference = arms[0]
    lines = []
    for arm in _compared(arms):
        outcome = record.get(arm)
        assert outcome is not None
        if arm.workers == reference.workers:
            # The first eighth would flatten the rest.
            points: _Points = [(tokens / 1000, loss) for tokens, loss in outcome.curve[1:]]
            lines.append(Line(_name(arm), points, dashed=arm.synchronous))
    title = f"{reference.workers} workers, {reference.size} parameters"
    return Panel(title, "thousand tokens", "loss, nats per byte", lines)


def _by_workers(arms: Sequence[Arm], record: Record) -> Panel:
    lines: dict[str, Line] = {}
    for arm in sorted(_compared(arms), key=lambda each: each.workers):
        point = (float(arm.workers), _mean_loss(arm, arms, record))
        line = lines.get(_name(arm), Line(_name(arm), [], dashed=arm.synchronous))
        lines[line.name] = replace(line, points=[*line.points, point])
    several = [line for line in lines.values() if len(line.points) > 1]
    title = "equal tokens, more workers"
    return Panel(title, "workers", "loss, nats per byte", several, log_x=True)


def _compared(arms: Sequence[Arm]) -> list[Arm]:
    """Ours at other lengths of a round and numbers of workers, and the alternatives to it."""
    reference = arms[0]
    return [
        arm
        for arm in arms
        if (arm.size, arm.seed) == (reference.size, reference.seed)
        and (
            arm.method != reference.method
            or arm == replace(reference, steps=arm.steps, workers=arm.workers)
        )
    ]


def _mean_loss(arm: Arm, arms: Iterable[Arm], record: Record) -> float:
    alike = [each for each in arms if each.seeded(0) == arm.seeded(0)]
    return statistics.mean(
        outcome.loss for each in alike if (outcome := record.get(each)) is not None
    )


def _name(arm: Arm) -> str:
    if arm.synchronous:
        return arm.label
    rate = "" if arm.method == "ours" else f", lr {arm.learning_rate:g}"
    return f"{arm.label}, H = {arm.steps}{rate}"
