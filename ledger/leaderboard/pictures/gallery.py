"""Keeps the pictures that were drawn, so that nobody can make the server draw without end.

Invariants:

* Each form of a picture is drawn once for the numbers and names in it; one thread draws at a time.
* The pass over all credit is made once for each snapshot; of a record that
  :mod:`~ledger.leaderboard.reader` calls large only now and then, and it says as of which leaf.
* A person's history is added up once for each snapshot, whoever asks for it.
* No name outlives its erasure: it is asked for every time, and a drawing is found by all it shows.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from ledger.leaderboard.pictures import facts
from ledger.leaderboard.pictures.draw import Shape, draw
from ledger.leaderboard.pictures.history import history
from ledger.leaderboard.pictures.paper import Theme
from ledger.leaderboard.pictures.png import to_png
from ledger.leaderboard.pictures.series import Name, Series
from ledger.leaderboard.pictures.work import Work, audits, compute
from ledger.leaderboard.reader import SMALL_LEAVES, Reading
from protocol.identity import PeerId

Form = Literal["svg", "png"]

_MOST_KEPT = 96  # five pictures of the run in two colours, shapes and forms are 40
_MOST_HISTORIES = 256
_SHARE = 30
"""Of a large record's time, one part in so many may go into passes over its credit."""


@dataclass(frozen=True)
class _Made:
    """The newest pass over all credit."""

    serial: int  # of the snapshot that it was made from
    work: Work
    good_until_s: float  # for a large record


class Gallery:
    """One of a site; safe to share between threads."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._drawing = threading.Lock()
        self._kept: OrderedDict[tuple[str, Theme, Shape, Form], bytes] = OrderedDict()
        self._now_s = now_s
        self._made: _Made | None = None
        self._histories: dict[PeerId, tuple[int, Series]] = {}  # by person, as of a snapshot

    def series(self, reading: Reading, name: Name) -> Series:
        """The numbers of a picture. Call it inside the reading."""
        board = reading.board
        if name == "loss":
            return facts.loss(board)
        if name == "members":
            return facts.members(board)
        if name == "goal":
            return facts.goal(board)
        if name == "audits":
            return audits(self._work_of(reading))
        return compute(self._work_of(reading), reading.names)

    def history(self, reading: Reading, donor: PeerId) -> Series | None:
        """The numbers of one person's picture, by any of its keys; None: nobody has that key."""
        owner, serial = reading.snapshot.owner(donor), reading.snapshot.serial
        if owner is None:
            return None
        kept = self._histories.get(owner)
        if kept is None or kept[0] != serial:
            kept = self._histories[owner] = (serial, history(reading, owner))
            while len(self._histories) > _MOST_HISTORIES:
                self._histories.pop(next(iter(self._histories)), None)
        return kept[1]

    def picture(self, series: Series, form: Form, theme: Theme, shape: Shape) -> bytes:
        """A picture in one of its forms, from the shelf if it hangs there."""
        key = (series.model_dump_json(exclude={"size"}), theme, shape, form)
        with self._drawing:
            if key not in self._kept:
                svg = draw(series, theme, shape)
                self._kept[key] = svg.encode() if form == "svg" else to_png(svg)
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _work_of(self, reading: Reading) -> Work:
        snapshot, made = reading.snapshot, self._made
        if made is not None and made.serial == snapshot.serial:
            return made.work
        began_s = self._now_s()
        if made is not None and snapshot.size > SMALL_LEAVES and began_s < made.good_until_s:
            return made.work
        work = Work(reading.board, snapshot.names)
        ended_s = self._now_s()
        self._made = _Made(snapshot.serial, work, ended_s + _SHARE * (ended_s - began_s))
        return work


def gallery_of(request: Request) -> Gallery:
    """The app's gallery."""
    gallery: Gallery = request.app.state.gallery
    return gallery
