"""Who is served first when not everybody can be.

Invariants:

* Work in progress is bounded, in all and for each key and address. What finds no place is refused
  at once, with the time to come back: strangers never queue in memory.
* Known devices have places of their own. Whatever strangers ask for takes none of them, and one
  address or key takes only its share; so an honest device waits at most for a few calls of each
  of the others.
* A place is given back when its call ends, however it ends.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from protocol.errors import RateLimited
from protocol.identity import PeerId

OTHER_FILES = 1024
"""Descriptors that are not clients' connections: database, checkpoints, children, logs."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Visitor:
    """Who calls."""

    address: str
    key: PeerId | None  # of a known device, when the call or its connection has proven it


@dataclass(frozen=True)
class Share:
    """How many places there are, and how many of them one key and one address may hold."""

    overall: int
    per_address: int
    per_key: int = 0  # 0: only the address counts


@dataclass(frozen=True)
class Shares:
    """Places for one kind of work."""

    known: Share
    strangers: Share


CALLS = Shares(Share(1024, per_address=128, per_key=8), Share(64, per_address=16))
"""Calls that wait for the database, which takes them in batches, one after the other."""

DOWNLOADS = Shares(Share(512, per_address=64, per_key=8), Share(128, per_address=32))
"""Each holds a piece of at most 1 MiB."""

UPLOADS = Shares(Share(64, per_address=16, per_key=2), Share(16, per_address=2))
"""Each holds at most 16 pieces of 1 MiB."""

WATCHES = Shares(Share(16_384, per_address=1024, per_key=4), Share(0, per_address=0))
"""Strangers have nothing to watch."""

OPEN = Shares(Share(24_576, per_address=4096, per_key=256), Share(4096, per_address=2048))
"""Calls that are not over: the library may hold 64 KiB of each that its client does not read."""

RETRY_AFTER_S = 2.0


class Places:
    """Places for one kind of work, taken and given back."""

    def __init__(self, what: str, shares: Shares) -> None:
        """``what`` is a plural for people: ``downloads``."""
        self._what = what
        self._shares = shares
        self._taken: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def one(self, visitor: Visitor) -> Iterator[None]:
        """Hold a place.

        Raises:
            RateLimited: there is none now; says when to come back.
        """
        holds = self._holds(visitor)
        for hold, most, whose in holds:
            if self._taken[hold] >= most:
                raise retry(f"{most} {self._what} {whose} are open already", RETRY_AFTER_S)
        names = [hold for hold, _, _ in holds]
        self._taken.update(names)
        try:
            yield
        finally:
            self._taken.subtract(names)
            for name in names:
                if not self._taken[name]:
                    del self._taken[name]

    def _holds(self, visitor: Visitor) -> list[tuple[tuple[str, str], int, str]]:
        if visitor.key is None:
            share = self._shares.strangers
            return [
                (("stranger at", visitor.address), share.per_address, "from this address"),
                (("all", "strangers"), share.overall, "of devices that are not enrolled"),
            ]
        share = self._shares.known
        return [
            (("key", visitor.key), share.per_key, "of this device"),
            (("known at", visitor.address), share.per_address, "from this address"),
            (("all", "known"), share.overall, "in all"),
        ]


def retry(problem: str, after_s: float) -> RateLimited:
    """A refusal that says when to come back, to people and to programs."""
    return RateLimited(f"{problem}: try again in {after_s:.1f} s", retry_after_s=after_s)


def allow_many_connections() -> int:
    """Raise the limit of open files as far as the system lets us.

    Returns:
        How many connections fit into it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = max(64, hard - OTHER_FILES)
    _log.debug("open_files", limit=hard, connections=connections)
    return connections
