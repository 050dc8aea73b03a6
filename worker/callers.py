"""Who may have another stream served, when many ask.

An identity costs nothing, so all strangers together hold but a share of the streams. Whoever takes
part in a reduce here is familiar and served before them: a member that is turned away because its
roster is not here yet comes again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager

from protocol.limits import MAX_ROSTER_MEMBERS

MAX_STREAMS = 1024
"""Streams served at once; the next ones are closed at once."""

MAX_STREAMS_PER_PEER = 16

MAX_STRANGERS = 128
"""Of the streams served at once, those of peers that take part in no reduce here."""

MAX_STREAMS_PER_STRANGER = 4

STRANGER_S = 120.0
"""A stranger's stream ends after this; blobs are resumable, a reduce is not for strangers."""

MAX_FAMILIAR = 4 * MAX_ROSTER_MEMBERS


class Familiar:
    """The peers of the reduces that were opened here last."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._peers

    def add(self, peers: Iterable[str]) -> None:
        """Remember peers; the ones that were heard of longest ago are forgotten."""
        for peer in peers:
            self._peers[peer] = None
            self._peers.move_to_end(peer)
        while len(self._peers) > MAX_FAMILIAR:
            self._peers.popitem(last=False)


class Callers:
    """Counts the streams that are served, by PeerID."""

    def __init__(self) -> None:
        self.familiar: Container[str] = frozenset()
        self._streams: Counter[str] = Counter()
        self._strangers = 0
        self._all = 0

    def is_stranger(self, peer_id: str) -> bool:
        return peer_id not in self.familiar

    def is_busy(self, peer_id: str) -> bool:
        """Whether one more stream of this caller is one too many."""
        stranger = self.is_stranger(peer_id)
        if self._all >= MAX_STREAMS or (stranger and self._strangers >= MAX_STRANGERS):
            return True
        most = MAX_STREAMS_PER_STRANGER if stranger else MAX_STREAMS_PER_PEER
        return self._streams[peer_id] >= most

    @contextmanager
    def serving(self, peer_id: str) -> Iterator[float | None]:
        """Count a stream as long as it is served; yields how long that may be, in seconds."""
        stranger = self.is_stranger(peer_id)
        self._all += 1
        self._strangers += stranger
        self._streams[peer_id] += 1
        try:
            yield STRANGER_S if stranger else None
        finally:
            self._all -= 1
            self._strangers -= stranger
            self._streams[peer_id] -= 1
            self._streams += Counter()  # drops the zeros
