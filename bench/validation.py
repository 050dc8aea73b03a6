"""Tokens per second of the coordinator's validation loss against a plain loop.

The plain loop has its model built and its weights loaded; ours is all that a state's evaluation
takes once its process is warm: building the model, loading the weights, the loss. Processor time,
one thread, as in ``bench.train``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from bench.report import Row, ratio_columns, write_report
from bench.train import SEQUENCE_LENGTH, SEQUENCES_PER_BATCH, SIZES, make_config, make_manifest
from protocol.model import build_model, initial_weights, load_flat
from protocol.training import evaluate

NOTE = "processor time, one thread; ratio = ours / plain loop, median over {turns} turns"
_SAME = 1e-4  # nats: the two sum in another order


def run(quick: bool) -> list[Row]:
    """Measure every size; ``quick`` only proves that it runs."""
    torch.set_num_threads(1)
    turns, sequences = (1, 8) if quick else (5, 64)
    sizes = dict(list(SIZES.items())[:1]) if quick else SIZES
    rows = [_measure(name, make_config(*size), turns, sequences) for name, size in sizes.items()]
    write_report("validation-quick" if quick else "validation", rows, note=NOTE.format(turns=turns))
    return rows


def _measure(name: str, config: dict[str, object], turns: int, sequences: int) -> Row:
    manifest = make_manifest(config, 1)
    weights = initial_weights(manifest)
    tokens = np.random.default_rng(1).integers(0, 256, (sequences, SEQUENCE_LENGTH))
    model = build_model(manifest.model_config_json).eval()
    load_flat(model, weights)
    _plain_loss(model, tokens[:SEQUENCES_PER_BATCH])  # warm up
    found: list[tuple[float, float]] = []
    for _ in range(turns):
        plain_s, expected = _seconds(lambda: _plain_loss(model, tokens))
        ours_s, loss = _seconds(lambda: evaluate(manifest, weights, tokens))
        assert abs(loss - expected) < _SAME, "not the same loss"
        found.append((tokens.size / plain_s, tokens.size / ours_s))
    plain, ours = map(statistics.median, zip(*found, strict=True))
    ratios = [turn[1] / turn[0] for turn in found]
    return {
        "model": name,
        "sequences": sequences,
        "plain_tokens_per_s": round(plain),
        "ours_tokens_per_s": round(ours),
        **ratio_columns(ratios),
    }


def _plain_loss(model: torch.nn.Module, tokens: NDArray[np.int64]) -> float:
    losses = []
    with torch.no_grad():
        for start in range(0, len(tokens), SEQUENCES_PER_BATCH):
            batch = torch.from_numpy(tokens[start : start + SEQUENCES_PER_BATCH])
            losses.append(float(model(input_ids=batch, labels=batch).loss))
    return statistics.fmean(losses)


def _seconds(work: Callable[[], float]) -> tuple[float, float]:
    begun_s = time.process_time()
    loss = work()
    return time.process_time() - begun_s, loss
