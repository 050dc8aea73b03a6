"""What the environment says of a worker: all that a server or a container needs.

Invariants: read once, where a command begins; a value that cannot be read is an error that names
its variable, and so is a limit that is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from protocol.errors import UsageError
from worker.config import DeviceChoice, Home, WorkerConfig
from worker.limit_texts import LIMITS, limit_from_text, yes_or_no

_LIMIT_PREFIX = "BARNRAISE_LIMITS_"
_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Environment:
    """The variables that are set, typed; None or empty: it is not."""

    link: str = ""
    name: str | None = None
    accepts: bool = False
    invite: str | None = None
    key_file: Path | None = None
    device: str | None = None
    client_mode: bool | None = None
    listen: tuple[str, ...] | None = None
    json_logs: bool | None = None
    log_level: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Environment:
        """Read ``BARNRAISE_*``; an empty variable counts as none.

        Raises:
            UsageError: a value that cannot be read; names the variable.
        """
        given = {key: value.strip() for key, value in variables.items() if value.strip()}

        def flag(name: str) -> bool | None:
            return yes_or_no(name, given[name]) if name in given else None

        def one_of(name: str, known: tuple[str, ...]) -> str | None:
            value = given.get(name)
            if value is not None and value not in known:
                raise UsageError(f"{name}: {value!r} is none of {', '.join(known)}")
            return value

        listen = given.get("BARNRAISE_LISTEN")
        key_file = given.get("BARNRAISE_KEY_FILE")
        return cls(
            link=given.get("BARNRAISE_LINK", ""),
            name=given.get("BARNRAISE_NAME"),
            accepts=bool(flag("BARNRAISE_ACCEPT")),
            invite=given.get("BARNRAISE_INVITE"),
            key_file=Path(key_file) if key_file else None,
            device=one_of("BARNRAISE_DEVICE", get_args(DeviceChoice)),
            client_mode=flag("BARNRAISE_CLIENT_MODE"),
            listen=tuple(part.strip() for part in listen.split(",")) if listen else None,
            json_logs=flag("BARNRAISE_JSON_LOGS"),
            log_level=one_of("BARNRAISE_LOG_LEVEL", _LOG_LEVELS),
            limits=_limits(given),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Those for :meth:`WorkerConfig.with_options`."""
        return {
            "name": self.name,
            "invite": self.invite,
            "device": self.device,
            "client_mode": self.client_mode,
            "listen": self.listen,
        }

    def over(self, config: WorkerConfig) -> WorkerConfig:
        """A configuration with what the environment says instead."""
        named = _naming("BARNRAISE_NAME, _INVITE or _LISTEN", config, self.settings)
        agreed = replace(named, confirmed=named.confirmed or self.accepts)
        return agreed.with_limits(**self.limits)

    def join_config(self) -> WorkerConfig:
        """The configuration to join with.

        Raises:
            UsageError: the link is none.
        """
        try:
            config = WorkerConfig(link=self.link, confirmed=False)
        except UsageError as error:
            raise UsageError(f"BARNRAISE_LINK: {error}") from error
        return self.over(config)

    def moves(self, config: WorkerConfig, home: Home) -> bool:
        """Whether the link is another address of the run that was joined.

        Raises:
            UsageError: it is the link of another run.
        """
        if not self.link or self.link == config.link:
            return False
        try:
            link = config.with_options(link=self.link).join_link
        except UsageError as error:
            raise UsageError(f"BARNRAISE_LINK: {error}") from error
        joined = config.join_link
        if link.run_id != joined.run_id or link.root != joined.root:
            raise UsageError(
                f"BARNRAISE_LINK is of another run than {home.path} has joined: give another "
                "folder with BARNRAISE_HOME for another run"
            )
        return link != joined


def _naming(variables: str, config: WorkerConfig, settings: dict[str, Any]) -> WorkerConfig:
    try:
        return config.with_options(**settings)
    except UsageError as error:
        raise UsageError(f"{variables}: {error}") from error


def _limits(given: Mapping[str, str]) -> dict[str, Any]:
    limits = {}
    for variable, text in given.items():
        if not variable.startswith(_LIMIT_PREFIX):
            continue
        name = variable.removeprefix(_LIMIT_PREFIX).lower()
        if name not in LIMITS:
            known = ", ".join(_LIMIT_PREFIX + one.upper() for one in LIMITS)
            raise UsageError(f"{variable} is no limit; there are: {known}")
        limits[name] = limit_from_text(name, text, variable)
    return limits
