"""From the organiser's words and a dataset to the manifest that fixes the run.

Invariants:

* Whatever the file leaves out is filled in here and written into the manifest: a later version
  with other defaults changes no run.
* The dataset decides what only it can know (sequence length, vocabulary, tokenizer); a file that
  contradicts it is refused, with both values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, get_args

from coordinator.config import RunFile
from coordinator.late_mean import bears_late_means
from ledger.credit import MICROCREDITS_PER_CREDIT, training_microcredits
from protocol.dataset import DatasetManifest
from protocol.errors import UsageError
from protocol.identity import PeerId
from protocol.manifest import ModelType, RunManifest

_LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # about 1 M parameters with a vocabulary of 2,048: minutes on two cores
    "tiny": _LLAMA
    | {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    # about 10 M parameters with a vocabulary of 8,192: laptops
    "small": _LLAMA
    | {
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
    # about 125 M parameters with a vocabulary of 32,768: graphics cards
    "medium": _LLAMA
    | {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}

EXAMPLE: Final = """\
# A run of Barnraise. Every setting that is commented out shows its default.

[run]
name = "my-first-run"                 # lower-case letters, digits and hyphens
# description = ""
# origin = "barnraise.local/my-first-run"   # name of the public record; your site without https://
# licence = "Apache-2.0"              # of the released weights

[model]                               # a Hugging Face configuration, inline ...
preset = "{preset}"                       # ... or a preset: {presets}
# config = "config.json"              # ... or a file
# num_hidden_layers = 8               # and what differs from it

[init]
# seed = 0
# weights = "model.safetensors"       # start from these instead

[training]
# sequences_per_batch = 8
# max_steps = 200                     # most inner steps between two averagings
# warmup_steps = 2
# learning_rate = 4e-3                # at its peak
# warmup_tokens = 0
# total_tokens = ...                  # where the schedule ends; default: one pass over the data
# final_fraction = 0.1
# overlap = "none"                    # lag1: for slow lines; see docs/adr/0044

[outer]
# learning_rate = 0.7
# momentum = 0.9

[round]
# duration_s = 300.0
# grace_s = 10.0
# gather_s = 60.0
# broadcast_s = 60.0
# min_members = 1
# max_members = 256
# max_rounds = ...                    # default: until you stop it

[update]
# codec = "int8"                      # fp32 | int8 | int4 | int8-aes | int4-aes
# chunk_elements = 131072
# combine = "mean"                    # mean | clipped_mean

[verification]                        # who is audited, and when credit is final
# p_min = 0.05                        # least chance of an audit, however trusted
# probation_passes = 10               # audited passes before a device counts as trusted
# probation_steps = 5                 # a new key's first, unmerged unit; 0: none
# reducer_passes = 10                 # audited passes before a member may reduce
# newcomer_weight_share = 0.25        # of the trusted members' median weight
# opened_chunks = 8
# audited_results = 1
# p_second_auditor = 0.05
# pending_contributions = 100         # later ones before credit is final ...
# pending_s = 86400.0                 # ... and so long
# last_pending_s = 604800.0

[campaign]
# title = "my-first-run"
# purpose = ""
# goal_credits = ...                  # petaFLOP; default: what total_tokens take

[server]                              # may be changed at any time; restart 'serve' after it
# listen = "0.0.0.0:7443"
# public_address = "example.org:7443" # what volunteers connect to; it goes into the join link
# public_url = "https://example.org"  # of the leaderboard
# leaderboard = "0.0.0.0:8080"        # also serve the leaderboard there
# anchor = true                       # run an anchor beside the coordinator
# anchor_arguments = ["--listen", "/ip4/0.0.0.0/tcp/31337"]
# anchors = []                        # PeerIDs of further anchors
# database = "sqlite:///coordinator.db"
# blobs = "blobs"                     # folder, or an fsspec URL such as s3://bucket/run
# delegations_valid_days = 365
# min_client_version = "0.1.0"
# validation_sequences = 256
# enrolment = "open"                  # open | invite | approval
# heartbeat_s = 4.0
# auditor = true                      # run an auditor beside the coordinator

[server.audit]
# step_s = 1.0
# answer_s = 60.0                     # for a reducer to show something; then others are asked
# patience_s = 86400.0                # then what cannot be had is unavailable: nobody's fault
# appeal_s = 604800.0                 # evidence is kept and appeals are heard for so long
# backlog_jobs = 200                  # waiting replays above which newcomers wait too
# probation_s = 3600.0
# most_replays = 3

[server.limits]
# requests_per_s_per_key = 10.0
# burst_per_key = 60
# requests_per_s_per_address = 100.0
# burst_per_address = 500             # known devices have allowances of their own
# connections = ...                   # default: what the system's limit of open files allows
# stalled_upload_s = 60.0             # an upload that brings nothing for so long ends
# devices_per_donor = 64
# devices_per_address = 128
# new_devices_per_address_per_day = 64
# acts_per_donor_per_day = 50         # pledges, teams, profiles: the record keeps them for ever
"""

_NOT_OF_THE_MODEL = (
    "transformers_version",
    "_name_or_path",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "dtype",
)
"""What the library writes into every configuration and no causal model reads."""

_MAX_CONFIG_BYTES = 1 << 20


def example(preset: str) -> str:
    """A commented ``run.toml``."""
    return EXAMPLE.format(preset=preset, presets=", ".join(PRESETS))


def build_manifest(
    file: RunFile,
    dataset: DatasetManifest,
    root: PeerId,
    *,
    base: Path,
    weights_sha256: str | None = None,
) -> RunManifest:
    """Fix a run.

    Args:
        file: the organiser's settings.
        dataset: what it trains on.
        root: PeerID of the run's root key.
        base: folder that paths in ``file`` are relative to.
        weights_sha256: of the file to start from, unless the seed makes the weights.

    Raises:
        UsageError: each contradiction, and each field that the manifest refuses.
    """
    training = file.training
    if training.sequence_length not in (None, dataset.sequence_length):
        raise UsageError(
            f"[training] sequence_length is {training.sequence_length}, but the dataset was built "
            f"with {dataset.sequence_length}: leave it out, or build the data with "
            f"--sequence-length {training.sequence_length}"
        )
    model = model_config(file.model, dataset, base)
    total_tokens = training.total_tokens or dataset.tokens
    raw: dict[str, Any] = {
        **file.run.model_dump(exclude={"origin"}),
        "origin": file.run.origin or f"barnraise.local/{file.run.name}",
        "root": root,
        "model_config_json": model,
        "init": _init(file, weights_sha256),
        "tokenizer_sha256": dataset.tokenizer_sha256,
        "dataset_sha256": dataset.digest.hex(),
        "sequence_length": dataset.sequence_length,
        "inner": {
            "max_steps": training.max_steps,
            "warmup_steps": training.warmup_steps,
            "sequences_per_batch": training.sequences_per_batch,
            "clip_norm": training.clip_norm,
            "learning_rate": {
                "peak": training.learning_rate,
                "warmup_tokens": training.warmup_tokens,
                "total_tokens": total_tokens,
                "final_fraction": training.final_fraction,
            },
            "muon": training.muon.model_dump(),
            "adamw": training.adamw.model_dump(),
        },
        "outer": file.outer.model_dump(),
        "round": file.round.model_dump(),
        "overlap": training.overlap,
        "update": file.update.model_dump(),
        "verification": file.verification.model_dump(),
        "campaign": _campaign(file, model, total_tokens, dataset.sequence_length),
    }
    manifest = RunManifest.from_mapping(raw)
    if dataset.train_sequences < manifest.inner.sequences_per_batch:
        raise UsageError(
            f"the dataset has {dataset.train_sequences} training sequences, fewer than one batch "
            f"of {manifest.inner.sequences_per_batch}: build it from more text"
        )
    _require_stable(manifest)
    return manifest


def _require_stable(manifest: RunManifest) -> None:
    outer = manifest.outer
    if manifest.lag_rounds and not bears_late_means(outer):
        raise UsageError(
            '[training] overlap = "lag1" applies each mean one round late, and with [outer] '
            f"learning_rate = {outer.learning_rate:g}, momentum = {outer.momentum:g} training "
            "would diverge: set them to 0.6 and 0, or leave the overlap out"
        )


def model_config(section: dict[str, Any], dataset: DatasetManifest, base: Path) -> dict[str, Any]:
    """The full model configuration: preset or file, what differs, the dataset's facts, defaults.

    Raises:
        UsageError: unknown preset, unreadable file, or a contradiction of the dataset.
    """
    from transformers import AutoConfig

    given = _given(dict(section), base)
    _fit_vocabulary(given, dataset)
    length_field = "n_positions" if given.get("model_type") == "gpt2" else "max_position_embeddings"
    given.setdefault(length_field, dataset.sequence_length)
    given.setdefault("bos_token_id", dataset.eos_token_id)
    given.setdefault("eos_token_id", dataset.eos_token_id)
    if given.get("model_type") == "gpt2":  # whose own defaults are 0.1
        for field in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            given.setdefault(field, 0.0)
    model_type = given.pop("model_type", None)
    if model_type not in get_args(ModelType):
        allowed = ", ".join(get_args(ModelType))
        raise UsageError(f"[model] model_type {model_type!r} is not one of: {allowed}")
    # The library keeps what it does not know; only a plain configuration tells what it does know.
    unknown = sorted(set(given) - set(AutoConfig.for_model(model_type).to_dict()))
    if unknown:
        raise UsageError(
            f"[model] has fields that {model_type} does not know: {', '.join(unknown)}"
        )
    try:
        full: dict[str, Any] = AutoConfig.for_model(model_type, **given).to_dict()
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"[model] is not a configuration: {error}") from error
    kept = {
        name: value
        for name, value in full.items()
        if value is not None
        and name not in _NOT_OF_THE_MODEL
        and not name.startswith("summary_")  # of GPT-2's classification head
    }
    # What a program reads back from JSON: tuples became lists, keys text.
    config: dict[str, Any] = json.loads(json.dumps(kept | {"model_type": model_type}))
    return config


def _given(section: dict[str, Any], base: Path) -> dict[str, Any]:
    preset, path = section.pop("preset", None), section.pop("config", None)
    if preset is not None and path is not None:
        raise UsageError("[model] has both preset and config: keep one")
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"[model] preset {preset!r} is not one of: {', '.join(PRESETS)}")
        return PRESETS[preset] | section
    if path is None:
        return section
    file = base / str(path)
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise UsageError(f"{file} is too large to be a model configuration")
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"[model] config: cannot read {file}: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"[model] config: {file} is not a JSON object")
    if "auto_map" in raw:
        raise UsageError(f"{file} has auto_map, which would load code from the network: never")
    return {
        k: v for k, v in raw.items() if k not in ("architectures", *_NOT_OF_THE_MODEL)
    } | section


def _fit_vocabulary(given: dict[str, Any], dataset: DatasetManifest) -> None:
    vocabulary = given.setdefault("vocab_size", dataset.vocab_size)
    if not isinstance(vocabulary, int) or vocabulary < dataset.vocab_size:
        raise UsageError(
            f"[model] vocab_size is {vocabulary}, but the dataset's tokenizer has "
            f"{dataset.vocab_size} tokens: leave vocab_size out, or build the data with another "
            "tokenizer"
        )


def _init(file: RunFile, weights_sha256: str | None) -> dict[str, Any]:
    if weights_sha256 is not None:
        return {"kind": "weights", "weights_sha256": weights_sha256}
    return {"kind": "seed", "seed": file.init.seed}


def _campaign(
    file: RunFile, model: dict[str, Any], total_tokens: int, sequence_length: int
) -> dict[str, Any]:
    goal = file.campaign.goal_credits
    if goal is None:
        microcredits = training_microcredits(total_tokens, model, sequence_length)
    else:
        microcredits = round(goal * MICROCREDITS_PER_CREDIT)
    return {
        "title": file.campaign.title or file.run.name,
        "purpose": file.campaign.purpose,
        "goal_microcredits": max(1, microcredits),
    }
