"""Statistics in BOINC's format, so that existing statistics sites can read the record.

Files and elements are those that BOINC's ``sched/db_dump.cpp`` writes: ``tables.xml``, ``user.gz``,
``team.gz``, ``host.gz``, and the tombstones ``user_deleted.gz`` and ``host_deleted.gz`` (here also
unpacked, as ``.xml``).

Invariants:

* The same head and profiles give the same bytes, packed files too: no clock is read.
* Only final credit is exported, as BOINC grants credit once work is validated: 1 cobblestone is
  432 GFLOP, so 432 microcredits, rounded down to a millionth.
* Ids are places in the log, from 1: of a person, of the first of its keys that was enrolled; of a
  device, of its first enrolment; of a team, of its foundation. They never change.
* Whoever erased its profile is in no list but the tombstones, and neither are its devices.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape

from ledger.donors import short_key
from ledger.exports.profiles import Profiles, Shown
from ledger.fold import Board
from ledger.leaderboard.recent import PerDay, Recent
from ledger.standing import Standing, standing, standings
from protocol.identity import PeerId

MICROCREDITS_PER_COBBLESTONE = 432
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_ENDS = str.maketrans({"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})

Element = tuple[str, str | None]
"""(name, text), the text to be escaped; None: an empty element."""


@dataclass(frozen=True)
class Numbers:
    """Ids, by key."""

    donors: dict[PeerId, int]
    devices: dict[PeerId, int]
    teams: dict[str, int]

    @classmethod
    def of(cls, board: Board) -> Numbers:
        """By order of first appearance, which the fold keeps."""
        return cls(
            {key: number for number, key in enumerate(board.donors, start=1)},
            {key: number for number, key in enumerate(board.workers, start=1)},
            {team: number for number, team in enumerate(board.crowd.teams.teams, start=1)},
        )

    def first_key(self, keys: Iterable[PeerId]) -> PeerId:
        """The key of a person that was enrolled first: its id and cpid are of that one."""
        return min((key for key in keys if key in self.donors), key=self.donors.__getitem__)


def write_boinc(board: Board, profiles: Profiles, out: Path) -> list[Path]:
    """Write all files of the export into a folder that is there.

    Returns:
        Their paths.
    """
    export = Export(board, profiles)
    files = [
        _write(out / "user.gz", "users", export.users()),
        _write(out / "team.gz", "teams", export.teams()),
        _write(out / "host.gz", "hosts", export.hosts()),
    ]
    for name, tag, records in (
        ("user_deleted", "users_deleted", export.users_deleted),
        ("host_deleted", "hosts_deleted", export.hosts_deleted),
    ):
        files.append(_write(out / f"{name}.gz", tag, records()))
        files.append(_write(out / f"{name}.xml", tag, records()))
    files.append(_write(out / "tables.xml", "tables", export.tables()))
    return files


class Export:
    """The records of every file, as they stand at one head."""

    def __init__(self, board: Board, profiles: Profiles) -> None:
        self._board = board
        self._profiles = profiles
        self._numbers = Numbers.of(board)
        self._recent, self._recent_of_devices = _recent(board)
        self._per_day: PerDay = self._recent.per_day()
        self._users = self._users_microcredits = 0
        self._erased = {
            owner
            for owner in board.people.owners()
            if profiles.is_erased(owner, board.people.keys_of(owner))
        }

    def users(self) -> Iterator[str]:
        """Everybody with final credit; counts them for :meth:`tables`."""
        self._users = self._users_microcredits = 0
        for person in self._people():
            if person.final_microcredits > 0 and person.owner not in self._erased:
                self._users += 1
                self._users_microcredits += person.final_microcredits
                yield _record("user", self._user(person))

    def teams(self) -> Iterator[str]:
        """Teams with final credit."""
        for team, number in self._numbers.teams.items():
            if self._board.crowd.teams.teams[team].tally.final_microcredits:
                yield _record("team", self._team(team, number))

    def hosts(self) -> Iterator[str]:
        """Devices with final credit."""
        for worker, number in self._numbers.devices.items():
            if self._is_host(worker):
                yield _record("host", self._host(worker, number))

    def users_deleted(self) -> Iterator[str]:
        """Whose profile was erased."""
        first_keys = (
            self._numbers.first_key(self._board.people.keys_of(owner)) for owner in self._erased
        )
        for key in sorted(first_keys, key=self._numbers.donors.__getitem__):
            elements = [("id", str(self._numbers.donors[key])), ("cpid", cpid(key))]
            yield _record("user", elements)

    def hosts_deleted(self) -> Iterator[str]:
        """Their devices."""
        for worker, number in self._numbers.devices.items():
            if self._owner(worker) in self._erased:
                yield _record("host", [("id", str(number)), ("host_cpid", host_cpid(worker))])

    def tables(self) -> Iterator[str]:
        """How many of everything there are, and when this was true; after :meth:`users`."""
        teams = self._board.crowd.teams.teams.values()
        run = self._board.manifest
        assert run is not None
        counts = {
            "nusers_total": self._users,
            "nteams_total": sum(1 for team in teams if team.tally.final_microcredits),
            "nhosts_total": sum(1 for worker in self._board.workers if self._is_host(worker)),
            "nusers_deleted_total": len(self._erased),
            "nhosts_deleted_total": sum(1 for _ in self.hosts_deleted()),
        }
        yield _element("update_time", str(self._board.newest_s))
        yield from (_element(name, str(count)) for name, count in counts.items() if count)
        if self._users_microcredits:
            yield _element("total_credit", cobblestones(self._users_microcredits))
        yield f"<applications>\n<application>\n{_element('name', run.name)}</application>\n"
        yield "</applications>\n<badges>\n</badges>\n"

    def _people(self) -> Iterator[Standing]:
        """Everybody, by id: one at a time, but for the few who have several keys."""
        board = self._board
        alone = (found for found in standings(board) if len(found.keys) == 1)
        owners = {board.people.owner_of(join.old) for join in board.people.joins}
        joined = sorted((standing(board, owner) for owner in owners), key=self._id)
        return heapq.merge(alone, joined, key=self._id)

    def _id(self, found: Standing) -> int:
        return self._numbers.donors[self._numbers.first_key(found.keys)]

    def _is_host(self, worker: PeerId) -> bool:
        has = self._board.workers[worker].tally.final_microcredits > 0
        return has and self._owner(worker) not in self._erased

    def _owner(self, worker: PeerId) -> PeerId:
        return self._board.people.owner_of(self._board.workers[worker].donor)

    def _credit(self, final_microcredits: int, weighted: int) -> list[Element]:
        return [
            ("total_credit", cobblestones(final_microcredits)),
            ("expavg_credit", _decimal(self._per_day(weighted * 10**6))),
            ("expavg_time", f"{self._board.newest_s}.000000"),
        ]

    def _weighted(self, keys: Iterable[PeerId]) -> int:
        return sum(self._recent.weighted(key) for key in keys)

    def _user(self, person: Standing) -> list[Element]:
        key = self._numbers.first_key(person.keys)
        shown = self._profiles.donors.get(person.owner)
        elements: list[Element] = [
            ("id", str(self._numbers.donors[key])),
            ("name", _name(shown, person.owner)),
            ("create_time", str(self._board.donors[key].enrolled_s)),
            *self._credit(person.final_microcredits, self._weighted(person.keys)),
            ("cpid", cpid(key)),
            ("country", "None"),
        ]
        if shown is not None and shown.url:
            elements.append(("url", shown.url))
        if person.team is not None:
            elements.append(("teamid", str(self._numbers.teams[person.team])))
        if shown is not None:
            elements.append(("has_profile", None))
        return elements

    def _team(self, team: str, number: int) -> list[Element]:
        known, people = self._board.crowd.teams.teams[team], self._board.people
        founder = people.owner_of(known.founder)
        shown = self._profiles.teams.get(team)
        keys = (key for member in known.members for key in people.keys_of(member))
        founder_number = self._numbers.donors[self._numbers.first_key(people.keys_of(founder))]
        elements: list[Element] = [
            ("id", str(number)),
            ("type", "0"),
            ("name", shown.name if shown is not None and shown.name else f"…{team[-8:]}"),
            ("userid", str(founder_number)),
            *self._credit(known.tally.final_microcredits, self._weighted(keys)),
            ("founder_name", _name(self._profiles.donors.get(founder), founder)),
            ("create_time", str(known.leaf.at_s)),
        ]
        if shown is not None and shown.url:
            elements.append(("url", shown.url))
        if shown is not None and shown.about:
            elements.append(("description", shown.about))
        return [*elements, ("country", "None")]

    def _host(self, worker: PeerId, number: int) -> list[Element]:
        device, owner = self._board.workers[worker], self._owner(worker)
        shown = self._profiles.donors.get(owner)
        elements: list[Element] = [("id", str(number))]
        if shown is not None and shown.show_devices:
            key = self._numbers.first_key(self._board.people.keys_of(owner))
            elements.append(("userid", str(self._numbers.donors[key])))
        weighted = self._recent_of_devices.weighted(worker)
        elements += self._credit(device.tally.final_microcredits, weighted)
        elements += [("p_vendor", ""), ("p_model", device.device_class)]
        elements += [("os_name", ""), ("os_version", "")]
        elements.append(("create_time", str(device.enrolled_s)))
        elements.append(("rpc_time", str(device.last_credit_s or device.enrolled_s)))
        elements += [("timezone", "0"), ("ncpus", "0")]
        elements += [(name, "0.000000") for name in _UNKNOWN_OF_HOSTS]
        return [*elements, ("host_cpid", host_cpid(worker))]


_UNKNOWN_OF_HOSTS = (
    *("p_fpops", "p_iops", "p_membw", "m_nbytes", "m_cache", "m_swap", "d_total", "d_free"),
    *("n_bwup", "n_bwdown", "avg_turnaround", "credit_per_cpu_sec"),
)
"""The record knows no hardware; BOINC writes them for every host."""


def cobblestones(microcredits: int) -> str:
    """As BOINC writes amounts, with six decimals; exact but for what is below them."""
    return _decimal(microcredits * 10**6)


def _decimal(millionths_of_a_microcredit: int) -> str:
    millionths = millionths_of_a_microcredit // MICROCREDITS_PER_COBBLESTONE
    return f"{millionths // 10**6}.{millionths % 10**6:06d}"


def cpid(key: PeerId) -> str:
    """An id of a person that looks like BOINC's: 32 hex digits that follow from a key.

    It is of this project alone: BOINC's follow from e-mail addresses, which the record has not.
    """
    return hashlib.sha256(b"barnraise-cpid/1\x00" + key.encode()).hexdigest()[:32]


def host_cpid(key: PeerId) -> str:
    """The same of a device; another one also where a person's device has the person's key."""
    return hashlib.sha256(b"barnraise-host-cpid/1\x00" + key.encode()).hexdigest()[:32]


def _recent(board: Board) -> tuple[Recent, Recent]:
    """Recent average of final credit, by key of donors, and of devices."""
    donors, devices = Recent(board.opened_s), Recent(board.opened_s)
    donors.move_to(board.newest_s)
    devices.move_to(board.newest_s)
    for credit in board.accounts.credits.values():
        if credit.status == "final":
            paid = credit.leaf
            donors.add(paid.donor, paid.at_s, paid.microcredits)
            devices.add(paid.worker, paid.at_s, paid.microcredits)
    return donors, devices


def _name(shown: Shown | None, key: PeerId) -> str:
    return shown.name if shown is not None and shown.name else short_key(key)


def _record(tag: str, elements: Iterable[Element]) -> str:
    lines = "".join(_element(name, text) for name, text in elements)
    return f"<{tag}>\n{lines}</{tag}>\n"


def _element(name: str, text: str | None) -> str:
    if text is None:
        return f" <{name}/>\n"
    return f" <{name}>{_escaped(text)}</{name}>\n"


def _escaped(text: str) -> str:
    """Text that any XML reader gives back as it was; what XML cannot hold becomes U+FFFD."""
    return escape(_NOT_XML.sub("\ufffd", text)).translate(_LINE_ENDS)


def _write(path: Path, tag: str, records: Iterable[str]) -> Path:
    """Write a list, a record at a time; packed if the name ends so, without name or time in it."""
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                _write_list(packed, tag, records)
        else:
            _write_list(file, tag, records)
    return path


def _write_list(out: IO[bytes] | gzip.GzipFile, tag: str, records: Iterable[str]) -> None:
    out.write(f'<?xml version="1.0" encoding="utf-8"?>\n<{tag}>\n'.encode())
    for record in records:
        out.write(record.encode())
    out.write(f"</{tag}>\n".encode())
