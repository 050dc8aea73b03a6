"""Where blobs can be had, and who has served other bytes than those asked for.

Invariants:

* Peers that announced the run's weights come first, then the anchors, then the coordinator's store.
* A source that lied is asked for nothing until its time is over, each time for longer; it is named
  in the log, to the owner and to the coordinator. Nobody can prove it, so it costs nobody credit.
* A source that could not serve a blob is not asked for it again for a while.
* What is remembered is bounded: identities cost nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from protocol.errors import PeerFault, TransientError
from protocol.wire import service_pb2 as api
from worker.session import Session

if TYPE_CHECKING:
    from protocol.envelope import Signed
    from protocol.wire import records_pb2 as wire
    from worker.swarm import Swarm

log = structlog.get_logger()

COORDINATOR = "coordinator"

MAX_REPORTED = 16
"""Bad sources named in a heartbeat: the newest."""

_MAX_PEERS = 4
_MAX_LIARS = 256
_MAX_REFUSALS = 1024
_LIED_S, _LIED_MOST_S = 600.0, 86_400.0
_REFUSED_S = 30.0
_LOOKUP_S = 10.0

Pieces = Callable[[bytes, int], AsyncIterator[api.Piece]]
"""``(sha256, offset) -> pieces`` from there on; not checked."""


@dataclass(frozen=True)
class Source:
    """One place to fetch from."""

    name: str  # a PeerID, or COORDINATOR
    pieces: Pieces
    organiser: bool = False
    reserve: bool = False  # used when the others do not do


@dataclass(frozen=True)
class _Lies:
    times: int
    until_s: float


class Sources:
    """The sources of one run, as far as this process knows them."""

    def __init__(self, session: Session, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock_s = clock_s
        self._liars: dict[str, _Lies] = {}
        self._refused_until_s: dict[tuple[str, bytes], float] = {}
        self.swarm: Swarm | None = None
        self.anchor_ids: tuple[str, ...] = ()
        self.head: Callable[[], Signed[wire.RunHead] | None] = lambda: None

    @property
    def bad(self) -> list[str]:
        """PeerIDs that served other bytes than asked for, the newest last."""
        return [name for name in self._liars if name != COORDINATOR][-MAX_REPORTED:]

    async def of(self, sha256: bytes, state_digest: bytes | None = None) -> list[Source]:
        """The sources of a blob, in the order in which they should be used.

        Args:
            state_digest: of the state that it belongs to; else the holders of the newest are asked.
        """
        coordinator = Source(COORDINATOR, self._session.blob_pieces, organiser=True, reserve=True)
        swarm = self.swarm
        if swarm is None:
            return [coordinator]
        names = dict.fromkeys([*await self._holders(swarm, state_digest), *self.anchor_ids])
        names.pop(swarm.peer_id, None)
        peers = [self._peer(swarm, name) for name in names if self._may_ask(name, sha256)]
        return [*peers, coordinator]

    def convict(self, name: str, why: str) -> None:
        """A source served other bytes than asked for."""
        known = self._liars.pop(name, None)
        times = 1 if known is None else known.times + 1
        for_s = min(_LIED_S * 2 ** (times - 1), _LIED_MOST_S)
        log.warning("source served wrong bytes, dropped", source=name, why=why, for_s=for_s)
        self._liars[name] = _Lies(times, self._clock_s() + for_s)
        while len(self._liars) > _MAX_LIARS:
            del self._liars[next(iter(self._liars))]

    def refused(self, name: str, sha256: bytes) -> None:
        """A source could not serve a blob."""
        self._refused_until_s.pop((name, sha256), None)
        self._refused_until_s[name, sha256] = self._clock_s() + _REFUSED_S
        while len(self._refused_until_s) > _MAX_REFUSALS:
            del self._refused_until_s[next(iter(self._refused_until_s))]

    def _may_ask(self, name: str, sha256: bytes) -> bool:
        now_s = self._clock_s()
        lies = self._liars.get(name)
        if lies is not None and now_s < lies.until_s:
            return False
        return now_s >= self._refused_until_s.get((name, sha256), 0.0)

    async def _holders(self, swarm: Swarm, state_digest: bytes | None) -> list[str]:
        if state_digest is None:
            head = self.head()
            if head is None:
                return []
            state_digest = head.record.state_digest
        try:
            async with asyncio.timeout(_LOOKUP_S):
                holders = list(await swarm.weight_holders(state_digest))
        except (PeerFault, TransientError, TimeoutError) as error:
            log.info("the swarm names no holders now", problem=str(error) or "no answer in time")
            return []
        random.shuffle(holders)
        return holders[:_MAX_PEERS]

    def _peer(self, swarm: Swarm, name: str) -> Source:
        def pieces(sha256: bytes, offset: int) -> AsyncIterator[api.Piece]:
            return swarm.blob_pieces(name, sha256, offset)

        return Source(name, pieces, organiser=name in self.anchor_ids)
