"""Where a worker lives and what its owner allows: parsed once, at the entry point.

Invariants:

* Explicit options win over the environment, the environment over the config file, the file
  over defaults; a malformed value raises, it never becomes a default.
* Everything that a worker writes lies in its home folder, mode 0700.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from protocol.errors import UsageError
from protocol.limits import MAX_DISPLAY_NAME_CHARS, MAX_MULTIADDR_CHARS, MAX_MULTIADDRS
from protocol.link import JoinLink
from worker.devices import CHOICES, DEVICES, MAX_MEMBERS, is_device_choice
from worker.limits import Limits
from worker.small_file import replace_text

HOME_VARIABLE = "BARNRAISE_HOME"
ClientMode = Literal["auto"] | bool
"""``auto``: whether others can connect to this machine is measured (:mod:`worker.reachability`)."""

_MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS, 108 on Linux
_MAX_INVITE_CHARS = 64
_MAX_CONFIG_BYTES = 64 << 10


@dataclass(frozen=True)
class Home:
    """The folder of one worker: key, config, journal, caches, control socket."""

    path: Path

    @property
    def identity(self) -> Path:
        return self.path / "worker.key"

    @property
    def config(self) -> Path:
        return self.path / "worker.toml"

    @property
    def delegation(self) -> Path:
        """The donor's word that this device works for it, where it does (worker.delegation)."""
        return self.path / "delegation.txt"

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    @property
    def manifest(self) -> Path:
        """The run manifest, canonical."""
        return self.path / "run-manifest.json"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def updates(self) -> Path:
        return self.path / "updates"

    @property
    def unit(self) -> Path:
        """The unit under way, as it was a moment ago: what a kill leaves to go on from."""
        return self.path / "unit"

    def snapshot(self, assignment_id: bytes) -> Path:
        """Of one unit; in :attr:`unit`."""
        return self.unit / assignment_id.hex()

    @property
    def inputs(self) -> Path:
        """What was reduced here, as long as audits may ask for it."""
        return self.path / "inputs"

    @property
    def answers(self) -> Path:
        """The answers that were given to audits."""
        return self.path / "answers"

    @property
    def scratch(self) -> Path:
        """Half-finished downloads and what passes between daemon and trainer."""
        return self.path / "scratch"

    @property
    def energy(self) -> Path:
        """What was trained here has cost, in joules (worker.energy_book)."""
        return self.path / "energy.json"

    @property
    def tuning(self) -> Path:
        """How this machine trains best, as was measured."""
        return self.path / "tuning.json"

    @property
    def compiled(self) -> Path:
        """Code that was compiled for this machine's processor; made when it is needed."""
        return self.path / "compiled"

    @property
    def last_uses(self) -> Path:
        """In which order the blobs were used."""
        return self.path / "last-uses.txt"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def line(self) -> Path:
        """Where gRPC connects to, to have its traffic metered."""
        return self.path / "line.sock"

    @property
    def traffic(self) -> Path:
        """What went over the network today."""
        return self.path / "traffic.json"

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            UsageError: the folder cannot be made, or its path is too long for a socket.
        """
        if len(os.fsencode(self.socket)) > _MAX_SOCKET_PATH_BYTES:
            raise UsageError(
                f"the path {self.path} is too long for a control socket; "
                "give a shorter folder with --home"
            )
        try:
            data = (self.blobs, self.updates, self.unit, self.inputs, self.answers, self.scratch)
            for folder in (self.path, *data):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the folder {error.filename}: {error.strerror}; "
                "give another with --home"
            ) from error


@dataclass(frozen=True)
class WorkerConfig:
    """What ``join`` writes and ``run`` reads."""

    link: str
    name: str = ""
    device: str = "auto"  # or cpu, mps, cuda, cuda:1 ...
    devices: tuple[str, ...] = ()  # several: each gets a folder and a daemon (worker.members)
    members: int = 1  # daemons that share this machine
    member: int = 0  # which of them this is
    micro_batch_sequences: int = 0  # at a time; 0: as measured (worker.tuning)
    autocast_bf16: bool = False
    client_mode: ClientMode = "auto"  # true: no inbound port; false: has one, whatever is measured
    nat_port_map: bool = False  # ask the router for a port (UPnP, NAT-PMP)
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    invite: str = ""  # where the organiser admits by invitation
    publish_energy: bool = False  # tell everybody what this device's own meter says
    evidence_mib: int = 2048  # most disk for what audits may ask for; at most a tenth of the free
    confirmed: bool = True  # false: joined by a script, and nobody has agreed yet
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        JoinLink.parse(self.link)
        _check(len(self.invite) <= _MAX_INVITE_CHARS, "invite", "is not an invitation's token")
        _check(len(self.name) <= MAX_DISPLAY_NAME_CHARS, "name", "is at most 64 characters")
        _check(is_device_choice(self.device), "device", f"is {CHOICES}")
        _check(len(self.devices) <= MAX_MEMBERS, "devices", f"holds at most {MAX_MEMBERS}")
        for device in self.devices:
            _check(is_device_choice(device) and device != "auto", "devices", f"holds {DEVICES}")
        _check(1 <= self.members <= MAX_MEMBERS, "members", f"is between 1 and {MAX_MEMBERS}")
        _check(0 <= self.member < self.members, "member", "is one of the members, from 0")
        mode = self.client_mode
        _check(mode == "auto" or type(mode) is bool, "client_mode", 'is "auto", true or false')
        _check(self.micro_batch_sequences >= 0, "micro_batch_sequences", "must not be negative")
        _check(self.evidence_mib >= 0, "evidence_mib", "must not be negative")
        for key in ("listen", "announce"):
            addresses = getattr(self, key)
            _check(len(addresses) <= MAX_MULTIADDRS, key, f"holds at most {MAX_MULTIADDRS}")
            for address in addresses:
                _check(
                    address.startswith("/") and len(address) <= MAX_MULTIADDR_CHARS,
                    key,
                    "holds multiaddresses such as /ip4/0.0.0.0/tcp/31337",
                )

    @property
    def join_link(self) -> JoinLink:
        return JoinLink.parse(self.link)

    def with_options(self, **options: Any) -> WorkerConfig:
        """A copy with every option that is not None."""
        return replace(self, **{key: value for key, value in options.items() if value is not None})

    def with_limits(self, **limits: Any) -> WorkerConfig:
        """A copy with every limit that is not None."""
        given = {key: value for key, value in limits.items() if value is not None}
        return replace(self, limits=replace(self.limits, **given))

    def save(self, path: Path) -> None:
        """Write as TOML, atomically, mode 0600."""
        settings = asdict(self)
        limits = settings.pop("limits")
        lines = [
            "# What this worker does and may use. A running one takes changed limits at once by",
            "# 'barnraise worker limits --reload', the rest at its next start.",
            *_as_toml(settings),
            "",
            "[limits]",
            *_as_toml(limits),
        ]
        replace_text(path, "\n".join(lines) + "\n", durable=True)

    @classmethod
    def load(cls, path: Path) -> WorkerConfig:
        """Read what :meth:`save` wrote.

        Raises:
            UsageError: missing, damaged, or a value out of range; says which.
        """
        try:
            if path.stat().st_size > _MAX_CONFIG_BYTES:
                raise UsageError(f"{path} is too large to be a worker's configuration")
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(
                f"no run was joined in {path.parent}: run 'barnraise worker join LINK' first, "
                "or give the folder with --home"
            ) from error
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} is damaged ({error}): repair it, or delete it and join the run again"
            ) from error
        return cls(**_typed(raw, path))

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> WorkerConfig:
        """What ``dataclasses.asdict`` made of one, perhaps by way of JSON.

        Raises:
            UsageError: it is of another version.
        """
        return cls(**_typed(settings, Path("the settings")))


def resolve_home(option: Path | None, environment: Mapping[str, str]) -> Home:
    """``--home``, else ``BARNRAISE_HOME``, else the platform's folder for user data."""
    if option is not None:
        return Home(option.absolute())
    if environment.get(HOME_VARIABLE):
        return Home(Path(environment[HOME_VARIABLE]).absolute())
    import platformdirs

    return Home(Path(platformdirs.user_data_dir("barnraise")) / "worker")


def _as_toml(settings: Mapping[str, Any]) -> list[str]:
    # A JSON string, number, boolean or array of strings is the same text in TOML.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def _typed(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {one.name: one for one in fields(WorkerConfig)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "limits" and isinstance(value, dict):
            values[key] = Limits.from_toml(value)
            continue
        if key == "threads":  # where it stood before there were other limits
            values["limits"] = Limits.from_toml({key: value, **raw.get("limits", {})})
            continue
        if key not in known:
            raise UsageError(f"{path}: unknown setting {key!r}; remove it, or upgrade barnraise")
        default = known[key].default
        if isinstance(default, tuple):
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
            value = tuple(value) if fits else value
        elif key == "client_mode":
            fits = value == "auto" or type(value) is bool
        else:
            fits = type(value) is type(default) if key != "link" else isinstance(value, str)
        if not fits:
            raise UsageError(f"{path}: {key} = {value!r} has the wrong type")
        values[key] = value
    if "link" not in values:
        raise UsageError(f"{path}: the setting 'link' is missing; join the run again")
    return values


def _check(holds: bool, key: str, rule: str) -> None:
    if not holds:
        raise UsageError(f"worker configuration: {key} {rule}")
