"""Faults that fire at one exact point of a real program, and never by the clock.

A *point* is a named place in the program, reached with facts such as round, attempt and chunk.
A *fault* says at which point, with which facts, at the how-manieth time, and what happens there.
Points are installed from outside, in the memory of one process: no program of a run knows of them.

Invariant: a fault fires once, and says so on stderr before it does (``fault_fired``).
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    KILL = "kill"  # SIGKILL to this process
    STOP = "stop"  # SIGSTOP to this process: it stands still until somebody continues it
    FULL_DISK = "full-disk"  # OSError(ENOSPC)
    BREAK = "break"  # ConnectionResetError


@dataclass
class Fault:
    """One thing that goes wrong, once."""

    point: str
    do: Action
    nth: int = 1  # of the times that the point is reached with these facts
    where: Mapping[str, Any] = field(default_factory=dict)  # facts that must be so
    times: int = 1  # how often it fires, from then on
    _seen: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        raw = json.loads(text)
        return cls(**{**raw, "do": Action(raw["do"])})

    def reached(self, facts: Mapping[str, Any]) -> None:
        if any(facts.get(name) != value for name, value in self.where.items()):
            return
        self._seen += 1
        if self.nth <= self._seen < self.nth + self.times:
            self._fire(facts)

    def _fire(self, facts: Mapping[str, Any]) -> None:
        said = {"event": "fault_fired", "point": self.point, "do": self.do, **facts}
        os.write(2, json.dumps(said, default=str).encode() + b"\n")
        match self.do:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Action.FULL_DISK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case Action.BREAK:
                raise ConnectionResetError("broken by the fault injector")


Reached = Callable[..., None]
"""``reached(**facts)``: the program is at the point now."""

Install = Callable[[Reached], None]
"""Puts one point into the program."""

Facts = Callable[..., Mapping[str, Any]]
"""What a point knows, from the arguments of the call that it is in."""


def _nothing(*_: Any, **__: Any) -> Mapping[str, Any]:
    return {}


def before(owner: Any, name: str, facts: Facts = _nothing) -> Install:
    """A point right before ``owner.name`` (function, coroutine or async generator) runs."""

    def install(reached: Reached) -> None:
        original = getattr(owner, name)
        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def waiting(*args: Any, **kwargs: Any) -> Any:
                reached(**facts(*args, **kwargs))
                return await original(*args, **kwargs)

            setattr(owner, name, waiting)
            return

        @functools.wraps(original)
        def calling(*args: Any, **kwargs: Any) -> Any:
            reached(**facts(*args, **kwargs))
            return original(*args, **kwargs)

        setattr(owner, name, calling)

    return install


def after(owner: Any, name: str, facts: Facts = _nothing) -> Install:
    """A point right after ``owner.name`` (function or coroutine) has returned."""

    def install(reached: Reached) -> None:
        original = getattr(owner, name)
        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def waiting(*args: Any, **kwargs: Any) -> Any:
                result = await original(*args, **kwargs)
                reached(**facts(*args, **kwargs))
                return result

            setattr(owner, name, waiting)
            return

        @functools.wraps(original)
        def calling(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            reached(**facts(*args, **kwargs))
            return result

        setattr(owner, name, calling)

    return install


def install(faults: list[Fault], points: Mapping[str, Install]) -> None:
    """Put the points of these faults into this process.

    Raises:
        SystemExit: a point that does not exist: a misspelt fault would never fire.
    """
    for name in dict.fromkeys(fault.point for fault in faults):
        if name not in points:
            sys.exit(f"no such point: {name!r}; known: {', '.join(sorted(points))}")
        mine = [fault for fault in faults if fault.point == name]

        def reached(mine: list[Fault] = mine, **facts: Any) -> None:
            for fault in mine:
                fault.reached(facts)

        points[name](reached)
