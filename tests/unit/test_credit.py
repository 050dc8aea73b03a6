"""The credit formula against real models: N counted from parameters on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ledger.credit import (
    flops_per_token,
    reducing_microcredits,
    training_microcredits,
    working_parameters,
)
from protocol.errors import UsageError

LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 320}

CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", **LLAMA},
    {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    {"model_type": "llama", **LLAMA, "attention_bias": True, "mlp_bias": True},
    {"model_type": "llama", **LLAMA, "head_dim": 16},
    {"model_type": "mistral", **LLAMA},
    {"model_type": "mistral", **LLAMA, "head_dim": 12, "tie_word_embeddings": True},
    {"model_type": "qwen2", **LLAMA},
    {"model_type": "qwen3", **LLAMA, "head_dim": 16},
    {"model_type": "qwen3", **LLAMA, "head_dim": 16, "attention_bias": True},
    {"model_type": "olmo2", **LLAMA},
    {"model_type": "olmo2", **LLAMA, "attention_bias": True},
    {"model_type": "gpt2", **GPT2},
    {"model_type": "gpt2", **GPT2, "n_inner": 100},
    {"model_type": "gpt2", **GPT2, "tie_word_embeddings": False},
]


def _counted(config_json: dict[str, Any]) -> int:
    """Every parameter but the input embeddings, and the output head, tied or not."""
    config = AutoConfig.for_model(**config_json)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    body = sum(
        parameter.numel()
        for parameter in model.parameters()
        if id(parameter) not in embeddings and parameter is not head
    )
    return body + head.numel()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config.values())))
def test_working_parameters_equal_those_of_the_real_model(config: dict[str, Any]) -> None:
    assert working_parameters(config) == _counted(config)


def test_formula_by_hand() -> None:
    config = {"model_type": "gpt2", "n_embd": 2, "n_layer": 1, "n_head": 1, "vocab_size": 3}
    parameters = (16 + 8) + (2 * 2 * 8 + 8 + 2) + 8 + 4 + 6
    assert working_parameters(config) == parameters
    assert flops_per_token(config, 10) == 6 * parameters + 12 * 1 * 2 * 10
    per_token = flops_per_token(config, 10)
    assert training_microcredits(10**9, config, 10) == per_token
    assert training_microcredits(1, config, 10) == 0  # rounded down, once


def test_attention_width_follows_heads_times_head_dimension() -> None:
    config = {"model_type": "qwen3", **LLAMA, "head_dim": 16}
    attention = flops_per_token(config, 64) - 6 * working_parameters(config)
    assert attention == 12 * 3 * (6 * 16) * 64


def test_reducing_pays_per_chunk() -> None:
    assert reducing_microcredits(8, 1 << 17) == 8 * (1 << 17) * 10_000 // 10**9
    assert reducing_microcredits(0, 1 << 17) == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"model_type": "qwen3"}, "head_dim"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads"),
        ({"model_type": "olmo2", "head_dim": 16}, "head_dim"),
        ({"model_type": "gpt2", **GPT2, "add_cross_attention": True}, "cross attention"),
    ],
)
def test_missing_sizes_are_refused_by_name(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        flops_per_token({"model_type": "llama", **LLAMA, **change}, 64)
