"""Fetches the data that the next unit will probably need, while this one trains.

Leases take the lowest free sequences of the epoch, so the next round begins where this one ends,
and a member's next lease lies about as far behind its present one as a whole round is long. That
length is what the rounds before merged: the signed heads tell it. The weights of the next round are
no guess: they come out of the reduce.

Invariants:

* It runs only while a unit is being trained and nothing forbids it: with the unit's last step, or a
  word of the governor or of the network budget, it stops; what came is kept and gone on with.
* One shard at a time. Nothing goes for a guess that was used since the unit under way began.
* Wrong guesses cost at most :data:`MOST_SHARDS` shards and :data:`MOST_BYTES` for each unit, and
  nothing at all of what a unit waits for.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from protocol.dataset import DatasetManifest, ShardInfo
from protocol.errors import PeerFault, TransientError, UsageError
from protocol.wire import records_pb2 as wire
from worker.data_source import DataSource
from worker.news import News
from worker.race import unless

log = structlog.get_logger()

MOST_SHARDS = 4
MOST_BYTES = 256 << 20
"""Fetched ahead during one unit, at most."""

MOST_PLACES = 10
"""Where the next unit may begin in more shards than this, nothing is guessed."""


@dataclass(frozen=True)
class Stretch:
    """Where a unit lies in its epoch, and how long its round seems to be; in sequences."""

    start: int
    end: int
    round_length: int


class Rounds:
    """How many sequences a round takes, from the heads that were seen."""

    def __init__(self, sequence_length: int) -> None:
        self._sequence_length = sequence_length
        self._last: tuple[int, int] | None = None  # settled rounds, merged sequences
        self._length = 0

    def stretch(self, record: wire.Assignment, head: wire.RunHead) -> Stretch:
        """What is known when a unit begins.

        Args:
            record: the unit's assignment.
            head: of its round.
        """
        merged = head.merged_tokens // self._sequence_length
        if self._last is not None and head.settled_rounds > self._last[0]:
            self._length = (merged - self._last[1]) // (head.settled_rounds - self._last[0])
        elif self._last is None and head.settled_rounds:
            self._length = merged // head.settled_rounds
        self._last = head.settled_rounds, merged
        own = record.end_sequence - record.start_sequence
        return Stretch(record.start_sequence, record.end_sequence, max(own, self._length))


def ahead(dataset: DatasetManifest, now: Stretch) -> list[ShardInfo]:
    """Shards to have for the next unit, the likeliest first: those where it is expected, then the
    rest of the next round nearest to there; none where it may be in too many. Epochs follow each
    other."""
    starts = list(itertools.accumulate((s.sequences for s in dataset.shards), initial=0))
    total, count = starts[-1], len(dataset.shards)

    def shard_at(place: int) -> int:
        epochs, place = divmod(place, total)
        return epochs * count + bisect.bisect_right(starts, place) - 1

    length, expected = now.end - now.start, now.start + now.round_length
    first, last = shard_at(expected), shard_at(expected + length - 1)
    # Wherever in its round this unit lies, the next round lies in between.
    least, most = shard_at(now.end), shard_at(now.start + 2 * now.round_length - 1)
    if shard_at(expected + now.round_length - length) - first >= MOST_PLACES:
        return []
    likely = range(first, min(last + 1, first + count))
    around = (place for step in range(1, MOST_SHARDS + 1) for place in (last + step, first - step))
    places = [*likely, *(place for place in around if least <= place <= most)]
    return [dataset.shards[place] for place in dict.fromkeys(p % count for p in places)][
        :MOST_SHARDS
    ]


class Prefetch:
    """See the module; :meth:`run` it as a task."""

    def __init__(
        self,
        data: DataSource,
        sequence_length: int,
        spares: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """
        Args:
            data: of the run.
            sequence_length: of the run.
            spares: asked before each shard: whether the network has so many bytes to spare.
        """
        self._data = data
        self._rounds = Rounds(sequence_length)
        self._unit: Stretch | None = None
        self._forbidden_by: set[str] = set()
        self._change = News()
        self._spares = spares
        self.fetched = 0

    @contextmanager
    def during(self, record: wire.Assignment, head: wire.RunHead) -> Iterator[None]:
        """While this block lasts, a unit of this assignment is trained."""
        self._unit = self._rounds.stretch(record, head)
        self._change.tell()
        try:
            yield
        finally:
            self._unit = None
            self._change.tell()

    def forbid(self, who: str, holds: bool) -> None:
        """Somebody wants nothing fetched that nobody has asked for, or has no objection any more;
        what is on its way stops at once."""
        if holds != (who in self._forbidden_by):
            self._forbidden_by ^= {who}
            self._change.tell()

    async def heed(self, works: Callable[[], bool], news: News) -> None:
        """Fetch nothing while this machine may not work. Run it as a task.

        Args:
            works: whether it may.
            news: told when that changes.
        """
        while True:
            self.forbid("governor", not works())
            await news.wait()

    async def run(self) -> None:
        """Fetch ahead during every unit, for ever."""
        done: Stretch | None = None
        while True:
            unit = self._wanted()
            if unit is None or unit is done:
                await self._change.wait()
            elif await unless(self._fetch_ahead(unit), self._called_off(unit)):
                done = unit

    def _wanted(self) -> Stretch | None:
        return None if self._forbidden_by else self._unit

    async def _called_off(self, unit: Stretch) -> None:
        while self._wanted() is unit:
            await self._change.wait()

    async def _fetch_ahead(self, unit: Stretch) -> bool:
        try:
            room_bytes = MOST_BYTES
            for shard in ahead(await self._data.dataset(), unit):
                room_bytes -= shard.bytes
                if room_bytes < 0 or not self._spares(shard.bytes):
                    break
                if not await asyncio.to_thread(self._data.is_here, shard.sha256):
                    await self._data.shard(bytes.fromhex(shard.sha256), shard.bytes)
                    self.fetched += 1
        except (TransientError, PeerFault, UsageError) as error:
            log.info("nothing fetched ahead", problem=str(error))
        return True
