"""The published credit formula ``barnraise-credit/1``: integers only, recomputable by anyone.

    training FLOPs = tokens * (6*N + 12*L*a*s)
    1 credit = 1 petaFLOP;  1 microcredit = 10**9 FLOP, rounded down once per leaf

* N: parameters that do work on every token: all but the input embeddings (token and learned
  position), plus the output head, which counts also where it is tied to the embedding.
* L: layers. a: attention width (heads * head dimension; the model's width unless the
  configuration says otherwise). s: sequence length.
* Attention is counted in full, **not halved for causality**, as in PaLM (arXiv:2204.02311,
  appendix B): 6 for matrix multiplications forward and backward, 12 for the two attention products.
* Reducing pays ``REDUCING_FLOPS_PER_ELEMENT`` for each element of a signed chunk of a settled
  result: a rate for bandwidth, not a count of operations. A short last chunk pays as a full one.

Hardware does not appear: the same work earns the same anywhere.
"""

from __future__ import annotations

from typing import Any

from protocol.errors import UsageError

FLOPS_PER_MICROCREDIT = 10**9
MICROCREDITS_PER_CREDIT = 10**6
REDUCING_FLOPS_PER_ELEMENT = 10_000


def flops_per_token(config_json: dict[str, Any], sequence_length: int) -> int:
    """FLOPs of training on one token.

    Args:
        config_json: Hugging Face configuration with an allow-listed ``model_type``.
        sequence_length: in tokens.

    Raises:
        UsageError: a size that the formula needs is not in the configuration.
    """
    layers, attention_width = _depth_and_attention_width(config_json)
    return 6 * working_parameters(config_json) + 12 * layers * attention_width * sequence_length


def training_microcredits(tokens: int, config_json: dict[str, Any], sequence_length: int) -> int:
    """Credit for training on ``tokens`` tokens, in microcredits."""
    return tokens * flops_per_token(config_json, sequence_length) // FLOPS_PER_MICROCREDIT


def reducing_microcredits(chunks: int, chunk_elements: int) -> int:
    """Credit for ``chunks`` signed result chunks of ``chunk_elements`` each, in microcredits."""
    return chunks * chunk_elements * REDUCING_FLOPS_PER_ELEMENT // FLOPS_PER_MICROCREDIT


def working_parameters(config_json: dict[str, Any]) -> int:
    """N of the formula: parameters without input embeddings, with the output head.

    Raises:
        UsageError: unknown ``model_type``, or a size is missing.
    """
    model_type = config_json.get("model_type")
    if model_type == "gpt2":
        return _gpt2_parameters(config_json)
    if model_type in _LLAMA_FAMILY:
        return _llama_parameters(config_json, str(model_type))
    raise UsageError(f"the credit formula does not know model_type {model_type!r}")


_LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3", "olmo2")


def _size(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """A size from the configuration; never a library's default, which may change."""
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"the model configuration must give {name} as a positive whole number")
    return value


def _heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """(query heads, key-value heads, head dimension)."""
    model_type = config["model_type"]
    heads = _size(config, "num_attention_heads")
    # Only where the library derives them from the other sizes; elsewhere they must be given.
    key_value = _size(
        config, "num_key_value_heads", heads if model_type in ("llama", "olmo2") else None
    )
    width = _size(config, "hidden_size")
    if model_type in ("qwen2", "olmo2") and config.get("head_dim") not in (None, width // heads):
        raise UsageError(f"{model_type} has no head_dim of its own: leave it out")
    derived = None if model_type == "qwen3" else width // heads
    return heads, key_value, _size(config, "head_dim", derived)


def _depth_and_attention_width(config: dict[str, Any]) -> tuple[int, int]:
    if config.get("model_type") == "gpt2":
        return _size(config, "n_layer"), _size(config, "n_embd")
    heads, _, head_dim = _heads(config)
    return _size(config, "num_hidden_layers"), heads * head_dim


def _llama_parameters(config: dict[str, Any], model_type: str) -> int:
    width, inner = _size(config, "hidden_size"), _size(config, "intermediate_size")
    heads, key_value_heads, head_dim = _heads(config)
    query, key_value = heads * head_dim, key_value_heads * head_dim
    layer = 2 * width * query + 2 * width * key_value + 3 * width * inner + 2 * width
    if model_type == "qwen2":
        layer += query + 2 * key_value  # biases of q, k and v, always
    elif model_type != "mistral" and config.get("attention_bias"):
        layer += query + 2 * key_value + width
    if model_type == "llama" and config.get("mlp_bias"):
        layer += 2 * inner + width
    if model_type == "qwen3":
        layer += 2 * head_dim  # norms of q and k, shared by the heads
    elif model_type == "olmo2":
        layer += query + key_value  # norms of q and k, over all heads
    layers = _size(config, "num_hidden_layers")
    return layers * layer + width + width * _size(config, "vocab_size")


def _gpt2_parameters(config: dict[str, Any]) -> int:
    if config.get("add_cross_attention"):
        raise UsageError("the credit formula does not know cross attention")
    width = _size(config, "n_embd")
    inner = _size(config, "n_inner", 4 * width)
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * inner + inner + width
    layer = attention + mlp + 4 * width  # two layer norms with bias
    return _size(config, "n_layer") * layer + 2 * width + width * _size(config, "vocab_size")
