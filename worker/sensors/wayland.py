"""When a Wayland compositor last saw somebody: the protocol `ext-idle-notify-v1`_, by its own wire.

KWin, wlroots (sway, labwc, river), Hyprland, niri and COSMIC speak it; Mutter is asked by D-Bus.
A film that keeps the screen awake counts as use.

.. _ext-idle-notify-v1: https://wayland.app/protocols/ext-idle-notify-v1
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from worker.clock import steady_s
from worker.sensors.local_socket import LocalSocket

NOTICE_S = 1.0  # so long nobody did anything when the compositor tells that nobody does

_DISPLAY, _REGISTRY, _CALLBACK, _NOTIFIER, _FIRST_SEAT = 1, 2, 3, 4, 5
_SYNC, _GET_REGISTRY, _BIND, _GET_NOTIFICATION = 0, 1, 0, 1  # requests
_ERROR, _GLOBAL, _DONE, _IDLED, _RESUMED = 0, 0, 0, 0, 1  # events
_MOST_GLOBALS = 1000
_MOST_SEATS = 8


class Wayland:
    """A connection to one compositor, kept: it tells only what happens meanwhile."""

    def __init__(self, display: Path, clock_s: Callable[[], float] = steady_s) -> None:
        """Connect; counts as a use, since none before it is told.

        Args:
            display: its socket, such as ``/run/user/1000/wayland-0``.
            clock_s: steady.

        Raises:
            OSError: no compositor, or it does not tell.
        """
        self._clock_s = clock_s
        self._socket = LocalSocket(str(display))
        try:
            globals_ = self._globals()
            seats = [name for name, what in globals_ if what == "wl_seat"][:_MOST_SEATS]
            notifier = [name for name, what in globals_ if what == "ext_idle_notifier_v1"]
            if not seats or not notifier:
                raise OSError("it does not tell when it is idle")
            self._bind(notifier[0], "ext_idle_notifier_v1", _NOTIFIER)
            self._used_s = dict.fromkeys(self._subscribe(seats), clock_s())
            self._idle: set[int] = set()
        except (OSError, struct.error, UnicodeDecodeError) as error:
            self._socket.close()
            raise OSError(f"no compositor that tells at {display}: {error}") from error

    def close(self) -> None:
        self._socket.close()

    def idle_s(self) -> float:
        """Since the last use of any seat.

        Raises:
            OSError: the compositor is gone.
        """
        self._socket.begin()
        while self._socket.has_more():
            self._hear(*self._event())
        now_s = self._clock_s()
        for notification in self._used_s.keys() - self._idle:
            self._used_s[notification] = now_s
        return now_s - max(self._used_s.values())

    def _hear(self, sender: int, event: int, _: bytes) -> None:
        if sender not in self._used_s:
            return
        if event == _IDLED:
            self._idle.add(sender)
            self._used_s[sender] = self._clock_s() - NOTICE_S
        elif event == _RESUMED:
            self._idle.discard(sender)

    def _subscribe(self, seats: list[int]) -> list[int]:
        """One notification a seat."""
        notifications = []
        for number, name in enumerate(seats):
            seat, notification = _FIRST_SEAT + 2 * number, _FIRST_SEAT + 2 * number + 1
            self._bind(name, "wl_seat", seat)
            wanted = struct.pack("=III", notification, int(NOTICE_S * 1000), seat)
            self._request(_NOTIFIER, _GET_NOTIFICATION, wanted)
            notifications.append(notification)
        return notifications

    def _globals(self) -> list[tuple[int, str]]:
        self._request(_DISPLAY, _GET_REGISTRY, struct.pack("=I", _REGISTRY))
        self._request(_DISPLAY, _SYNC, struct.pack("=I", _CALLBACK))
        found: list[tuple[int, str]] = []
        for _ in range(_MOST_GLOBALS):
            sender, event, body = self._event()
            if (sender, event) == (_CALLBACK, _DONE):
                return found
            if (sender, event) == (_REGISTRY, _GLOBAL):
                name, length = struct.unpack_from("=II", body)
                found.append((name, body[8 : 8 + length - 1].decode()))
        raise OSError("it has no end of globals")

    def _bind(self, name: int, interface: str, new_id: int) -> None:
        text = interface.encode() + b"\0"
        padding = bytes(-len(text) % 4)
        kind = struct.pack("=I", len(text)) + text + padding
        self._request(
            _REGISTRY, _BIND, struct.pack("=I", name) + kind + struct.pack("=II", 1, new_id)
        )

    def _request(self, to: int, opcode: int, body: bytes) -> None:
        self._socket.send(struct.pack("=II", to, (8 + len(body)) << 16 | opcode) + body)

    def _event(self) -> tuple[int, int, bytes]:
        sender, word = struct.unpack("=II", self._socket.receive(8))
        body = self._socket.receive(max(0, (word >> 16) - 8))
        if (sender, word & 0xFFFF) == (_DISPLAY, _ERROR):
            raise OSError("it refuses")
        return sender, word & 0xFFFF, body
