"""What the benchmark of losses trains, most wanted first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.loss_arm import Arm

WORKERS = (2, 4, 8, 16)
STEPS = (10, 50, 200)
CODECS = ("fp32", "int8", "int4")
SEEDS = (0, 1, 2)

# The learning rates are the best of those tried: 0.004 to 0.032 (docs/lab-notes.md).
OURS = Arm("ours", 4, 50, "int4", 0.016, outer_learning_rate=1.0, outer_momentum=0.6)
DEFAULT_OUTER = replace(OURS, outer_learning_rate=0.7, outer_momentum=0.9)
MUON = Arm("sync-muon", 4, 1, "fp32", 0.024, warmup_fraction=0.05)
ADAMW = Arm("sync-adamw", 4, 1, "fp32", 0.032, warmup_fraction=0.05)
DILOCO = Arm("diloco-adamw", 4, 50, "fp32", 0.004, warmup_fraction=0.05)


def full() -> list[Arm]:
    """The first is what the others are compared with."""
    return list(dict.fromkeys([*_claims(), *_grid(), *_larger()]))


def _claims() -> Iterator[Arm]:
    """As many seeds as a claim needs; then what it is compared with once."""
    for seed in SEEDS:
        yield from (arm.seeded(seed) for arm in (OURS, MUON, ADAMW))
    yield DEFAULT_OUTER
    yield from (DILOCO, replace(DILOCO, learning_rate=0.016))
    yield replace(OURS, overlap="lag1", outer_learning_rate=0.6, outer_momentum=0.0)


def _grid() -> Iterator[Arm]:
    """Codecs and lengths of a round with four workers first, then everything with everything."""
    yield from (replace(OURS, codec=codec) for codec in CODECS)
    yield from (replace(OURS, steps=steps) for steps in STEPS)
    for workers in WORKERS:
        yield from (replace(arm, workers=workers) for arm in (MUON, ADAMW))
        yield from (replace(OURS, workers=workers, steps=steps) for steps in STEPS)
    for codec in CODECS:
        for workers in WORKERS:
            for steps in STEPS:
                yield replace(OURS, codec=codec, workers=workers, steps=steps)


def _larger() -> Iterator[Arm]:
    """The claims again with a model eight times as large, at half the learning rate."""
    for arm in (OURS, MUON, ADAMW):
        yield replace(arm, size="0.8M", learning_rate=arm.learning_rate / 2)


def quick() -> list[Arm]:
    """Two rounds of everything."""
    short = [
        replace(arm, workers=2, steps=min(arm.steps, 2), member_steps=8)
        for arm in (OURS, MUON, ADAMW, DILOCO)
    ]
    return [*short, replace(short[0], overlap="lag1")]
