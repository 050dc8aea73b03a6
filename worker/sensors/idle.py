"""How long ago somebody used this machine: the most recent use counts, whoever tells of it.

Who may tell: terminals, local and remote (when they were last read from); GNOME, by D-Bus; other
Wayland compositors; X11 servers; macOS. Where a screen is there that none of these can ask,
logind's hint is taken; without that either nothing is known: a terminal that nobody types at says
nothing of a mouse that is moved.

Invariant: who does not answer costs half a second now and then, never more.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from worker.clock import steady_s
from worker.sensors.dbus import Bus, Question
from worker.sensors.wayland import Wayland
from worker.sensors.x11 import X11

_ASK_AGAIN_S = 60.0  # who did not answer
_MOST = 8  # of a kind

_GNOME = Question(
    "org.gnome.Mutter.IdleMonitor",
    "/org/gnome/Mutter/IdleMonitor/Core",
    "org.gnome.Mutter.IdleMonitor",
    "GetIdletime",
)


def _of_logind(name: str) -> Question:
    service, manager = "org.freedesktop.login1", "org.freedesktop.login1.Manager"
    properties = "org.freedesktop.DBus.Properties"
    return Question(service, "/org/freedesktop/login1", properties, "Get", (manager, name))


class Source(Protocol):
    """Somebody to ask; each method raises OSError when there is no answer."""

    def idle_s(self) -> float: ...

    def close(self) -> None: ...


@dataclass
class Gnome:
    """Mutter, on the bus of the session."""

    bus: Bus

    def idle_s(self) -> float:
        return self.bus.number(_GNOME) / 1000

    def close(self) -> None:
        self.bus.close()


@dataclass
class Logind:
    """Coarse: it hears of a session's idleness only once its desktop says so."""

    bus: Bus

    def idle_s(self) -> float:
        if not self.bus.number(_of_logind("IdleHint")):
            return 0.0
        return max(0.0, time.time() - self.bus.number(_of_logind("IdleSinceHint")) / 1e6)

    def close(self) -> None:
        self.bus.close()


@dataclass
class Asking:
    """Keeps a connection to one source; who fails is let alone for a while."""

    connect: Callable[[], Source]
    absent: bool = False  # nobody listens there: a socket that was left behind
    _source: Source | None = None
    _not_before_s: float = 0.0

    def idle_s(self) -> float | None:
        if steady_s() < self._not_before_s:
            return None
        try:
            if self._source is None:
                self._source = self.connect()
            self.absent = False
            return self._source.idle_s()
        except OSError as error:
            self.absent = isinstance(error, (ConnectionRefusedError, FileNotFoundError))
            self.close()
            self._not_before_s = steady_s() + _ASK_AGAIN_S
            return None

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None


@dataclass
class IdleTime:
    """Asks all who may know. What it looks at can be given, and is that of this machine."""

    dev: Path = Path("/dev")
    runtime: Path = field(default_factory=lambda: _runtime_folder(os.environ))
    displays: Path = Path("/tmp/.X11-unix")  # noqa: S108
    authorities: tuple[Path, ...] = field(default_factory=lambda: _authorities(os.environ))
    session_bus: str = field(default_factory=lambda: _session_bus(os.environ))
    system_bus: str = "unix:path=/run/dbus/system_bus_socket"
    kernel_release: Path = Path("/proc/sys/kernel/osrelease")
    _asking: dict[str, Asking] = field(default_factory=dict)

    def seconds(self) -> float | None:
        """Since the last use; None where nothing tells it."""
        if sys.platform == "darwin":
            return _darwin_s()
        if self._in_windows():
            return None
        wayland, x11 = self._displays()
        of_wayland, of_x11 = self._of_wayland(wayland), [one.idle_s() for one in x11]
        told = [typed_ago_s(self.dev, time.time()), *of_wayland, *of_x11]
        with_wayland = any(not one.absent for one in wayland)
        # X11 programs of a Wayland session see only what is meant for them.
        trusted = of_wayland if with_wayland else of_x11
        with_screen = with_wayland or any(not one.absent for one in x11)
        if with_screen and not _known(trusted):
            hint_s = self._asked("logind", lambda: Logind(Bus(self.system_bus))).idle_s()
            if hint_s is None:
                return None
            told.append(hint_s)
        return min(_known(told), default=None)

    def close(self) -> None:
        """Hang up on all."""
        for one in self._asking.values():
            one.close()

    def _of_wayland(self, displays: list[Asking]) -> list[float | None]:
        if not displays:
            return []
        answers = [one.idle_s() for one in displays]
        gnome = self._asked("gnome", lambda: Gnome(Bus(self.session_bus)))
        return answers if _known(answers) else [gnome.idle_s()]

    def _displays(self) -> tuple[list[Asking], list[Asking]]:
        """Sockets of compositors, and of X11 servers."""
        wayland = [path for path in self.runtime.glob("wayland-*") if path.is_socket()]
        x11 = [path for path in self.displays.glob("X*") if path.is_socket()]
        return (
            [self._asked(str(path), partial(Wayland, path)) for path in sorted(wayland)[:_MOST]],
            [
                self._asked(str(path), partial(X11, path, self.authorities))
                for path in sorted(x11)[:_MOST]
            ],
        )

    def _asked(self, name: str, connect: Callable[[], Source]) -> Asking:
        return self._asking.setdefault(name, Asking(connect))

    def _in_windows(self) -> bool:
        """Under WSL: mouse and keyboard belong to Windows, and nothing here sees them."""
        try:
            return "microsoft" in self.kernel_release.read_text().lower()
        except OSError:
            return False


def typed_ago_s(dev: Path, now_s: float) -> float | None:
    """Since somebody typed at a terminal: when it was last read from, to eight seconds or so."""
    read_s: list[float] = []
    for pattern in ("pts/[0-9]*", "tty[0-9]*"):
        for terminal in dev.glob(pattern):
            try:
                read_s.append(terminal.stat().st_atime)
            except OSError:  # it was closed while we looked
                continue
    return max(0.0, now_s - max(read_s)) if read_s else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _runtime_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


def _session_bus(environment: Mapping[str, str]) -> str:
    given = environment.get("DBUS_SESSION_BUS_ADDRESS")
    return given or f"unix:path={_runtime_folder(environment)}/bus"


def _authorities(environment: Mapping[str, str]) -> tuple[Path, ...]:
    given = environment.get("XAUTHORITY")
    usual = (Path.home() / ".Xauthority", _runtime_folder(environment) / "gdm" / "Xauthority")
    return (Path(given), *usual) if given else usual


def _darwin_s() -> float:
    import ctypes

    path = "/System/Library/Frameworks/ApplicationServices.framework/ApplicationServices"
    ask = ctypes.CDLL(path).CGEventSourceSecondsSinceLastEventType
    ask.restype, ask.argtypes = ctypes.c_double, (ctypes.c_int32, ctypes.c_uint32)
    hid_state, any_input = 1, 0xFFFFFFFF
    return float(ask(hid_state, any_input))
