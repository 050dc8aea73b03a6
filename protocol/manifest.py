"""The run manifest: everything that fixes a run. Its SHA-256 is the run id.

Invariants:

* Frozen, canonical JSON (RFC 8785): one run, one sequence of bytes, one digest.
* Refused unless fully understood: an unknown field, model type or training specification is
  an error, never ignored, because two programs that read a manifest differently would train
  different models under one name.
* Lengths carry their unit; rates and probabilities are plain numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Final, Literal, Self, get_args

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.errors import BadRecord, UsageError
from protocol.identity import PublicKey
from protocol.limits import MAX_CHUNK_ELEMENTS, MAX_MANIFEST_BYTES, MAX_ROSTER_MEMBERS

RUN_FORMAT: Final = "barnraise-run/1"
TRAINING_SPEC: Final = "barnraise-training/1"
CREDIT_FORMULA: Final = "barnraise-credit/1"

Hex256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "olmo2", "gpt2"]
Codec = Literal["fp32", "int8", "int4", "int8-aes", "int4-aes"]
CombineRule = Literal["mean", "clipped_mean"]
Overlap = Literal["none", "lag1"]

_LOADS_CODE = (
    *("auto_map", "trust_remote_code", "attn_implementation", "experts_implementation"),
    *("use_kernels", "kernel_config", "quantization_config"),
)
"""Settings by which the library may look for code elsewhere."""

_MOST_PROBLEMS = 50
_MOST_FIELD_CHARS = 100


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MuonSpec(_Frozen):
    """``torch.optim.Muon``, every argument given: a changed default must not change a run."""

    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, le=20)
    weight_decay: float = Field(0.1, ge=0)
    adjust_lr_fn: Literal["match_rms_adamw"] = "match_rms_adamw"


class AdamWSpec(_Frozen):
    """``torch.optim.AdamW`` for embeddings, output head and everything not 2-D."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)


class LearningRate(_Frozen):
    """Schedule in merged tokens of the run, constant within a round.

    Linear rise over ``warmup_tokens``, then cosine to ``final_fraction * peak`` at
    ``total_tokens``, constant after that.
    """

    peak: float = Field(gt=0)
    warmup_tokens: int = Field(0, ge=0)
    total_tokens: int = Field(gt=0)
    final_fraction: float = Field(0.1, ge=0, le=1)

    def at(self, tokens: int) -> float:
        """Learning rate after ``tokens`` merged tokens."""
        if tokens < self.warmup_tokens:
            # Never zero: the first round would be wasted on every volunteer's machine.
            return self.peak * max(tokens / self.warmup_tokens, 0.1)
        span = max(1, self.total_tokens - self.warmup_tokens)
        progress = min(1.0, (tokens - self.warmup_tokens) / span)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * cosine)


class InnerSpec(_Frozen):
    """The unit of work: up to ``max_steps`` optimizer steps from the round's weights."""

    training_spec: Literal["barnraise-training/1"] = TRAINING_SPEC
    max_steps: int = Field(gt=0, le=100_000)  # H
    warmup_steps: int = Field(2, ge=0)
    sequences_per_batch: int = Field(gt=0)
    clip_norm: float = Field(1.0, gt=0)
    learning_rate: LearningRate
    muon: MuonSpec = MuonSpec()
    adamw: AdamWSpec = AdamWSpec()


class OuterSpec(_Frozen):
    """Nesterov momentum on the mean update (protocol section 9)."""

    learning_rate: float = Field(0.7, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class RoundSpec(_Frozen):
    duration_s: float = Field(gt=0)
    grace_s: float = Field(10.0, gt=0)
    gather_s: float = Field(60.0, gt=0)  # deadline floor; grows with the bytes of the vector
    broadcast_s: float = Field(60.0, gt=0)
    min_members: int = Field(1, ge=1)
    max_members: int = Field(256, ge=1, le=MAX_ROSTER_MEMBERS)
    max_attempts: int = Field(3, ge=1, le=10)
    max_rounds: int | None = Field(None, ge=1)  # the run is complete after these


class UpdateSpec(_Frozen):
    codec: Codec = "int8"
    chunk_elements: int = Field(1 << 17, ge=256, le=MAX_CHUNK_ELEMENTS)
    combine: CombineRule = "mean"

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.chunk_elements & (self.chunk_elements - 1):
            raise ValueError("chunk_elements must be a power of two")
        return self


class VerificationSpec(_Frozen):
    """Who is audited, how closely, and when credit is final (docs/verification.md)."""

    policy: Literal["barnraise-audit/1"] = "barnraise-audit/1"
    p_min: float = Field(0.05, gt=0, le=1)  # least chance of an audit, however trusted
    probation_passes: int = Field(10, ge=0)  # audited passes before a device counts as trusted
    probation_steps: int = Field(5, ge=0, le=5)  # a new key's first, unmerged unit; 0: none
    reducer_passes: int = Field(10, ge=0)  # audited passes before a member may reduce
    newcomer_weight_share: float = Field(0.25, gt=0, le=1)  # of the trusted members' median
    opened_chunks: int = Field(8, ge=1, le=64)  # of an audited update
    audited_results: int = Field(1, ge=0, le=64)  # result chunks recomputed in a round
    p_second_auditor: float = Field(0.05, ge=0, le=1)
    pending_contributions: int = Field(100, ge=1)  # later ones before credit is final
    pending_s: float = Field(24 * 3600.0, ge=0)  # and so long
    last_pending_s: float = Field(7 * 24 * 3600.0, ge=0)  # for a donor's last contributions
    weight_cap_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _cheating_does_not_pay(self) -> Self:
        # A cheat gains one unit and risks, at p_min, all that is pending: it must lose on average.
        if self.p_min * self.pending_contributions < 2 * (1 - self.p_min):
            raise ValueError(
                "p_min * pending_contributions must be at least 2 * (1 - p_min), or cheating pays"
            )
        return self


class Campaign(_Frozen):
    title: str = Field(min_length=1, max_length=200)
    purpose: str = Field("", max_length=4000)
    goal_microcredits: int = Field(gt=0)


class InitSeed(_Frozen):
    kind: Literal["seed"] = "seed"
    seed: int = Field(ge=0, lt=1 << 53)


class InitWeights(_Frozen):
    kind: Literal["weights"] = "weights"
    weights_sha256: Hex256  # of a safetensors file


class RunManifest(_Frozen):
    format: Literal["barnraise-run/1"] = RUN_FORMAT
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    description: str = Field("", max_length=4000)
    origin: str = Field(min_length=1, max_length=200, pattern=r"^[^\s+]+$")
    root: str  # PeerID of the run's root key
    licence: str = Field(min_length=1, max_length=200)  # of the released weights
    model_config_json: dict[str, Any]  # Hugging Face configuration
    init: Annotated[InitSeed | InitWeights, Field(discriminator="kind")]
    tokenizer_sha256: Hex256
    dataset_sha256: Hex256  # of the dataset manifest
    sequence_length: int = Field(gt=1)
    inner: InnerSpec
    outer: OuterSpec = OuterSpec()
    round: RoundSpec
    update: UpdateSpec = UpdateSpec()
    overlap: Overlap = "none"
    verification: VerificationSpec = VerificationSpec()
    credit_formula: Literal["barnraise-credit/1"] = CREDIT_FORMULA
    campaign: Campaign

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        config = self.model_config_json
        model_type = config.get("model_type")
        if model_type not in get_args(ModelType):
            allowed = ", ".join(get_args(ModelType))
            raise ValueError(f"model_type {model_type!r} is not one of: {allowed}")
        _refuse_code(config)
        for name, value in config.items():
            if ("dropout" in name or name.endswith("pdrop")) and value:
                raise ValueError(f"{name} must be 0: a unit of work is a pure function")
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        if not isinstance(positions, int) or positions < self.sequence_length:
            raise ValueError("max_position_embeddings must be at least sequence_length")
        try:
            PublicKey.from_peer_id(self.root)
        except BadRecord as error:
            raise ValueError(f"root: {error}") from error
        if self.round.min_members > self.round.max_members:
            raise ValueError("round: min_members is more than max_members")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one inner step: what a lease is counted in."""
        return self.inner.sequences_per_batch * self.sequence_length

    @property
    def lag_rounds(self) -> int:
        """How many rounds may be reduced while the next one is trained (protocol section 9)."""
        return 1 if self.overlap == "lag1" else 0

    def canonical(self) -> bytes:
        """RFC 8785 bytes: what is hashed, stored and sent."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def run_id(self) -> bytes:
        """SHA-256 of :meth:`canonical`, 32 bytes."""
        return hashlib.sha256(self.canonical()).digest()

    @classmethod
    def parse(cls, data: bytes) -> RunManifest:
        """Read a manifest, refusing what is not canonical or not understood.

        Raises:
            UsageError: with the offending field and what to do.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise UsageError(f"manifest of {len(data)} bytes is over {MAX_MANIFEST_BYTES}")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the manifest is not JSON: {error}") from error
        manifest = cls.from_mapping(raw)
        if manifest.canonical() != data:
            raise UsageError("the manifest is not in canonical form (RFC 8785): fetch it again")
        return manifest

    @classmethod
    def from_mapping(cls, raw: object) -> RunManifest:
        """Validate a decoded manifest.

        Raises:
            UsageError: each offending field on a line of its own.
        """
        try:
            manifest = cls.model_validate(raw)
            # The free-form model configuration could hold what RFC 8785 cannot write.
            manifest.canonical()
        except ValidationError as error:
            raise UsageError(explain_validation("run manifest", error)) from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the manifest has no canonical form: {error}") from error
        return manifest


def _refuse_code(settings: object) -> None:
    """However deep it is in a model's configuration, and whatever the library makes of it."""
    if isinstance(settings, list):
        for value in settings:
            _refuse_code(value)
    elif isinstance(settings, dict):
        for name, value in settings.items():
            if name in _LOADS_CODE:
                raise ValueError(f"{name} would load code from the network: never")
            if name.startswith("_"):
                raise ValueError(f"{name[:_MOST_FIELD_CHARS]!r} is not a setting of a model")
            _refuse_code(value)


def explain_validation(what: str, error: ValidationError) -> str:
    """One line per offending field, in words for a person; bounded, for it may be a stranger's."""
    if error.error_count() > _MOST_PROBLEMS:
        return f"{what} refused: {error.error_count()} faults are in it"
    lines = []
    for problem in error.errors():
        field = ".".join(str(step) for step in problem["loc"])[:_MOST_FIELD_CHARS] or "(whole)"
        if not field.isprintable():
            field = ascii(field)
        if problem["type"] == "extra_forbidden":
            message = "unknown field: check its spelling, or upgrade barnraise"
        else:
            message = problem["msg"]
        lines.append(f"  {field}: {message}")
    return f"{what} refused:\n" + "\n".join(lines)
