"""What the demonstration trains: small enough for two cores, large enough to learn words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoScale:
    """Sizes of one demonstration."""

    vocabulary: int = 2048
    sequence_length: int = 128
    sequences_per_batch: int = 8
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 344
    rounds: int = 9
    round_duration_s: float = 18.0
    max_steps: int = 200
    codec: str = "int8"

    @property
    def total_tokens(self) -> int:
        """Where the learning-rate schedule ends: about what two cores merge in all rounds."""
        per_round = 3 * self.round_duration_s * 4000
        return int(per_round * self.rounds)

    def run_toml(self, *, name: str, port: int, public_url: str) -> str:
        """The organiser's ``run.toml``, as a person would write it."""
        return f"""\
# The run that `barnraise demo` trains.
[run]
name = "{name}"
description = "A small Llama, raised on Shakespeare by three neighbours and an anchor."
origin = "{public_url.removeprefix("http://")}"
licence = "Apache-2.0"

[model]
model_type = "llama"
vocab_size = {self.vocabulary}
hidden_size = {self.hidden}
intermediate_size = {self.intermediate}
num_hidden_layers = {self.layers}
num_attention_heads = {self.heads}
max_position_embeddings = {self.sequence_length}
tie_word_embeddings = true

[init]
seed = 1

[training]
sequence_length = {self.sequence_length}
sequences_per_batch = {self.sequences_per_batch}
max_steps = {self.max_steps}
warmup_steps = 2
learning_rate = 4e-3
total_tokens = {self.total_tokens}
warmup_tokens = 0

[round]
duration_s = {self.round_duration_s}
grace_s = 6.0
gather_s = 20.0
broadcast_s = 20.0
min_members = 2
max_rounds = {self.rounds}

[update]
codec = "{self.codec}"
chunk_elements = 131072

# Trust and final credit within minutes, to be seen; the defaults take days.
[verification]
p_min = 0.25
probation_passes = 2
pending_contributions = 6
pending_s = 0.0
last_pending_s = 600.0

[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
public_url = "{public_url}"
heartbeat_s = 1.0
# Neighbours and auditor compute whole batches on one machine: replays are equal to the bit, and
# there are no bounds to measure.
auditor_arguments = ["--no-calibrate", "--poll-s", "0.5"]

[server.audit]
step_s = 0.5
answer_s = 10.0
patience_s = 600.0

[campaign]
title = "Raise a little bard"
purpose = "Show, on one machine, that strangers can train a model together and prove who gave what."
goal_credits = 0.02
"""
