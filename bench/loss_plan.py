"""What the benchmark of losses trains, most wanted first."""

from __future__ import annotations

from dataclasses import replace

from bench.loss_arm import Arm

WORKERS = (2, 4, 8, 16)
STEPS = (10, 50, 200)
SEEDS = range(3)

# The best of the powers of two, times 0.001, that were tried: docs/lab-notes.md.
OURS = Arm("ours", 4, 50, "int4", learning_rate=0.008)
MUON = Arm("sync-muon", 4, 1, "fp32", learning_rate=0.008)
ADAMW = Arm("sync-adamw", 4, 1, "fp32", learning_rate=0.008)
DILOCO = Arm("diloco-adamw", 4, 50, "fp32", learning_rate=0.004)


def full() -> list[Arm]:
    """The first is what the others are compared with."""
    claims = [arm.seeded(seed) for seed in SEEDS for arm in (OURS, MUON, ADAMW)]
    others = [
        DILOCO,
        *(replace(OURS, codec=codec) for codec in ("fp32", "int8")),
        *(replace(OURS, steps=steps) for steps in STEPS),
    ]
    by_workers = [
        replace(arm, workers=workers)
        for workers in WORKERS
        for arm in (MUON, ADAMW, *(replace(OURS, steps=steps) for steps in STEPS))
    ]
    return list(dict.fromkeys([*claims, *others, *by_workers]))


def quick() -> list[Arm]:
    """Two rounds of everything."""
    short = [
        replace(arm, workers=2, steps=min(arm.steps, 2), member_steps=8)
        for arm in (OURS, MUON, ADAMW, DILOCO)
    ]
    return [*short, replace(short[0], overlap="lag1")]
