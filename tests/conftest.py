"""Fixtures that more than one kind of test needs. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Before anything imports torch or numpy: the tests share their cores with other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from protocol.identity import Identity
from protocol.manifest import RunManifest

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}


def manifest_mapping() -> dict[str, Any]:
    """A valid run manifest of a model of 33,000 parameters, as decoded JSON."""
    return {
        "format": "barnraise-run/1",
        "name": "tiny",
        "origin": "example.org/tiny",
        "root": Identity.from_seed(bytes(32)).peer_id,
        "licence": "Apache-2.0",
        "model_config_json": dict(TINY_LLAMA),
        "init": {"kind": "seed", "seed": 1},
        "tokenizer_sha256": "0" * 64,
        "dataset_sha256": "1" * 64,
        "sequence_length": 32,
        "inner": {
            "max_steps": 10,
            "warmup_steps": 2,
            "sequences_per_batch": 4,
            "learning_rate": {"peak": 0.003, "total_tokens": 1_000_000},
        },
        "round": {"duration_s": 10.0},
        "update": {"codec": "int8", "chunk_elements": 4096},
        "campaign": {"title": "A tiny run", "goal_microcredits": 1},
    }


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., RunManifest]:
    """``make_manifest(inner={"max_steps": 3})``: the tiny manifest, fields merged or replaced."""

    def make(**overrides: Any) -> RunManifest:
        raw = manifest_mapping()
        for name, value in overrides.items():
            merge = isinstance(value, dict) and isinstance(raw.get(name), dict)
            raw[name] = {**raw[name], **value} if merge else value
        return RunManifest.from_mapping(raw)

    return make


@pytest.fixture(scope="session")
def manifest(make_manifest: Callable[..., RunManifest]) -> RunManifest:
    return make_manifest()
