"""The model from its configuration, its flat vector, and initial weights that never differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from protocol.errors import UsageError
from protocol.manifest import InitWeights, RunManifest
from protocol.model import (
    build_model,
    element_count,
    flatten,
    initial_weights,
    load_flat,
    model_with,
    parameter_spec,
    slices,
)

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    **{kind: {"model_type": kind, **LLAMA} for kind in ("llama", "mistral", "qwen2", "qwen3")},
    "olmo2": {"model_type": "olmo2", **LLAMA},
    "gpt2": {"model_type": "gpt2", **GPT2},
}

Make = Callable[..., RunManifest]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_allowed_model_type(kind: str) -> None:
    config = CONFIGS[kind]
    model = build_model(config)
    spec = parameter_spec(config)
    assert spec == tuple((name, tuple(value.shape)) for name, value in model.named_parameters())
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert element_count(spec) == len(flatten(model))
    logits = model(input_ids=torch.zeros(2, 5, dtype=torch.int64)).logits
    assert logits.shape == (2, 5, 64)


def test_tied_weights_appear_once() -> None:
    tied = parameter_spec({**CONFIGS["llama"], "tie_word_embeddings": True})
    untied = parameter_spec({**CONFIGS["llama"], "tie_word_embeddings": False})
    assert [name for name, _ in untied if name not in dict(tied)] == ["lm_head.weight"]


def test_flatten_and_load_round_trip() -> None:
    model = build_model(CONFIGS["qwen2"])
    flat = np.arange(len(flatten(model)), dtype=np.float32)
    flat.flags.writeable = False  # as read from a file or a message
    load_flat(model, flat)
    assert np.array_equal(flatten(model), flat)
    where = {name: (shape, part) for name, shape, part in slices(parameter_spec(CONFIGS["qwen2"]))}
    for name, value in model.named_parameters():
        shape, part = where[name]
        assert np.array_equal(value.detach().numpy(), flat[part].reshape(shape))


def test_flatten_copies() -> None:
    model = build_model(CONFIGS["llama"])
    before = flatten(model)
    copy = before.copy()
    load_flat(model, np.zeros_like(before))
    assert np.array_equal(before, copy)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_given_weights_is_the_one_that_they_are_loaded_into(
    kind: str, tied: bool
) -> None:
    config = {**CONFIGS[kind], "tie_word_embeddings": tied}
    drawn = build_model(config)
    flat = np.arange(len(flatten(drawn)), dtype=np.float32)
    load_flat(drawn, flat)
    random_state = torch.get_rng_state()
    model = model_with(config, flat)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert str(model) == str(drawn)
    assert [name for name, _ in model.named_parameters()] == [
        n for n, _ in drawn.named_parameters()
    ]
    for (name, value), expected in zip(
        (*model.named_parameters(), *model.named_buffers()),
        (*drawn.parameters(), *drawn.buffers()),
        strict=True,
    ):
        assert torch.equal(value, expected), name


def test_weights_are_drawn_again_afterwards() -> None:
    model_with(CONFIGS["gpt2"], flatten(build_model(CONFIGS["gpt2"])))
    embedding = torch.nn.Embedding(50, 50)
    assert 0.5 < float(embedding.weight.detach().std()) < 2


def test_wrong_size_is_our_bug() -> None:
    model = build_model(CONFIGS["llama"])
    with pytest.raises(ValueError, match="does not fit"):
        load_flat(model, np.zeros(7, np.float32))


def test_building_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    build_model(CONFIGS["llama"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "no-such-model"},
        {**CONFIGS["llama"], "hidden_size": "wide"},
        {**CONFIGS["llama"], "hidden_size": 17},
        {**CONFIGS["llama"], "hidden_size": -16},
        {**CONFIGS["llama"], "num_attention_heads": 0},
        {**CONFIGS["llama"], "hidden_act": "no-such-function"},
        {**CONFIGS["llama"], "attention_dropout": 0.1},
        {"model_type": "gpt2"},  # the library's default dropout is 0.1
    ],
)
def test_configurations_that_make_no_model(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="makes no model"):
        parameter_spec(config)


def test_initial_weights_are_the_same_everywhere(manifest: RunManifest) -> None:
    flat = initial_weights(manifest)
    digest = hashlib.sha256(flat.astype("<f4").tobytes()).hexdigest()
    assert digest == "f757b1238ff84f81120427e83751d893bd444a6d4cb0c26a3ea0898e8353851b"
    assert np.array_equal(flat, initial_weights(manifest))


def test_initial_weights_depend_on_seed_and_name(make_manifest: Make) -> None:
    one, other = (make_manifest(init={"kind": "seed", "seed": seed}) for seed in (1, 2))
    spec = parameter_spec(one.model_config_json)
    parts = {name: part for name, _, part in slices(spec)}
    first, second = initial_weights(one), initial_weights(other)
    query = first[parts["model.layers.0.self_attn.q_proj.weight"]]
    assert not np.array_equal(query, second[parts["model.layers.0.self_attn.q_proj.weight"]])
    assert not np.array_equal(query, first[parts["model.layers.1.self_attn.q_proj.weight"]])


def test_initial_weights_have_the_right_distribution(make_manifest: Make) -> None:
    config = {**CONFIGS["llama"], "hidden_size": 128, "vocab_size": 512, "initializer_range": 0.05}
    manifest = make_manifest(model_config_json=config, sequence_length=16)
    flat = initial_weights(manifest)
    parts = {name: flat[part] for name, _, part in slices(parameter_spec(config))}
    values = parts["model.embed_tokens.weight"].astype(np.float64) / 0.05
    error = 4 / np.sqrt(len(values))
    assert abs(values.mean()) < error
    assert abs(values.std() - 1) < error
    assert abs((values**4).mean() - 2.9) < 0.1  # twelve summands: excess kurtosis -0.1
    assert np.abs(values).max() < 6
    assert (parts["model.norm.weight"] == 1).all()


def test_gpt2_biases_and_residual_projections(make_manifest: Make) -> None:
    manifest = make_manifest(model_config_json=CONFIGS["gpt2"], sequence_length=16)
    flat = initial_weights(manifest)
    parts = {name: flat[part] for name, _, part in slices(parameter_spec(CONFIGS["gpt2"]))}
    assert (parts["transformer.h.0.ln_1.weight"] == 1).all()
    assert (parts["transformer.h.0.ln_1.bias"] == 0).all()
    assert (parts["transformer.h.0.attn.c_attn.bias"] == 0).all()
    ratio = parts["transformer.h.0.mlp.c_proj.weight"].std() / parts["transformer.wte.weight"].std()
    assert ratio == pytest.approx(0.5, rel=0.1)  # 1 / sqrt(2 * 2 layers)


def test_given_weights_are_not_invented(make_manifest: Make) -> None:
    given = InitWeights(weights_sha256="0" * 64)
    manifest = make_manifest().model_copy(update={"init": given})
    with pytest.raises(UsageError, match="given weights"):
        initial_weights(manifest)
