"""Write ``training_trace.json``: what one unit of work gives, for two small models.

A new torch that changes a number of Muon, AdamW or a model fails the test that reads this file.
Then ``training_spec`` must change too; only after that may the trace be written anew:

    python tests/golden/write_training_trace.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protocol.identity import Identity
from protocol.manifest import RunManifest
from protocol.model import build_model, initial_weights, load_flat
from protocol.training import Unit, make_optimizers, train

TRACE = Path(__file__).with_name("training_trace.json")
STEPS = 8
SEQUENCE_LENGTH = 32
PROJECTIONS = 8

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": SEQUENCE_LENGTH,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.1,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": SEQUENCE_LENGTH,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.1,
    },
}


class Counting:
    """Sequences with a pattern to learn: arithmetic progressions modulo the vocabulary."""

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        rows = np.arange(start, end)[:, None]
        return (rows * 7 + (1 + rows % 5) * np.arange(SEQUENCE_LENGTH)) % 64


def manifest_of(config: dict[str, Any]) -> RunManifest:
    return RunManifest.from_mapping(
        {
            "name": "golden",
            "origin": "example.org/golden",
            "root": Identity.from_seed(bytes(32)).peer_id,
            "licence": "Apache-2.0",
            "model_config_json": config,
            "init": {"kind": "seed", "seed": 11},
            "tokenizer_sha256": "0" * 64,
            "dataset_sha256": "0" * 64,
            "sequence_length": SEQUENCE_LENGTH,
            "inner": {
                "max_steps": STEPS,
                "warmup_steps": 2,
                "sequences_per_batch": 8,
                "learning_rate": {"peak": 0.01, "total_tokens": 100_000},
            },
            "round": {"duration_s": 10},
            "campaign": {"title": "Golden", "goal_microcredits": 1},
        }
    )


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Loss per step, norm of the update and its projections on fixed directions."""
    manifest = manifest_of(config)
    losses: list[float] = []
    result = train(
        manifest,
        initial_weights(manifest),
        Unit(start_sequence=16, end_sequence=16 + 8 * STEPS, steps=STEPS, seed=3, tokens_base=2048),
        Counting(),
        on_step=lambda _, loss: losses.append(loss) is None,
    )
    return {
        "losses": losses,
        "update_norm": result.update_norm,
        "projections": projections(result.update).tolist(),
    }


def optimizer_trace(config: dict[str, Any]) -> dict[str, list[float]]:
    """Both optimizers on given gradients, which differ from step to step.

    Without a model's own rounding, AdamW agrees between machines to float32's last digits.
    """
    manifest = manifest_of(config)
    model = build_model(config)
    load_flat(model, initial_weights(manifest))
    optimizers = make_optimizers(model, manifest.inner)
    before = {id(value): value.detach().clone() for value in model.parameters()}
    for step in range(STEPS):
        for index, value in enumerate(model.parameters()):
            raw = np.random.Philox(key=1000 * step + index).random_raw(value.numel())
            gradient = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24) - 0.5
            value.grad = torch.tensor(gradient).view(value.shape)
        for optimizer in optimizers:
            optimizer.step()
    return {
        type(optimizer).__name__: projections(_change(optimizer, before)).tolist()
        for optimizer in optimizers
    }


def _change(
    optimizer: torch.optim.Optimizer, before: dict[int, torch.Tensor]
) -> NDArray[np.float32]:
    parts = [
        (before[id(value)] - value.detach()).flatten().numpy()
        for group in optimizer.param_groups
        for value in group["params"]
    ]
    return np.concatenate(parts)


def projections(update: NDArray[np.float32]) -> NDArray[np.float64]:
    """The update along random signs, in units that make one of them about 1 times its norm."""
    words = np.random.Philox(key=17).random_raw(PROJECTIONS * len(update))
    signs = np.where(words & np.uint64(1), 1.0, -1.0).reshape(PROJECTIONS, len(update))
    return signs @ update.astype(np.float64)


def main() -> None:
    traces = {
        name: {**trace(config), "optimizers": optimizer_trace(config)}
        for name, config in CONFIGS.items()
    }
    TRACE.write_text(json.dumps(traces, indent=1) + "\n")


if __name__ == "__main__":
    main()
