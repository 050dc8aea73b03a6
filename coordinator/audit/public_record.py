"""One leaf of the public record, proven by a few tiles: nobody has to read the whole log for it.

Invariant: a leaf is believed when it leads to a head that is signed by a key which the run's root
key delegated for logs; who serves the tiles does not matter.
"""

from __future__ import annotations

from ledger.authority import log_keys
from ledger.records import RunLeaf, parse_leaf
from ledger.sources import TileSource
from ledger.tiles import TILE_HEIGHT, TILE_WIDTH, Tile
from protocol import merkle
from protocol.errors import BadRecord, BadSignature
from protocol.manifest import RunManifest
from protocol.notes import open_checkpoint, read_checkpoint


def read_run_leaf(source: TileSource, manifest: RunManifest) -> RunLeaf:
    """The run's first leaf, which fixes every draw.

    Args:
        source: tiles of the record.
        manifest: the run's, already believed.

    Raises:
        BadRecord, BadSignature, BadDigest: what is wrong with the record.
        TransientError: it cannot be read now.
    """
    note = source.checkpoint()
    size = read_checkpoint(note).size
    if size == 0:
        raise BadRecord("the log is empty: not even its run was recorded")
    data = next(source.entries(min(size, TILE_WIDTH)))
    leaf = parse_leaf(data)
    if not isinstance(leaf, RunLeaf) or leaf.run_id != manifest.run_id.hex():
        raise BadRecord("the log's first leaf is not of this run")
    delegations = source.delegations()
    if delegations is None:
        raise BadSignature("no delegations are published with this log")
    keys = log_keys(
        delegations, manifest.root, manifest.origin, run_id=manifest.run_id, at_s=leaf.at_s
    )
    head = open_checkpoint(note, keys)
    proof = merkle.inclusion_proof(0, size, _Subtrees(source, size))
    merkle.verify_inclusion(merkle.leaf_hash(data), 0, size, proof, head.root)
    return leaf


class _Subtrees:
    """Roots of subtrees, from tiles of hashes."""

    def __init__(self, source: TileSource, size: int) -> None:
        self._source, self._size = source, size

    def __call__(self, start: int, end: int) -> bytes:
        count = end - start
        if count & (count - 1) == 0 and start % count == 0:
            return self._perfect(count.bit_length() - 1, start)
        middle = start + merkle.split_point(count)
        return merkle.node_hash(self(start, middle), self(middle, end))

    def _perfect(self, height: int, start: int) -> bytes:
        """Root of ``2**height`` leaves: a node of a tile, or a few of them hashed together."""
        level, above = divmod(height, TILE_HEIGHT)
        first = start >> (TILE_HEIGHT * level)
        index, offset = divmod(first, TILE_WIDTH)
        width = min(TILE_WIDTH, (self._size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH)
        hashes = self._source.tile(Tile(level, index, width))
        nodes = range(offset, offset + (1 << above))
        parts = [hashes[32 * node : 32 * node + 32] for node in nodes]
        if any(len(part) != merkle.HASH_BYTES for part in parts):
            raise BadRecord("a tile of the log is cut short")
        return merkle.root(parts)
