"""The organiser's ``run.toml``: parsed once, into frozen and validated settings.

Invariants:

* An unknown section or field is an error that names it: a misspelt setting must not become a
  default in silence.
* What fixes the run (model, training, rounds) is read at ``init`` only and lives on in the
  manifest; ``[server]`` is read at every start and may be edited at any time.
* Relative paths are relative to the file for what ``init`` reads, and to the run folder for what
  the server uses.
"""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocol.errors import BadRecord, UsageError
from protocol.identity import PublicKey
from protocol.link import JoinLink
from protocol.manifest import (
    AdamWSpec,
    MuonSpec,
    OuterSpec,
    Overlap,
    RoundSpec,
    RunManifest,
    UpdateSpec,
    VerificationSpec,
    explain_validation,
)

DEFAULT_PORT = 7443
DEFAULT_ROUND_S = 300.0
_MAX_FILE_BYTES = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunSection(_Section):
    name: str  # the manifest checks its form
    description: str = ""
    origin: str | None = None  # of the public record; default: barnraise.local/NAME
    licence: str = "Apache-2.0"  # of the released weights


class InitSection(_Section):
    seed: int = 0
    weights: str | None = None  # a safetensors file to start from, instead of the seed


class TrainingSection(_Section):
    sequence_length: int | None = None  # must be the dataset's, if given
    sequences_per_batch: int = 8
    max_steps: int = 200  # H: most inner steps in a round
    warmup_steps: int = 2
    clip_norm: float = 1.0
    learning_rate: float = 4e-3  # at its peak
    final_fraction: float = 0.1
    warmup_tokens: int = 0
    total_tokens: int | None = None  # where the schedule ends; default: one epoch
    overlap: Overlap = "none"  # lag1: a round is reduced while the next one is trained
    muon: MuonSpec = MuonSpec()
    adamw: AdamWSpec = AdamWSpec()


class CampaignSection(_Section):
    title: str | None = None
    purpose: str = ""
    goal_credits: float | None = Field(None, gt=0)  # default: what total_tokens are worth


class LimitsSection(_Section):
    """Token buckets and quotas. An address may be a school behind one router: more than a key."""

    requests_per_s_per_key: float = Field(10.0, gt=0)
    burst_per_key: int = Field(60, ge=1)
    requests_per_s_per_address: float = Field(100.0, gt=0)
    burst_per_address: int = Field(500, ge=1)
    connections: int | None = Field(None, ge=16)  # default: what the limit of open files allows
    stalled_upload_s: float = Field(60.0, gt=0)  # nothing came for so long: it ends
    devices_per_donor: int = Field(64, ge=1)
    devices_per_address: int = Field(128, ge=1)
    new_devices_per_address_per_day: int = Field(64, ge=1)
    acts_per_donor_per_day: int = Field(
        50, ge=1
    )  # pledges, teams, profiles: the record is for ever


class AuditSection(_Section):
    """The fields of :class:`coordinator.context.AuditOptions`, which is too heavy to load here."""

    step_s: float = Field(1.0, gt=0)  # how often open audits are looked at
    answer_s: float = Field(60.0, gt=0)  # for a reducer to show something; then others are asked
    patience_s: float = Field(24 * 3600.0, gt=0)  # then what cannot be had is unavailable
    appeal_s: float = Field(7 * 24 * 3600.0, ge=0)  # evidence is kept and appeals are heard
    backlog_jobs: int = Field(200, ge=1)  # waiting replays above which newcomers wait too
    probation_s: float = Field(3600.0, gt=0)  # for a probation unit
    most_replays: int = Field(3, ge=1, le=9)  # of one contribution


class ServerSection(_Section):
    listen: str = f"0.0.0.0:{DEFAULT_PORT}"
    public_address: str | None = None  # host:port in the join link
    public_url: str = ""  # of the leaderboard, shown to volunteers
    leaderboard: str = ""  # host:port to serve the leaderboard on; empty: do not
    database: str = "sqlite:///coordinator.db"
    blobs: str = "blobs"  # fsspec URL of the checkpoints
    anchor: bool = True  # start the run's own anchor beside the server
    anchor_arguments: tuple[str, ...] = Field((), strict=False)
    anchors: tuple[str, ...] = Field((), strict=False)  # PeerIDs of further anchors
    auditor: bool = True  # start an auditor beside the server
    auditor_arguments: tuple[str, ...] = Field((), strict=False)
    delegations_valid_days: int = Field(365, ge=1, le=3650)
    min_client_version: str = "0.1.0"
    validation_sequences: int = Field(256, ge=1)
    enrolment: Literal["open", "invite", "approval"] = "open"
    heartbeat_s: float = Field(4.0, gt=0, le=60)  # what workers are told
    audit: AuditSection = AuditSection()
    limits: LimitsSection = LimitsSection()

    @field_validator("anchors")
    @classmethod
    def _check_anchors(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for peer_id in value:
            try:
                PublicKey.from_peer_id(peer_id)
            except BadRecord as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("listen", "public_address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                split_address(value)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return value


class RunFile(_Section):
    """The whole of ``run.toml``. Only ``[run] name`` and ``[model]`` have no default."""

    run: RunSection
    model: dict[str, Any]  # a Hugging Face configuration, or preset = "..." and what differs
    init: InitSection = InitSection()
    training: TrainingSection = TrainingSection()
    outer: OuterSpec = OuterSpec()
    round: RoundSpec = RoundSpec(duration_s=DEFAULT_ROUND_S)
    update: UpdateSpec = UpdateSpec()
    verification: VerificationSpec = VerificationSpec()
    campaign: CampaignSection = CampaignSection()
    server: ServerSection = ServerSection()

    @field_validator("round", mode="before")
    @classmethod
    def _default_duration(cls, value: object) -> object:
        return {"duration_s": DEFAULT_ROUND_S} | value if isinstance(value, dict) else value

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read the file's text.

        Args:
            text: TOML.
            where: the file's name, for the error texts.

        Raises:
            UsageError: each problem on a line of its own, with the field's name.
        """
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not TOML: {error}") from error
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise UsageError(explain_validation(where, error)) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; raises as :meth:`parse`, and when it cannot be read."""
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise UsageError(f"{path} is too large to be a run.toml")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}; "
                "'barnraise coordinator init --example' prints one to start from"
            ) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: {error}") from error
        return cls.parse(text, str(path))


@dataclass(frozen=True)
class RunFolder:
    """Where ``init`` puts things. The folder may be moved as a whole."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.toml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def join_link(self) -> Path:
        return self.path / "join-link.txt"

    @property
    def anchor_home(self) -> Path:
        return self.path / "anchor"

    @property
    def auditors(self) -> Path:
        return self.path / "auditors"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def troubles(self) -> Path:
        return self.path / "troubles.json"

    @property
    def serving(self) -> bool:
        """Whether a server holds the folder now, on this machine."""
        try:
            with self.hold():
                return False
        except UsageError:
            return True

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the folder's only server; the kernel lets go at the process's end, however it ends.

        Raises:
            UsageError: another server holds it.
        """
        descriptor = os.open(self.path / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another coordinator serves {self.path} already: stop it first"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def settings(self) -> ServerSection:
        """The server's settings.

        Raises:
            UsageError: this is not a run folder, or the file has errors.
        """
        self.require()
        return RunFile.load(self.run_file).server

    def require(self) -> None:
        """Insist that ``init`` made this folder.

        Raises:
            UsageError: it did not.
        """
        if not self.manifest.is_file():
            raise UsageError(
                f"{self.path} is not a run folder: make one with 'barnraise coordinator init', "
                "or name it with --run-dir"
            )

    def read_manifest(self) -> RunManifest:
        """The manifest as ``init`` wrote it.

        Raises:
            UsageError: this is not a run folder, or the file was damaged or edited.
        """
        self.require()
        rule = (
            "it is what the run is and must stay as 'init' wrote it: restore it from a backup, or "
            "make a new run with 'barnraise coordinator init'"
        )
        try:
            manifest = RunManifest.parse(self.manifest.read_bytes())
        except UsageError as error:
            raise UsageError(f"{self.manifest} cannot be used: {error}\n{rule}") from error
        if self.join_link.exists():
            joined = JoinLink.parse(self.join_link.read_text(errors="replace")).run_id
            if joined != manifest.run_id:
                raise UsageError(f"{self.manifest} was changed: {rule}")
        return manifest

    def database_url(self, settings: ServerSection) -> str:
        """The database URL, with a relative SQLite path put into the folder."""
        prefix, relative = "sqlite:///", settings.database.removeprefix("sqlite:///")
        if not settings.database.startswith(prefix) or relative.startswith("/"):
            return settings.database
        return f"{prefix}{(self.path / relative).absolute()}"

    def blobs_url(self, settings: ServerSection) -> str:
        """The checkpoint store's URL, with a relative path put into the folder."""
        if "://" in settings.blobs or Path(settings.blobs).is_absolute():
            return settings.blobs
        return str((self.path / settings.blobs).absolute())


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[ipv6]:port`` -> (host, port).

    Raises:
        UsageError: not such an address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{address!r} is not host:port, such as 0.0.0.0:{DEFAULT_PORT}")
    return host.strip("[]"), int(port)
