"""C2SP tlog-tiles: the log as static files that any web host can mirror.

* ``tile/<L>/<N>[.p/<W>]``: up to 256 hashes of tree level 8*L, from position 256*N on.
* ``tile/entries/<N>[.p/<W>]``: up to 256 leaves, each behind its length as big-endian uint16.
* N is written in groups of three digits, all but the last with an ``x``: ``x001/x234/067``.
* A full tile never changes; a partial one (W < 256) is only a prefix of what it will be.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ledger import tree
from ledger.log import read_leaves
from protocol.errors import BadDigest, BadRecord

TILE_WIDTH = 256
TILE_HEIGHT = 8
ENTRIES = "entries"
MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + 65_535)
_NUMBER = re.compile(r"(?:x[0-9]{3}/)*[0-9]{3}")
_PATH = re.compile(
    r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?"
)


@dataclass(frozen=True)
class Tile:
    """Address of a tile."""

    level: int | None  # None: a bundle of entries
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Relative path of the file."""
        level = ENTRIES if self.level is None else self.level
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{number_path(self.index)}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read a path; one path for one tile.

        Raises:
            BadRecord: not a tile's path.
        """
        match = _PATH.fullmatch(path[:200])
        if match is None:
            raise BadRecord("not the path of a tile")
        level = None if match[1] == ENTRIES else int(match[1])
        index = int(match[2].replace("x", "").replace("/", ""))
        tile = cls(level, index, int(match[3]) if match[3] else TILE_WIDTH)
        if tile.path != path or not 0 < tile.width <= TILE_WIDTH:
            raise BadRecord("not the path of a tile")
        return tile

    def exists_at(self, size: int) -> bool:
        """Whether a tree of ``size`` leaves has all of this tile."""
        return self.index * TILE_WIDTH + self.width <= size >> (TILE_HEIGHT * (self.level or 0))


def number_path(number: int) -> str:
    """A number as a path: digits in groups of three, all but the last with an ``x``."""
    digits = f"{number:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[first : first + 3] for first in range(0, len(digits), 3)]
    return "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


def parse_number(path: str) -> int:
    """Read :func:`number_path`; one path for one number.

    Raises:
        BadRecord: not the path of a number.
    """
    match = _NUMBER.fullmatch(path[:100])
    number = int(path.replace("x", "").replace("/", "")) if match else -1
    if match is None or number_path(number) != path:
        raise BadRecord("not a number in groups of three digits")
    return number


def tiles_of(size: int, level: int | None, first: int = 0) -> Iterator[Tile]:
    """Tiles of one level in a tree of ``size`` leaves, from ``first`` on, the partial one last."""
    nodes = size >> (TILE_HEIGHT * (level or 0))
    for index in range(first, nodes // TILE_WIDTH):
        yield Tile(level, index)
    if nodes % TILE_WIDTH:
        yield Tile(level, nodes // TILE_WIDTH, nodes % TILE_WIDTH)


def levels_of(size: int) -> range:
    """Tile levels of a tree of ``size`` leaves."""
    return range(-(-size.bit_length() // TILE_HEIGHT))


def read_tile(session: Session, tile: Tile) -> bytes:
    """Contents of a tile that the stored tree has.

    Raises:
        BadDigest: part of it is missing: the database is damaged.
    """
    start, end = tile.index * TILE_WIDTH, tile.index * TILE_WIDTH + tile.width
    if tile.level is None:
        return pack_entries(read_leaves(session, start, end))
    hashes = tree.load_row(session, TILE_HEIGHT * tile.level, start, end)
    if len(hashes) != tile.width:
        raise BadDigest(f"{tile.path} is not whole: the log is damaged")
    return b"".join(hashes)


def pack_entries(leaves: Iterable[bytes]) -> bytes:
    """A bundle of entries."""
    return b"".join(struct.pack(">H", len(leaf)) + leaf for leaf in leaves)


def unpack_entries(bundle: bytes, width: int) -> list[bytes]:
    """The ``width`` entries of a bundle.

    Raises:
        BadRecord: it holds more or fewer, or is cut short.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise BadRecord(f"a bundle is at most {MAX_BUNDLE_BYTES} bytes")
    entries: list[bytes] = []
    offset = 0
    for _ in range(width):
        if offset + 2 > len(bundle):
            raise BadRecord(f"a bundle ends after {len(entries)} of {width} entries")
        (length,) = struct.unpack_from(">H", bundle, offset)
        offset += 2 + length
        entries.append(bundle[offset - length : offset])
    if offset != len(bundle):
        raise BadRecord("a bundle is cut short, or longer than its entries")
    return entries
