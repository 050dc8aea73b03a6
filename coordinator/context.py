"""What everything in the engine knows of the run it serves. No I/O; only the speeds ever change."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from google.protobuf.message import Message

from coordinator.keys import KeyRing
from coordinator.round_state import Policy
from coordinator.speeds import ReducerSpeeds
from ledger.log import Log
from protocol.dataset import DatasetManifest
from protocol.envelope import seal
from protocol.errors import UsageError
from protocol.manifest import RunManifest
from protocol.model import element_count, parameter_spec
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

_UPLINK_BYTES_PER_S = 250_000
"""A slow home uplink (2 Mbit/s): deadlines of a reduce grow with the vector at this rate."""


_LEAST_UNHEARD_S = 10.0
"""A machine that is busy for a moment is not gone."""


@dataclass(frozen=True)
class AuditOptions:
    """What the organiser may tune of the audits without changing what they prove."""

    step_s: float = 1.0  # how often open audits are looked at
    answer_s: float = 60.0  # so long a reducer may take to show something; then others are asked
    patience_s: float = 24 * 3600.0  # then what cannot be had is unavailable
    appeal_s: float = 7 * 24 * 3600.0  # evidence is kept and appeals are heard for so long
    backlog_jobs: int = 200  # waiting replays above which newcomers are asked to come later
    probation_s: float = 3600.0  # for a probation unit
    most_replays: int = 3  # of one contribution


@dataclass(frozen=True)
class EngineOptions:
    """What the organiser may tune without making another run."""

    tick_s: float = 0.5
    silent_after_s: float = 30.0  # several heartbeats: then the lease is given up
    gone_after_s: float = 2.0  # after its event stream ended, a reduce waits no longer for a member
    retry_after_s: float = 2.0  # what a waiting worker is told at most, while they are few
    subscriber_events: int = 256  # a slower reader is dropped and must come back
    kept_checkpoints: int = 5  # newest states whose files stay, for slow downloads and audits
    kept_means: int = 512  # newest rounds whose means stay: audits rebuild weights from them
    kept_mean_bytes: int = 16 << 30  # and not more than so much of them
    heartbeat_s: float = 4.0  # what workers are told, while they are few
    heartbeats_per_s: float = 250.0  # of all; more workers are told to call less often
    acts_per_day: int = 50  # of one person
    campaign_s: float = 5.0  # how often campaigns are looked at
    min_client_version: str = ""  # of who may have work; empty: whoever was let in
    audit: AuditOptions = AuditOptions()

    @property
    def unheard_after_s(self) -> float:
        """Without heartbeats for so long, a reduce waits no longer for a member."""
        return max(_LEAST_UNHEARD_S, 3 * self.heartbeat_s)


@dataclass(frozen=True)
class RunContext:
    """The run, its layout and its keys."""

    manifest: RunManifest
    dataset: DatasetManifest
    keys: KeyRing
    log: Log
    options: EngineOptions = EngineOptions()
    speeds: ReducerSpeeds = field(default_factory=ReducerSpeeds, compare=False)

    @cached_property
    def run_id(self) -> bytes:
        return self.manifest.run_id

    @cached_property
    def layout(self) -> ChunkLayout:
        elements = element_count(parameter_spec(self.manifest.model_config_json))
        return ChunkLayout(elements, self.manifest.update.chunk_elements)

    @cached_property
    def batches_per_epoch(self) -> int:
        """Whole inner batches in an epoch.

        Raises:
            UsageError: the dataset does not fill a single one.
        """
        batches = self.dataset.train_sequences // self.manifest.inner.sequences_per_batch
        if batches < 1:
            raise UsageError(
                f"the dataset has {self.dataset.train_sequences} sequences, fewer than one inner "
                f"batch of {self.manifest.inner.sequences_per_batch}: build a larger one"
            )
        return batches

    @cached_property
    def vector_bytes(self) -> int:
        """Encoded bytes of one update."""
        codec = self.manifest.update.codec
        full = self.layout.encoded_bytes(codec, 0)
        return full * (self.layout.count - 1) + self.layout.encoded_bytes(
            codec, self.layout.count - 1
        )

    @cached_property
    def policy(self) -> Policy:
        """The manifest's rounds; a reduce gets time for the vector's bytes on a slow uplink."""
        spec = self.manifest.round
        transfer_s = self.vector_bytes / _UPLINK_BYTES_PER_S
        return Policy(
            duration_s=spec.duration_s,
            grace_s=spec.grace_s,
            gather_s=spec.gather_s + transfer_s,
            broadcast_s=spec.broadcast_s + transfer_s,
            min_members=spec.min_members,
            max_members=spec.max_members,
            max_attempts=spec.max_attempts,
        )

    def finished(self, settled_rounds: int, merged_tokens: int) -> bool:
        """Whether the run is complete: its rounds, or else its schedule, are used up."""
        if self.manifest.round.max_rounds is not None:
            return settled_rounds >= self.manifest.round.max_rounds
        return merged_tokens >= self.manifest.inner.learning_rate.total_tokens

    def sign(self, record: Message) -> wire.Envelope:
        """Seal with the round key."""
        return seal(record, self.keys.round)


def to_ms(seconds: float) -> int:
    """Seconds to whole milliseconds, as the wire counts time."""
    return round(seconds * 1000)
