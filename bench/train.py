"""Tokens per second of ``protocol.training`` against the same loop in plain PyTorch.

Same model, optimizers, batches and thread; the two take turns. Seconds are of processor time: with
one thread they are the clock's on a quiet machine, and on a busy one they leave the others out.
What the unit of work adds (building the model, clipping, checks, the update) is in its time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.report import Row, ratio_columns, write_report
from protocol.identity import Identity
from protocol.manifest import RunManifest
from protocol.model import initial_weights
from protocol.training import Execution, Unit, train

SEQUENCE_LENGTH = 128
SEQUENCES_PER_BATCH = 8
SIZES = {"llama 0.9M": (128, 4), "llama 4M": (256, 5)}  # hidden size, layers
NOTE = "processor time, one thread; ratio = ours / plain PyTorch, median over turns of one process"


def run(quick: bool) -> list[Row]:
    """Measure every size; ``quick`` only proves that it runs."""
    torch.set_num_threads(1)
    turns, steps = (2, 3) if quick else (5, 10)
    sizes = dict(list(SIZES.items())[:1]) if quick else SIZES
    rows = [
        _measure(name, make_config(*size), turns, steps, bf16)
        for name, size in sizes.items()
        for bf16 in ((False,) if quick else (False, True))
    ]
    write_report("train-quick" if quick else "train", rows, note=NOTE)
    return rows


class Random:
    """Token ids that cost nothing to make."""

    def __init__(self, vocabulary: int) -> None:
        generator = np.random.Generator(np.random.Philox(key=1))
        shape = (SEQUENCES_PER_BATCH * 64, SEQUENCE_LENGTH)
        self._tokens = generator.integers(0, vocabulary, shape, dtype=np.int64)

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        return self._tokens[start:end]


def _measure(name: str, config: dict[str, object], turns: int, steps: int, bf16: bool) -> Row:
    manifest = make_manifest(config, steps)
    weights, source = initial_weights(manifest), Random(256)
    unit = Unit(0, steps * SEQUENCES_PER_BATCH, steps, seed=0, tokens_base=0)
    execution = Execution(autocast_bf16=bf16)
    tokens = steps * manifest.tokens_per_step
    ours, plain = [], []
    _plain_loop(config, source, min(steps, 3), bf16)  # warm up
    for _ in range(turns):
        plain.append(tokens / _seconds(lambda: _plain_loop(config, source, steps, bf16)))
        ours.append(tokens / _seconds(lambda: train(manifest, weights, unit, source, execution)))
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return {
        "model": name,
        "parameters": len(weights),
        "precision": "bf16" if bf16 else "fp32",
        "steps": steps,
        "plain_tokens_per_s": round(statistics.median(plain)),
        "ours_tokens_per_s": round(statistics.median(ours)),
        **ratio_columns(ratios),
    }


def _plain_loop(config: dict[str, object], source: Random, steps: int, bf16: bool) -> None:
    size = SEQUENCES_PER_BATCH
    batches = (torch.from_numpy(source.batch(n * size, (n + 1) * size)) for n in range(steps))
    for _ in plain_steps(config, batches, bf16=bf16):
        pass


def plain_steps(
    config: Mapping[str, object], batches: Iterable[Tensor], *, bf16: bool = False
) -> Iterator[None]:
    """What one would write without us: Hugging Face's loss, Muon and AdamW, clipping."""
    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(hidden, lr=1e-3, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    for tokens in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def make_config(hidden_size: int, layers: int) -> dict[str, object]:
    return {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 43 // 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": SEQUENCE_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    }


def make_manifest(config: dict[str, object], steps: int) -> RunManifest:
    return RunManifest.from_mapping(
        {
            "name": "bench",
            "origin": "example.org/bench",
            "root": Identity.from_seed(bytes(32)).peer_id,
            "licence": "Apache-2.0",
            "model_config_json": config,
            "init": {"kind": "seed", "seed": 1},
            "tokenizer_sha256": "0" * 64,
            "dataset_sha256": "0" * 64,
            "sequence_length": SEQUENCE_LENGTH,
            "inner": {
                "max_steps": steps,
                "sequences_per_batch": SEQUENCES_PER_BATCH,
                "learning_rate": {"peak": 0.001, "total_tokens": 1_000_000},
            },
            "round": {"duration_s": 60},
            "campaign": {"title": "Benchmark", "goal_microcredits": 1},
        }
    )
