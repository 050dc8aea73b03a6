"""Names, beside the log: what donors and teams are called now, and how they are found by it.

Invariants:

* A name is read from the database and from nowhere else; one that is erased there is gone from
  here with the next reading, without a new head.
* Whatever is here is as its owner gave it: hostile until it is escaped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from operator import contains
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ledger.schema import DeviceEnergy, ErasedProfile, Profile, RunPage, TeamProfile
from protocol.identity import PeerId

_ROWS = 1000
_READ_EVERY_S = 300.0
_BLOCK = 256
"""Lines that one look tells to be without a match."""

_MOST_KEPT_KEYS = 500_000
"""Of searches that are remembered: some 30 MB."""


@dataclass(frozen=True, slots=True)
class About:
    """What somebody chose to show."""

    name: str
    url: str | None = None  # http or https, or none
    about: str = ""
    show_devices: bool = False


@dataclass(frozen=True, slots=True)
class Energy:
    """What a device says of itself, unverified."""

    donor: PeerId
    milliwatt_hours: int
    tokens: int


@dataclass(frozen=True)
class Names:
    """Everything that is shown and is not in the log."""

    donors: Mapping[PeerId, About] = field(default_factory=dict)
    teams: Mapping[str, About] = field(default_factory=dict)
    energy: Mapping[PeerId, Energy] = field(default_factory=dict)  # by device
    join_link: str | None = None
    notes: str = ""

    def donor(self, key: PeerId) -> str | None:
        """What a donor is called, or None."""
        about = self.donors.get(key)
        return None if about is None else about.name or None

    def team(self, team: str) -> str | None:
        """What a team is called, or None."""
        about = self.teams.get(team)
        return None if about is None else about.name or None


class NamesReader:
    """Reads names again when they changed; one thread does."""

    def __init__(self) -> None:
        self._names: Names | None = None
        self._mark: Sequence[object] = ()
        self._read_s = 0.0

    def read(
        self, session: Session, run_id: str, *, always: bool, pace: Callable[[], None]
    ) -> Names:
        """The names as they are now; the same object if nothing changed.

        Args:
            session: of the database.
            run_id: of the run whose page it is.
            always: read them even if their number and times are those of the last time, as they
                are after two changes in the same second; else that waits for some minutes.
            pace: called between pieces of work; it may take a rest.
        """
        mark = names_mark(session)
        old = time.monotonic() - self._read_s > _READ_EVERY_S
        if self._names is None or always or old or mark != self._mark:
            names = read_names(session, run_id, pace)
            self._mark, self._read_s = mark, time.monotonic()
            if names != self._names:
                self._names = names
        assert self._names is not None
        return self._names


def names_mark(session: Session) -> tuple[tuple[Any, ...], ...]:
    """Number, sum and newest of the times of each kind: differs after almost any change of a name.

    An erasure always shows: it takes a row away.
    """
    return tuple(
        tuple(session.execute(select(func.count(), func.sum(column), func.max(column))).one())
        for column in (
            Profile.updated_at_s,
            TeamProfile.updated_at_s,
            RunPage.updated_at_s,
            ErasedProfile.erased_at_s,
            DeviceEnergy.told_at_s,
        )
    )


def read_names(session: Session, run_id: str, pace: Callable[[], None]) -> Names:
    """All of it, as the database has it now."""
    donors = session.execute(
        select(
            Profile.donor,
            Profile.display_name,
            Profile.url,
            Profile.about,
            Profile.show_devices,
        ).execution_options(yield_per=_ROWS)
    )
    teams = session.execute(
        select(TeamProfile.team, TeamProfile.display_name, TeamProfile.url, TeamProfile.about)
    )
    energy = session.execute(
        select(
            DeviceEnergy.worker,
            DeviceEnergy.donor,
            DeviceEnergy.milliwatt_hours,
            DeviceEnergy.tokens,
        )
    )
    page = session.get(RunPage, run_id)
    found = {}
    for key, name, url, about, shown in donors:
        found[key] = About(name, web_link(url), about, shown)
        pace()
    return Names(
        found,
        {team: About(name, web_link(url), about) for team, name, url, about in teams},
        {worker: Energy(donor, used_mwh, tokens) for worker, donor, used_mwh, tokens in energy},
        page.join_link if page else None,
        page.notes if page else "",
    )


def web_link(url: str) -> str | None:
    """A stranger's link, if it is one that a page may carry: to http or https, to a host."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    safe = parts.scheme in ("http", "https") and parts.hostname and url.isprintable()
    return url if safe and " " not in url else None


class Index:
    """Keys and names, folded once: finds part of either without a look at each.

    One thread changes it; :meth:`freeze` gives what the others search.
    """

    def __init__(self) -> None:
        self._place: dict[PeerId, int] = {}
        self._keys: list[PeerId] = []
        self._lines: list[str] = []
        self._blocks: list[Block] = []
        self._stale: set[int] = set()
        self._frozen = Lines(())

    def put(self, key: PeerId, name: str | None) -> None:
        """Let a donor be found by its key and by its name, if it has one."""
        place = self._place.get(key)
        if place is None:
            place = self._place[key] = len(self._keys)
            self._keys.append(key)
            self._lines.append("")
        line = f"{(name or '').casefold()}\n{key.casefold()}"
        if line != self._lines[place]:
            self._lines[place] = line
            self._stale.add(place // _BLOCK)

    def freeze(self) -> Lines:
        """The index as it is now: the same one as before, where nothing changed."""
        if self._stale:
            for number in sorted(self._stale):
                lines = tuple(self._lines[number * _BLOCK : (number + 1) * _BLOCK])
                keys = tuple(self._keys[number * _BLOCK : (number + 1) * _BLOCK])
                self._blocks[number : number + 1] = [Block("\n\n".join(lines), lines, keys)]
            self._stale.clear()
            self._frozen = Lines(tuple(self._blocks))
        return self._frozen


@dataclass(frozen=True)
class Block:
    """Some lines of the index."""

    text: str
    lines: tuple[str, ...]
    keys: tuple[PeerId, ...]


class Lines:
    """The index at one moment; safe to share between threads."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self._blocks = blocks
        self._kept: dict[str, frozenset[PeerId]] = {}  # who turns pages asks again
        self._kept_keys = 0
        self._lock = threading.Lock()

    def find(self, wanted: str) -> frozenset[PeerId]:
        """Keys of those whose name or key holds ``wanted``, whatever the case of its letters."""
        folded = wanted.casefold()
        if "\n" in folded:
            return frozenset()  # no name has a second line
        with self._lock:
            found = self._kept.get(folded)
        if found is None:
            found = frozenset(self._look(folded))
            self._keep(folded, found)
        return found

    def _look(self, folded: str) -> Iterator[PeerId]:
        for block in self._blocks:
            if folded in block.text:  # then each line is looked at, but not by a loop of Python's
                yield from compress(block.keys, map(contains, block.lines, repeat(folded)))

    def _keep(self, folded: str, found: frozenset[PeerId]) -> None:
        size = 1 + len(found)
        with self._lock:
            if size > _MOST_KEPT_KEYS or folded in self._kept:
                return
            while self._kept_keys + size > _MOST_KEPT_KEYS:
                oldest = next(iter(self._kept))
                self._kept_keys -= 1 + len(self._kept.pop(oldest))
            self._kept[folded] = found
            self._kept_keys += size
