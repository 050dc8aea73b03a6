"""The model of a run: built from its Hugging Face configuration, flattened in one fixed order.

Invariants:

* The architecture comes from the library's own classes; no code ever comes from a repository.
* The flat vector is ``named_parameters()`` order, float32; tied weights appear once.
* Initial weights are a function of (seed, parameter name) alone, bit for bit the same on every
  machine: they are made of integers and one rounded multiplication, never by a maths library.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from protocol.errors import UsageError
from protocol.manifest import InitSeed, RunManifest

FloatVector = NDArray[np.float32]
ParameterSpec = tuple[tuple[str, tuple[int, ...]], ...]
"""``((name, shape), ...)`` in flattening order."""

# What the library raises for configurations that name no model or an impossible one.
_CONFIG_ERRORS = (
    StrictDataclassError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
_MAX_PROBLEM_CHARS = 300

_ONE_AT_A_TIME = threading.Lock()
"""The library loads its parts when they are first used, and fails when two threads do it at once;
the global random state is borrowed, too."""

_INIT_DOMAIN = b"barnraise-init/1\x00"
_WORDS_PER_NORMAL = 12  # 16-bit words; their sum has a standard deviation of 65,536 (- 1e-5)
_WORDS_MEAN = _WORDS_PER_NORMAL * 65_535 // 2
_INIT_BLOCK = 1 << 16  # normals made at a time: bounds memory


def build_model(config_json: dict[str, Any]) -> torch.nn.Module:
    """Build the causal language model of a configuration, in float32, on the default device.

    Its weights are arbitrary: load real ones with :func:`load_flat`. The global random state is
    left as it was.

    Args:
        config_json: Hugging Face configuration, with ``model_type``.

    Raises:
        UsageError: the configuration does not describe a model that the library knows.
    """
    with _ONE_AT_A_TIME:
        return _build_model(config_json)


def _build_model(config_json: dict[str, Any]) -> torch.nn.Module:
    # Takes seconds, and a process that only flattens and reads vectors never needs it.
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in config_json.items() if name != "model_type"}
    try:
        config = AutoConfig.for_model(config_json.get("model_type"), **settings)
        _refuse_dropout(config.to_dict())
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
            )
    except _CONFIG_ERRORS as error:
        problem = str(error)[:_MAX_PROBLEM_CHARS]
        raise UsageError(f"the manifest's model configuration makes no model: {problem}") from error
    return cast(torch.nn.Module, model)


def _refuse_dropout(settings: dict[str, Any]) -> None:
    """Look at the library's defaults too: GPT-2's are 0.1. ``summary_`` is of other heads."""
    for name, value in settings.items():
        dropout = ("dropout" in name or name.endswith("pdrop")) and not name.startswith("summary_")
        if dropout and value:
            raise ValueError(f"{name} is {value}: set it to 0, a unit of work is a pure function")


def model_with(config_json: dict[str, Any], flat: FloatVector) -> torch.nn.Module:
    """Build a model with the weights of a flat vector; what would be drawn at random is not.

    Raises:
        UsageError: as :func:`build_model`.
        ValueError: the vector is not of the model's size.
    """
    with _NothingDrawn():
        model = build_model(config_json)
    load_flat(model, flat)
    return model


class _NothingDrawn(TorchFunctionMode):
    """Leaves parameters as they are in memory: drawing them takes most of building a model."""

    _DRAWING = frozenset({"normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"})
    """Methods of tensors, and functions of torch.nn.init; what is drawn by another one is loaded
    over, too."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if (
            isinstance(target, torch.nn.Parameter)
            and getattr(func, "__name__", "") in self._DRAWING
        ):
            return target
        return func(*args, **kwargs)


def parameter_spec(config_json: dict[str, Any]) -> ParameterSpec:
    """Names and shapes of a configuration's parameters; allocates none of them."""
    with torch.device("meta"):
        model = build_model(config_json)
    return tuple((name, tuple(value.shape)) for name, value in model.named_parameters())


def element_count(spec: ParameterSpec) -> int:
    """Elements of the flat vector."""
    return sum(math.prod(shape) for _, shape in spec)


def slices(spec: ParameterSpec) -> Iterator[tuple[str, tuple[int, ...], slice]]:
    """Where each parameter lies in the flat vector: ``(name, shape, slice)``."""
    start = 0
    for name, shape in spec:
        end = start + math.prod(shape)
        yield name, shape, slice(start, end)
        start = end


def flatten(model: torch.nn.Module) -> FloatVector:
    """Copy a model's parameters into one new flat vector."""
    parts = [value.detach().cpu().reshape(-1).numpy() for value in model.parameters()]
    return np.concatenate(parts).astype(np.float32, copy=False)


@torch.no_grad()
def load_flat(model: torch.nn.Module, flat: FloatVector) -> None:
    """Copy a flat vector into a model's parameters.

    Raises:
        ValueError: it is not of the model's size.
    """
    parameters = list(model.parameters())
    if flat.shape != (sum(value.numel() for value in parameters),):
        raise ValueError(f"a vector of shape {flat.shape} does not fit the model")
    start = 0
    for value in parameters:
        end = start + value.numel()
        # A copy: torch refuses to alias arrays that are not writable.
        value.copy_(torch.tensor(flat[start:end]).view(value.shape))
        start = end


def initial_weights(manifest: RunManifest) -> FloatVector:
    """The weights of round 0, from the manifest's seed.

    Matrices are normal with standard deviation ``initializer_range`` (GPT-2's residual
    projections with that over sqrt(2 * layers), as in its paper), biases 0, norms 1.

    Returns:
        Flat float32 vector, the same bytes on every machine.

    Raises:
        UsageError: the run starts from given weights, not from a seed.
    """
    if not isinstance(manifest.init, InitSeed):
        raise UsageError("this run starts from given weights: fetch them by their digest")
    config = manifest.model_config_json
    spec = parameter_spec(config)
    flat = np.empty(element_count(spec), np.float32)
    for name, shape, where in slices(spec):
        if len(shape) >= 2:
            _fill_normal(flat[where], _deviation(config, name), manifest.init.seed, name)
        else:
            flat[where] = 0.0 if name.endswith("bias") else 1.0
    return flat


def _deviation(config: dict[str, Any], name: str) -> float:
    deviation = float(config.get("initializer_range", 0.02))
    if config["model_type"] == "gpt2" and name.endswith("c_proj.weight"):
        deviation /= math.sqrt(2 * config.get("n_layer", 12))
    return deviation


def _fill_normal(out: FloatVector, deviation: float, seed: int, name: str) -> None:
    """Fill with near-normal noise: the centred sum of twelve uniform 16-bit words.

    The sum is an exact integer below 2^20, so only the last multiplication rounds. A true
    normal would need a logarithm, whose last bit differs between maths libraries.
    """
    digest = hashlib.sha256(_INIT_DOMAIN + seed.to_bytes(8, "big") + name.encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    scale = np.float32(deviation / 65_536)
    for start in range(0, len(out), _INIT_BLOCK):
        block = out[start : start + _INIT_BLOCK]
        raw = generator.random_raw(len(block) * _WORDS_PER_NORMAL // 4)
        words = raw.astype("<u8").view("<u2").reshape(len(block), _WORDS_PER_NORMAL)
        centred = words.sum(axis=1, dtype=np.int64) - _WORDS_MEAN
        np.multiply(centred.astype(np.float32), scale, out=block)
