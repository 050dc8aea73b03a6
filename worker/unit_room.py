"""What a unit of work takes on the disk, and room for it before it begins.

Invariants:

* What a unit must write has its room before training begins: nobody trains what cannot be kept.
* Snapshots of the unit under way are left out where there is no room for them: then a kill costs
  the unit, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from protocol.dataset import DatasetManifest
from protocol.limits import MAX_MANIFEST_BYTES
from protocol.manifest import RunManifest
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire
from worker.disk import DiskQuota, NoRoom

_ELEMENT_BYTES = 4
_SNAPSHOT_VECTORS = 3  # the parameters, and at most two moments of each
_SNAPSHOT_SLACK_BYTES = 1 << 20  # names, losses, the random state
_SHARDS_OF_A_UNIT = 2  # it may begin in one and end in the next


def least_bytes(head: wire.RunHead, dataset: DatasetManifest, manifest: RunManifest) -> int:
    """What taking part in this run takes at least: below it no unit can be seen through.

    The state that a round starts from and the one that it leads to, the shards of a unit, its
    update and those that may be reduced meanwhile, the dataset's manifest.
    """
    state = head.weights_bytes + head.momentum_bytes
    largest = sorted((shard.bytes for shard in dataset.shards), reverse=True)
    shards = sum(largest[:_SHARDS_OF_A_UNIT])
    updates = (1 + manifest.lag_rounds) * update_bytes(head, manifest)
    return 2 * state + shards + updates + MAX_MANIFEST_BYTES


def update_bytes(head: wire.RunHead, manifest: RunManifest) -> int:
    """Of the encoded update of a unit, at most."""
    elements = max(1, head.weights_bytes // _ELEMENT_BYTES)
    layout, codec = ChunkLayout(elements, manifest.update.chunk_elements), manifest.update.codec
    last = layout.count - 1
    return last * layout.encoded_bytes(codec, 0) + layout.encoded_bytes(codec, last)


def snapshot_bytes(head: wire.RunHead) -> int:
    """Of a snapshot of a unit, at most."""
    return _SNAPSHOT_VECTORS * head.weights_bytes + _SNAPSHOT_SLACK_BYTES


class UnitRoom:
    """The room of one unit at a time; methods block."""

    def __init__(self, disk: DiskQuota, manifest: RunManifest) -> None:
        self._disk = disk
        self._manifest = manifest
        self._held: tuple[Path, ...] = ()

    def take(self, output: Path, snapshot: Path, head: wire.RunHead) -> bool:
        """Keep room for a unit, and no more for the one before.

        Returns:
            Whether there is room for its snapshots: the newest one, and the next beside it.

        Raises:
            NoRoom: there is none for its update.
        """
        self.leave()
        self._held = (output, snapshot)
        self._disk.reserve(output, update_bytes(head, self._manifest), "the update of a unit")
        try:
            both = 2 * snapshot_bytes(head)
            self._disk.reserve(snapshot, both, "the snapshots of a unit", guess=True)
        except NoRoom:
            return False
        return True

    def leave(self) -> None:
        """What the unit wrote counts as what it is."""
        self._disk.release(*self._held)
        self._held = ()
