"""The tree behind a mirror's tiles: hashes computed here, and a proof made of the source's."""

from __future__ import annotations

from ledger import tree
from ledger.sources import Node, TileSource
from ledger.tile_folder import TileFolder
from ledger.tiles import TILE_HEIGHT, TILE_WIDTH, Tile
from protocol import merkle
from protocol.errors import BadDigest
from protocol.notes import Checkpoint

_TILE_BYTES = TILE_WIDTH * merkle.HASH_BYTES


class TileBuilder:
    """Makes tiles of hashes of the nodes that the leaves give, and keeps them in the folder."""

    def __init__(self, folder: TileFolder) -> None:
        self._folder = folder
        self._open: dict[int, tuple[int, list[bytes]]] = {}  # level -> (tile index, hashes)

    def add(self, made: list[Node]) -> None:
        """Take the nodes that a leaf completes.

        Raises:
            BadDigest: a tile that the folder holds is another.
        """
        for level, position, value in made:
            if level % TILE_HEIGHT:
                continue
            index, offset = divmod(position, TILE_WIDTH)
            hashes = [] if offset == 0 else self._open[level // TILE_HEIGHT][1]
            hashes.append(value)
            self._open[level // TILE_HEIGHT] = (index, hashes)
            if len(hashes) == TILE_WIDTH:
                self._keep(Tile(level // TILE_HEIGHT, index), b"".join(hashes))

    def stage_partial(self) -> None:
        """Keep the tiles at the right edge, too."""
        for level, (index, hashes) in self._open.items():
            if len(hashes) < TILE_WIDTH:
                self._keep(Tile(level, index, len(hashes)), b"".join(hashes))

    def _keep(self, tile: Tile, data: bytes) -> None:
        held = self._folder.read(tile.path, _TILE_BYTES)
        if held is None:
            self._folder.stage(tile.path, data)
        elif held != data:
            raise BadDigest(f"{tile.path} holds other hashes than the leaves give")


def check_extends(source: TileSource, old_size: int, old_root: bytes, head: Checkpoint) -> None:
    """Insist that the first leaves under a head are those that hash to ``old_root``.

    Raises:
        BadDigest: they are not.
        BadRecord: the source lacks the tiles to prove it.
    """
    tiles: dict[Tile, bytes] = {}

    def node(level: int, position: int) -> bytes:
        tile_level, rest = divmod(level, TILE_HEIGHT)
        first, count = position << rest, 1 << rest
        index, offset = divmod(first, TILE_WIDTH)
        nodes = head.size >> (TILE_HEIGHT * tile_level)
        tile = Tile(tile_level, index, min(TILE_WIDTH, nodes - index * TILE_WIDTH))
        if tile not in tiles:
            tiles[tile] = source.tile(tile)
        hashes = tiles[tile][offset * merkle.HASH_BYTES : (offset + count) * merkle.HASH_BYTES]
        return merkle.root([hashes[at : at + 32] for at in range(0, len(hashes), 32)])

    def subtree(start: int, end: int) -> bytes:
        return tree.combine([node(*at) for at in tree.cover(start, end)])

    if old_size == 0:
        return
    proof = merkle.consistency_proof(old_size, head.size, subtree)
    try:
        merkle.verify_consistency(old_size, old_root, head.size, head.root, proof)
    except BadDigest as error:
        problem = (
            f"the head of {head.size} leaves does not extend the {old_size} leaves that this "
            "folder holds"
        )
        # Two heads of one size need no tiles to contradict each other.
        if old_size < head.size and not _lead_to(head, old_size, subtree(0, old_size), proof):
            raise BadDigest(f"{problem}, by tiles that do not lead to it either") from error
        raise BadDigest(
            f"{problem}: history was rewritten, or others are shown another one"
        ) from error


def _lead_to(head: Checkpoint, size: int, root: bytes, proof: list[bytes]) -> bool:
    """Whether a source's tiles are those of its head: only then do they accuse who signed it."""
    try:
        merkle.verify_consistency(size, root, head.size, head.root, proof)
    except BadDigest:
        return False
    return True
