"""One line of the benchmark of losses: a way to train, its settings and its seed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from bench.train import make_config
from protocol.identity import Identity
from protocol.manifest import Codec, RunManifest

Method = Literal["sync-adamw", "sync-muon", "diloco-adamw", "ours"]
Size = Literal["0.1M", "0.8M"]

SEQUENCE_LENGTH = 64
SEQUENCES_PER_BATCH = 4  # of one member
_SIZES: dict[Size, tuple[int, int]] = {"0.1M": (64, 2), "0.8M": (128, 4)}  # hidden size, layers


@dataclass(frozen=True)
class Arm:
    """Equal tokens: ``member_steps`` counts the steps of all members together."""

    method: Method
    workers: int
    steps: int  # H; 1 where gradients are averaged after every step
    codec: Codec
    learning_rate: float  # inner, at its peak
    seed: int = 0
    size: Size = "0.1M"
    member_steps: int = 3200
    final_fraction: float = 0.1
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    muon_momentum: float = 0.9
    warmup_fraction: float = 0.0  # of the tokens; each of our units warms up by itself
    unit_warmup_steps: int = 2
    overlap: Literal["none", "lag1"] = "none"

    @property
    def synchronous(self) -> bool:
        return self.method.startswith("sync")

    @property
    def label(self) -> str:
        """What it is, without its numbers."""
        names = {
            "sync-adamw": "synchronous AdamW",
            "sync-muon": "synchronous Muon",
            "diloco-adamw": "DiLoCo, AdamW",
            "ours": "ours",
        }
        return names[self.method] + (", lag1" if self.overlap == "lag1" else "")

    @property
    def outer_label(self) -> str:
        """Learning rate and momentum of the outer step."""
        if self.synchronous:
            return ""
        return f"{self.outer_learning_rate:g}, {self.outer_momentum:g}"

    @property
    def rounds(self) -> int:
        """Times that the members exchange something."""
        return self.member_steps // (self.workers * self.steps)

    @property
    def tokens(self) -> int:
        return self.member_steps * SEQUENCES_PER_BATCH * SEQUENCE_LENGTH

    @property
    def key(self) -> str:
        """The same settings, the same key."""
        return json.dumps(asdict(self), sort_keys=True)

    def seeded(self, seed: int) -> Arm:
        return replace(self, seed=seed)

    def manifest(self) -> RunManifest:
        """Of a run that trains so; a synchronous batch is that of all members."""
        together = self.workers if self.synchronous else 1
        return RunManifest.from_mapping(
            {
                "name": "loss",
                "origin": "example.org/loss",
                "root": Identity.from_seed(bytes(32)).peer_id,
                "licence": "Apache-2.0",
                "model_config_json": make_config(*_SIZES[self.size]),
                "init": {"kind": "seed", "seed": self.seed + 1},
                "tokenizer_sha256": "0" * 64,
                "dataset_sha256": "0" * 64,
                "sequence_length": SEQUENCE_LENGTH,
                "inner": self._inner(SEQUENCES_PER_BATCH * together),
                "outer": self._outer(),
                "round": {"duration_s": 60.0},
                "update": {"codec": self.codec},
                "campaign": {"title": "Losses", "goal_microcredits": 1},
            }
        )

    def _inner(self, sequences_per_batch: int) -> dict[str, Any]:
        return {
            "max_steps": self.steps,
            "warmup_steps": self.unit_warmup_steps,
            "sequences_per_batch": sequences_per_batch,
            "learning_rate": {
                "peak": self.learning_rate,
                "warmup_tokens": int(self.warmup_fraction * self.tokens),
                "total_tokens": self.tokens,
                "final_fraction": self.final_fraction,
            },
            "muon": {"momentum": self.muon_momentum},
        }

    def _outer(self) -> dict[str, Any]:
        return {
            "learning_rate": self.outer_learning_rate,
            "momentum": self.outer_momentum,
        }
