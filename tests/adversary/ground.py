"""A run that is made once and fought over many times.

Invariant: all scenarios of one :class:`Ground` begin from the same bytes: run id, keys, data,
bounds. So the same run without the adversary is the measure of what it did.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from processes import call
from rig import PEERS, Arena, make_home

from protocol.dataset import DatasetManifest, ShardInfo, Source

VOCABULARY, SEQUENCE_LENGTH, SEQUENCES = 256, 32, 8192

RUN_TOML = """\
[run]
name = "ring"
[model]
model_type = "llama"
vocab_size = 256
hidden_size = 32
intermediate_size = 88
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 32
tie_word_embeddings = true
[training]
sequence_length = 32
sequences_per_batch = 4
max_steps = 10
total_tokens = 100000000
[round]
duration_s = {round_s}
grace_s = 2.0
gather_s = 4.0
broadcast_s = 4.0
min_members = {min_members}
[update]
codec = "int8"
combine = "clipped_mean"
chunk_elements = 2048
[verification]
{verification}
[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
anchor_arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
validation_sequences = 64
heartbeat_s = 0.3
auditor = false
[server.audit]
step_s = 0.2
answer_s = 3.0
patience_s = 120.0
"""

VERIFICATION: dict[str, Any] = {
    "p_min": 0.25,
    "probation_passes": 3,
    "probation_steps": 0,
    "reducer_passes": 0,
    "audited_results": 4,
    "p_second_auditor": 0.0,
    "pending_contributions": 100,
    "pending_s": 0.0,
}

GROUNDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "newcomers": {"probation_steps": 2},
    "two auditors": {"p_second_auditor": 0.5},
    "trust": {"probation_passes": 10, "p_min": 0.25},
}
"""What differs from :data:`VERIFICATION`."""


@dataclass
class Ground:
    """A run that was made once and is fought over many times."""

    folder: Path
    verification: dict[str, Any] = field(default_factory=dict)
    round_s: float = 4.0
    min_members: int = 3
    link: str = ""

    @property
    def template(self) -> Path:
        return self.folder / "template"

    def make(self) -> None:
        """Data, keys and manifest; the honest workers' homes."""
        self.folder.mkdir(parents=True)
        write_dataset(self.folder / "data")
        settings = {
            "port": _free_port(),
            "round_s": self.round_s,
            "min_members": self.min_members,
            "verification": _toml(VERIFICATION | self.verification),
        }
        config = self.folder / "run.toml"
        config.write_text(RUN_TOML.format(**settings))
        where = ("--config", str(config), "--data", str(self.folder / "data"))
        call("coordinator", "init", *where, "--run-dir", str(self.template / "run"))
        self.link = (self.template / "run" / "join-link.txt").read_text().strip()
        for name in PEERS:
            make_home(self.template / name, self.link, name, reachable=name == PEERS[0])

    def calibrate(self) -> None:
        """Measure the bounds once, as an organiser would."""
        run = str(self.template / "run")
        call("coordinator", "calibrate", "--run-dir", run, "--samples", "2")

    @contextmanager
    def arena(self) -> Iterator[Arena]:
        """A fresh copy of the run; its processes end with the block. It is left to be looked at."""
        live = self.folder / "live"
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(self.template, live, symlinks=True)
        arena = Arena(live, self.link)
        try:
            yield arena
        finally:
            arena.close()


def write_dataset(folder: Path) -> None:
    """Counting sequences: learnt within a few rounds, and forgotten as fast."""
    generator = np.random.default_rng(7)

    def shard(count: int) -> ShardInfo:
        starts = generator.integers(0, VOCABULARY, (count, 1))
        steps = generator.integers(1, 4, (count, 1))
        tokens = (starts + steps * np.arange(SEQUENCE_LENGTH)) % VOCABULARY
        data = tokens.astype("<u2").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "shards" / f"{digest}.bin").write_bytes(data)
        return ShardInfo(sha256=digest, sequences=count, bytes=len(data))

    (folder / "shards").mkdir(parents=True)
    tokenizer = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {}}}).encode()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    source = Source(
        name="counting", licence="CC0-1.0", files=1, documents=1, bytes=1, sha256="0" * 64
    )
    manifest = DatasetManifest(
        dtype="uint16",
        sequence_length=SEQUENCE_LENGTH,
        vocab_size=VOCABULARY,
        eos_token_id=0,
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        shuffle_seed=7,
        shards=(shard(SEQUENCES // 2), shard(SEQUENCES // 2)),
        validation=shard(64),
        sources=(source,),
        licence="CC0-1.0",
        tokens=SEQUENCES * SEQUENCE_LENGTH,
    )
    (folder / "dataset.json").write_bytes(manifest.canonical())


def _toml(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
