"""Where a log is read from when it is verified: a database, a folder of tiles, or a web site.

A source only delivers bytes; nothing it says is believed (:mod:`ledger.verify`). Every read is
bounded in size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import MAX_DELEGATIONS_BYTES, Delegations, load_delegations
from ledger.fetching import Fetch, WebFolder
from ledger.log import LOOKED_UP_BY, latest_head, read_leaves
from ledger.records import Leaf
from ledger.schema import ActRow, LogLeaf
from ledger.tiles import (
    MAX_BUNDLE_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    number_path,
    tiles_of,
    unpack_entries,
)
from protocol.errors import BadDigest, BadRecord, TransientError, UsageError
from protocol.identity import PeerId
from protocol.limits import MAX_RECORD_BYTES
from protocol.merkle import HASH_BYTES
from protocol.notes import MAX_NOTE_BYTES

Node = tuple[int, int, bytes]
"""(level, position, hash)"""

_ROWS = 1000
_MAX_ACT_BYTES = MAX_RECORD_BYTES + 4096  # as protocol.envelope.parse_envelope takes
_MAX_PAGE_BYTES = 4 << 20
_PAGE_DONORS = 500
_BOARD_ATTEMPTS = 5


@dataclass(frozen=True)
class PublishedTotals:
    """What a leaderboard shows of somebody, or of the run."""

    pending_microcredits: int
    final_microcredits: int
    forfeited_microcredits: int
    tokens: int

    @classmethod
    def read(cls, shown: dict[str, Any]) -> PublishedTotals:
        """From a row of ``/api/v1``."""
        return cls(*(shown[field.name] for field in fields(cls)))

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


@dataclass(frozen=True)
class PublishedBoard:
    """Totals that a leaderboard shows, to be compared with the fold at ``size`` leaves."""

    size: int
    total: PublishedTotals
    donors: dict[PeerId, PublishedTotals]


class _LogGrewError(Exception):
    """The log grew while the pages of the board were turned."""


class Check(Protocol):
    """Compares what the leaves give with what a source keeps besides them."""

    def add(self, leaf: Leaf, made: list[Node]) -> None:
        """Take the next leaf, and the nodes of the tree that it completes."""

    def finish(self) -> None: ...


class Source(Protocol):
    """A published log."""

    def board(self) -> PublishedBoard | None:
        """Published totals, or None where there are none. Asked for before the checkpoint."""

    def checkpoint(self) -> str: ...

    def delegations(self) -> Delegations | None: ...

    def entries(self, size: int) -> Iterator[bytes]: ...

    def act(self, index: int) -> bytes | None:
        """The envelope of the public act behind a leaf, or None where it is not published."""

    def check(self) -> Check: ...


class DatabaseSource:
    """The log in its own database; every stored node and column is compared."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def board(self) -> PublishedBoard | None:
        return None  # totals are not stored: the site folds the same leaves

    def checkpoint(self) -> str:
        head = latest_head(self._session)
        if head is None:
            raise UsageError("nothing to verify: no head of this log was signed yet")
        if not isinstance(head.checkpoint, str):  # SQLite keeps any type in any column
            raise BadRecord("the newest head is not text: somebody edited the database")
        return head.checkpoint

    def delegations(self) -> Delegations | None:
        return load_delegations(self._session)

    def entries(self, size: int) -> Iterator[bytes]:
        return read_leaves(self._session, 0, size)

    def act(self, index: int) -> bytes | None:
        row = self._session.get(ActRow, index)
        if row is None or not row.public:
            return None
        if not isinstance(row.envelope, bytes):  # SQLite keeps any type in any column
            raise BadRecord(f"the act of leaf {index} is not bytes: somebody edited the database")
        return row.envelope

    def check(self) -> Check:
        return _StoredCheck(self._session)


class TileSource:
    """A log as static files, behind any ``path -> bytes`` function."""

    def __init__(self, fetch: Fetch) -> None:
        """Read through ``fetch(path, most_bytes)``, which gives None for a missing file."""
        self._fetch = fetch

    def board(self) -> PublishedBoard | None:
        return None

    def checkpoint(self) -> str:
        try:
            return self._need("checkpoint", MAX_NOTE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise BadRecord("the checkpoint is not text") from error

    def delegations(self) -> Delegations | None:
        data = self._fetch("delegations", MAX_DELEGATIONS_BYTES)
        return None if data is None else Delegations.parse(data)

    def entries(self, size: int) -> Iterator[bytes]:
        for tile in tiles_of(size, None):
            yield from self.bundle(tile)

    def bundle(self, tile: Tile) -> list[bytes]:
        """Leaves of a bundle of entries."""
        data, found = self._need_tile(tile, MAX_BUNDLE_BYTES)
        try:
            return unpack_entries(data, found.width)[: tile.width]
        except BadRecord as error:
            raise BadRecord(f"{found.path}: {error}") from error

    def act(self, index: int) -> bytes | None:
        return self._fetch(f"acts/{number_path(index)}", _MAX_ACT_BYTES)

    def check(self) -> Check:
        return _TileCheck(self.tile)

    def tile(self, tile: Tile) -> bytes:
        """Contents of a tile of hashes."""
        data, found = self._need_tile(tile, TILE_WIDTH * HASH_BYTES)
        return data if found == tile else data[: tile.width * HASH_BYTES]

    def _need_tile(self, tile: Tile, most_bytes: int) -> tuple[bytes, Tile]:
        """A tile; or, where a partial one has made way for it, the full one."""
        data = self._fetch(tile.path, most_bytes)
        if data is None and tile.width < TILE_WIDTH:
            whole = Tile(tile.level, tile.index)
            data = self._fetch(whole.path, most_bytes)
            tile = tile if data is None else whole
        return self._whole(tile.path, data, most_bytes), tile

    def _need(self, path: str, most_bytes: int) -> bytes:
        return self._whole(path, self._fetch(path, most_bytes), most_bytes)

    @staticmethod
    def _whole(path: str, data: bytes | None, most_bytes: int) -> bytes:
        if data is None:
            raise BadRecord(f"{path} is missing: this is not a whole log")
        if len(data) > most_bytes:
            raise BadRecord(f"{path} is over {most_bytes} bytes")
        return data


def directory_source(folder: Path) -> TileSource:
    """A folder written by ``ledger export-tiles``."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of tiles; make one with ledger export-tiles")

    def fetch(path: str, most_bytes: int) -> bytes | None:
        file = folder / path
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return stream.read(most_bytes + 1)

    return TileSource(fetch)


class HttpSource(TileSource):
    """A leaderboard, or any web host with the tiles."""

    def __init__(self, url: str) -> None:
        self._site = WebFolder(url)
        super().__init__(self._site.get)

    def board(self) -> PublishedBoard | None:
        """All pages of the donors' board, of one and the same size of the log."""
        for _ in range(_BOARD_ATTEMPTS):
            campaign = self._json("api/v1/campaign")
            if campaign is None:
                return None  # a mirror of tiles, not a leaderboard
            try:
                return self._read_board(campaign)
            except _LogGrewError:
                continue
            except (KeyError, TypeError, ValueError) as error:
                raise BadRecord("the leaderboard's /api/v1 is not understood") from error
        raise TransientError("the leaderboard changes too fast to read it whole; try again")

    def _read_board(self, campaign: dict[str, Any]) -> PublishedBoard:
        donors: dict[PeerId, PublishedTotals] = {}
        size, count = _number(campaign["size"]), _number(campaign["donors"])
        if count > size:
            raise BadRecord("the leaderboard has more donors than the record has leaves")
        for page in range(1, 2 + count // _PAGE_DONORS):
            answer = self._json(f"api/v1/donors?page={page}&per_page={_PAGE_DONORS}")
            if answer is None or answer["size"] != size:
                raise _LogGrewError
            for row in answer["donors"]:
                if row["donor"] in donors:
                    raise BadRecord(f"the leaderboard shows donor {row['donor']} twice")
                donors[row["donor"]] = PublishedTotals.read(row)
            if not answer["donors"]:
                break
        return PublishedBoard(size, PublishedTotals.read(campaign), donors)

    def _json(self, path: str) -> dict[str, Any] | None:
        data = self._site.get(path, _MAX_PAGE_BYTES)
        if data is None:
            return None
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"{path} is not JSON") from error
        if not isinstance(answer, dict):
            raise BadRecord(f"{path} is not understood")
        return answer


def _number(shown: object) -> int:
    """A count that a leaderboard shows: of any other size, its totals would never be compared."""
    if not isinstance(shown, int) or isinstance(shown, bool) or shown < 0:
        raise ValueError(shown)
    return shown


class _TileCheck:
    """Recomputed nodes against tiles of hashes."""

    def __init__(self, read: Callable[[Tile], bytes]) -> None:
        self._read = read
        self._open: dict[int, tuple[int, list[bytes]]] = {}  # level -> (tile index, hashes)

    def add(self, _leaf: Leaf, made: list[Node]) -> None:
        for level, position, value in made:
            if level % TILE_HEIGHT:
                continue
            index, offset = divmod(position, TILE_WIDTH)
            hashes = [] if offset == 0 else self._open[level // TILE_HEIGHT][1]
            hashes.append(value)
            self._open[level // TILE_HEIGHT] = (index, hashes)
            if len(hashes) == TILE_WIDTH:
                self._compare(Tile(level // TILE_HEIGHT, index), hashes)

    def finish(self) -> None:
        for level, (index, hashes) in self._open.items():
            if len(hashes) < TILE_WIDTH:
                self._compare(Tile(level, index, len(hashes)), hashes)

    def _compare(self, tile: Tile, hashes: list[bytes]) -> None:
        published = self._read(tile)
        for offset, value in enumerate(hashes):
            if published[offset * HASH_BYTES : (offset + 1) * HASH_BYTES] != value:
                span = 1 << (TILE_HEIGHT * (tile.level or 0))
                first = (tile.index * TILE_WIDTH + offset) * span
                raise BadDigest(
                    f"leaf {first}: {tile.path} holds another hash for leaves "
                    f"{first} to {first + span - 1} than the leaves give"
                )
        if len(published) != len(hashes) * HASH_BYTES:
            raise BadDigest(f"{tile.path} is longer than its hashes")


class _StoredCheck:
    """Recomputed nodes and columns against those stored in the database, all of them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._size = 0
        self._filed: list[tuple[object, ...]] = []  # of the leaves before _size
        self._nodes: dict[int, tuple[int, list[bytes]]] = {}  # level -> (first position, hashes)

    def add(self, leaf: Leaf, made: list[Node]) -> None:
        for level, position, value in made:
            self._nodes.setdefault(level, (position, []))[1].append(value)
        self._filed.append(tuple([getattr(leaf, name, None) for name in LOOKED_UP_BY]))
        self._size += 1
        if len(self._filed) == _ROWS:
            self.finish()

    def finish(self) -> None:
        for level, (first, hashes) in self._nodes.items():
            self._compare_nodes(level, first, hashes)
        self._compare_columns()
        self._nodes.clear()
        self._filed.clear()

    def _compare_nodes(self, level: int, first: int, hashes: list[bytes]) -> None:
        if tree.load_row(self._session, level, first, first + len(hashes)) == hashes:
            return
        wanted = [(level, first + offset) for offset in range(len(hashes))]
        stored = tree.load_nodes(self._session, wanted)
        for node, value in zip(wanted, hashes, strict=True):
            if stored[node] != value:
                start, end = node[1] << level, (node[1] + 1) << level
                raise BadDigest(
                    f"leaf {start}: the stored hash of leaves {start} to {end - 1} is not the one "
                    "that the leaves give"
                )

    def _compare_columns(self) -> None:
        """The site looks leaves up by columns: each must repeat what its leaf says."""
        first = self._size - len(self._filed)
        rows = self._session.execute(
            select(*[getattr(LogLeaf, name) for name in LOOKED_UP_BY])
            .where(LogLeaf.leaf_index >= first, LogLeaf.leaf_index < self._size)
            .order_by(LogLeaf.leaf_index)
        )
        for index, (row, filed) in enumerate(zip(rows, self._filed, strict=True), start=first):
            if row == filed:
                continue
            wrong = next(n for n, name in enumerate(LOOKED_UP_BY) if row[n] != filed[n])
            raise BadDigest(
                f"leaf {index} is filed under another {LOOKED_UP_BY[wrong]} than its own"
            )
