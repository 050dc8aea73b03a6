"""Keeps the pictures that were drawn, so that nobody can make the server draw without end.

Invariants:

* Each form of a picture is drawn once for the numbers and names in it; one thread draws at a time.
* The pass over all credit is made once for each snapshot, so for each head or change of a name.
  No name outlives its erasure: a drawing is found by all that it shows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Literal

from starlette.requests import Request

from ledger.leaderboard.pictures import facts, work
from ledger.leaderboard.pictures.draw import Shape, draw
from ledger.leaderboard.pictures.paper import Theme
from ledger.leaderboard.pictures.png import to_png
from ledger.leaderboard.pictures.series import Name, Series
from ledger.leaderboard.pictures.work import Work
from ledger.leaderboard.reader import Reading

Form = Literal["svg", "png"]

_MOST_KEPT = 64  # five pictures in two colours, shapes and forms are 40


class Gallery:
    """One of a site; safe to share between threads."""

    def __init__(self) -> None:
        self._drawing = threading.Lock()
        self._kept: OrderedDict[tuple[str, Theme, Shape, Form], bytes] = OrderedDict()
        self._work: tuple[int, Work] | None = None

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
            return work.audits(board, self._work_of(reading))
        return work.compute(board, self._work_of(reading))

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
        snapshot = reading.snapshot
        if self._work is None or self._work[0] != snapshot.serial:
            self._work = snapshot.serial, Work(reading.board, snapshot.names)
        return self._work[1]


def gallery_of(request: Request) -> Gallery:
    """The app's gallery."""
    gallery: Gallery = request.app.state.gallery
    return gallery
