"""A sorted list that is cheap to change and free to keep: the order of a board.

Invariants:

* Entries are distinct and comparable: what an order is by, then the key, so ties are stable.
* A frozen order never changes: what a :class:`Ranking` changes later, it copies first, one chunk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any

Entry = tuple[Any, ...]
"""What the order is by, then the key."""

_KEY = itemgetter(-1)

_CHUNK = 512
"""Entries in a chunk at first: a change moves and copies so many, not all."""


@dataclass(frozen=True)
class Order:
    """An order at one moment."""

    chunks: tuple[list[Entry], ...]
    last: tuple[Entry, ...]  # of each chunk
    starts: tuple[int, ...]  # place of the first entry of each chunk; then the length

    def __len__(self) -> int:
        return self.starts[-1]

    def page(self, first: int, count: int) -> list[str]:
        """Keys at the places [first, first + count)."""
        keys: list[str] = []
        at = max(0, bisect_left(self.starts, first + 1) - 1)
        while at < len(self.chunks) and len(keys) < count:
            begin = max(0, first - self.starts[at])
            part = self.chunks[at][begin : begin + count - len(keys)]
            keys += [entry[-1] for entry in part]
            at += 1
        return keys

    def walk(self) -> Iterator[str]:
        """All keys, in order."""
        return map(_KEY, chain.from_iterable(self.chunks))

    def before(self, entry: Entry) -> int:
        """How many entries come before this one, which need not be there."""
        at = bisect_left(self.last, entry)
        if at == len(self.chunks):
            return len(self)
        return self.starts[at] + bisect_left(self.chunks[at], entry)


class Ranking:
    """An order as it changes; one thread changes it."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        everything = sorted(entries)
        self._chunks = [
            everything[first : first + _CHUNK] for first in range(0, len(everything), _CHUNK)
        ]
        self._last = [chunk[-1] for chunk in self._chunks]
        self._frozen = [False] * len(self._chunks)  # an order holds this chunk

    def replace(self, old: Entry | None, new: Entry | None) -> None:
        """Take an entry out and put another in, where there is one."""
        if old == new:
            return
        if old is not None:
            self._remove(old)
        if new is not None:
            self._insert(new)

    def freeze(self) -> Order:
        """The order as it is now."""
        self._frozen = [True] * len(self._chunks)
        starts = accumulate((len(chunk) for chunk in self._chunks), initial=0)
        return Order(tuple(self._chunks), tuple(self._last), tuple(starts))

    def _remove(self, entry: Entry) -> None:
        at = bisect_left(self._last, entry)
        chunk = self._own(at)
        place = bisect_left(chunk, entry)
        assert chunk[place] == entry
        del chunk[place]
        if chunk:
            self._last[at] = chunk[-1]
        else:
            del self._chunks[at], self._last[at], self._frozen[at]

    def _insert(self, entry: Entry) -> None:
        if not self._chunks:
            self._chunks, self._last, self._frozen = [[entry]], [entry], [False]
            return
        at = min(bisect_left(self._last, entry), len(self._chunks) - 1)
        chunk = self._own(at)
        chunk.insert(bisect_left(chunk, entry), entry)
        self._last[at] = chunk[-1]
        if len(chunk) > 2 * _CHUNK:
            halves = [chunk[:_CHUNK], chunk[_CHUNK:]]
            self._chunks[at : at + 1] = halves
            self._last[at : at + 1] = [half[-1] for half in halves]
            self._frozen[at : at + 1] = [False, False]

    def _own(self, at: int) -> list[Entry]:
        if self._frozen[at]:
            self._chunks[at] = self._chunks[at].copy()
            self._frozen[at] = False
        return self._chunks[at]
