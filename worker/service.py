"""A worker as a service of its owner's account: systemd on Linux and WSL, launchd on macOS.

Pure texts first; :class:`Systemd` and :class:`Launchd` put them where they belong and speak to the
manager. Everything is the user's own: nothing here needs root.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protocol.errors import UsageError
from worker.config import Home, WorkerConfig

_STOP_S = 60
_RESTART_S = 30
_MOST_NICE = 5  # of the daemon; training has the owner's own number
_MANAGER_TIMEOUT_S = 90

UNIT = """\
[Unit]
Description=Barnraise worker in {home_text}
# The worker waits by itself for the network and the coordinator: it may start before both.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec={restart_s}
# 2: something that the owner has to mend first; the journal says what.
RestartPreventExitStatus=2
# To it alone: it sees its own processes off, then the rest is killed.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={stop_s}
# A trainer that the kernel killed for memory is begun again with smaller batches.
OOMPolicy=continue
Nice={nice}
UMask=0077
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

[Install]
WantedBy=default.target
"""


class Manager(Protocol):
    """Who keeps a worker running."""

    @property
    def file(self) -> Path:
        """Where its description of the service lies."""
        ...

    def text(self) -> str:
        """That description."""
        ...

    def install(self) -> list[str]:
        """Write it and start the service; returns what the owner should know.

        Raises:
            UsageError: there is no such manager here, or it refuses; nothing is left.
        """
        ...

    def remove(self) -> None:
        """Stop the service and remove its description."""
        ...


def manager(home: Home, config: WorkerConfig | None, environment: Mapping[str, str]) -> Manager:
    """The manager of this platform."""
    nice = min(config.limits.nice, _MOST_NICE) if config is not None else _MOST_NICE
    command = (*program(), "worker", "run", "--home", str(home.path), "--json-logs")
    if sys.platform == "darwin":
        return Launchd(home, command, nice, Path.home() / "Library")
    configured = environment.get("XDG_CONFIG_HOME")
    folder = Path(configured) if configured else Path.home() / ".config"
    return Systemd(home, command, nice, folder, environment)


def program() -> tuple[str, ...]:
    """This very installation's command, by its absolute path."""
    script = Path(sys.executable).with_name("barnraise")
    if os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-m", "barnraise")


def service_name(home: Home, environment: Mapping[str, str]) -> str:
    """One for each home folder, the plain name for the usual one."""
    from worker.config import resolve_home

    usual = resolve_home(None, {k: v for k, v in environment.items() if k != "BARNRAISE_HOME"})
    if home == usual:
        return "barnraise-worker"
    return f"barnraise-worker-{hashlib.sha256(os.fsencode(home.path)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Systemd:
    """A unit of the user's own systemd."""

    home: Home
    command: Sequence[str]
    nice: int
    folder: Path  # the user's configuration
    environment: Mapping[str, str]

    @property
    def unit(self) -> str:
        return service_name(self.home, self.environment) + ".service"

    @property
    def file(self) -> Path:
        return self.folder / "systemd" / "user" / self.unit

    def text(self) -> str:
        return UNIT.format(
            home_text=_specifiers(str(self.home.path)),
            command=" ".join(_systemd_word(word) for word in self.command),
            restart_s=_RESTART_S,
            stop_s=_STOP_S,
            nice=self.nice,
        )

    def install(self) -> list[str]:
        self._require()
        _write(self.file, self.text().encode())
        try:
            _call("systemctl", "--user", "daemon-reload")
            _call("systemctl", "--user", "enable", self.unit)
            _call("systemctl", "--user", "restart", self.unit)
        except UsageError:
            self.file.unlink(missing_ok=True)
            raise
        notes = [f"Its log: journalctl --user -u {self.unit} -f"]
        user = self.environment.get("USER", "")
        if not Path("/var/lib/systemd/linger", user or "-").exists():
            notes.append(
                "It ends when you log out and starts when you log in. To have it run always: "
                f"loginctl enable-linger {user}".rstrip()
            )
        return notes

    def remove(self) -> None:
        if self.file.exists():
            if shutil.which("systemctl"):
                _call("systemctl", "--user", "disable", "--now", self.unit, check=False)
            self.file.unlink()
            if shutil.which("systemctl"):
                _call("systemctl", "--user", "daemon-reload", check=False)

    def _require(self) -> None:
        if not shutil.which("systemctl"):
            raise UsageError(f"there is no systemd here: {_instead(self.command)}")
        done = _call("systemctl", "--user", "show-environment", check=False)
        if done.returncode:
            raise UsageError(
                f"your own systemd does not answer ({_said(done)}): log in to a session of your "
                "own (not by su or sudo), or, in WSL, put 'systemd=true' under [boot] in "
                f"/etc/wsl.conf; without it, {_instead(self.command)}"
            )


@dataclass(frozen=True)
class Launchd:
    """An agent of the user's launchd."""

    home: Home
    command: Sequence[str]
    nice: int
    library: Path

    @property
    def label(self) -> str:
        return "org.barnraise." + service_name(self.home, os.environ).removeprefix("barnraise-")

    @property
    def file(self) -> Path:
        return self.library / "LaunchAgents" / f"{self.label}.plist"

    @property
    def log(self) -> Path:
        return self.library / "Logs" / f"{self.label}.log"

    def text(self) -> str:
        agent = {
            "Label": self.label,
            "ProgramArguments": list(self.command),
            "RunAtLoad": True,
            # Again after a crash; not after a finish, and not at once after something to be mended.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": _RESTART_S,
            "ExitTimeOut": _STOP_S,
            "ProcessType": "Background",
            "Nice": self.nice,
            "Umask": 0o077,
            "StandardErrorPath": str(self.log),
        }
        return plistlib.dumps(agent).decode()

    def install(self) -> list[str]:
        _write(self.file, self.text().encode())
        domain = f"gui/{os.getuid()}"
        try:
            _call("launchctl", "bootout", f"{domain}/{self.label}", check=False)
            _call("launchctl", "bootstrap", domain, str(self.file))
        except UsageError:
            self.file.unlink(missing_ok=True)
            raise
        return [f"Its log: {self.log}", "It runs while you are logged in."]

    def remove(self) -> None:
        if self.file.exists():
            _call("launchctl", "bootout", f"gui/{os.getuid()}/{self.label}", check=False)
            self.file.unlink()


def _instead(command: Sequence[str]) -> str:
    return (
        "have your service manager, or a line '@reboot' in 'crontab -e', run this: "
        f"{shlex.join(command)} (--print shows what a unit would be)"
    )


def _specifiers(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text).replace("%", "%%")


def _systemd_word(word: str) -> str:
    """One argument of ExecStart (systemd.service(5), "Command lines")."""
    if not word.isprintable():
        raise UsageError(f"{word!r} cannot be written into a unit: give another folder")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = escaped == word and not any(c.isspace() or c in "'\";" for c in word)
    return word if plain else f'"{escaped}"'


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".new")
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error


def _call(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MANAGER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{' '.join(command)}: {error}") from error
    if check and done.returncode:
        raise UsageError(f"'{' '.join(command)}' failed: {_said(done)}")
    return done


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stderr or done.stdout).split())[:500] or f"exit code {done.returncode}"
