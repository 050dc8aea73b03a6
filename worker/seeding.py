"""What an anchor holds of the run's data, so that the coordinator does not send it to everybody.

Leases take the lowest free sequences, so a round's data lies right after what has been merged: the
anchor fetches the shards from there on when a round begins, before the workers ask. It looks at the
signed head alone, so nobody can make it fetch anything. What it lacks (sequences that became free
again far back, a round that is larger than the ones before) comes from peers or the coordinator.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from functools import partial

from protocol.dataset import DatasetManifest, ShardInfo
from protocol.errors import PeerFault, TransientError, UsageError
from worker.node import Node
from worker.trouble import Trouble

MAX_SEEDED_BYTES = 4 << 30
"""Shards held for others at once; the first ones are the ones that are needed."""

_ROUNDS_AHEAD = 2
_AGAIN_S = 30.0


async def seed_shards(node: Node) -> None:
    """Hold the shards of the round under way, and of the next. Run it as a task."""
    trouble = Trouble("cannot seed the data now")
    round_, merged_tokens, most_sequences = -1, 0, 1
    while True:
        head = await node.watch.until(partial(node.watch.head_beyond, round_))
        record = head.record
        try:
            dataset = await node.data.dataset()
            if round_ >= 0:
                merged = (record.merged_tokens - merged_tokens) // dataset.sequence_length
                most_sequences = max(most_sequences, merged)
            start = record.merged_tokens // dataset.sequence_length
            rounds = _ROUNDS_AHEAD + node.watch.lag_rounds  # what is reduced now is not merged yet
            await _hold(node, dataset, shards_from(dataset, start, rounds * most_sequences))
        except (TransientError, PeerFault, UsageError) as error:
            trouble.tell(error)
            await node.watch.change(_AGAIN_S)
        else:
            trouble.over()
            round_, merged_tokens = record.round, record.merged_tokens


def shards_from(dataset: DatasetManifest, start: int, count: int) -> list[ShardInfo]:
    """The shards of ``count`` sequences from ``start`` on, and the one after: epochs repeat.

    As many as fit into :data:`MAX_SEEDED_BYTES`.
    """
    ends = list(itertools.accumulate(shard.sequences for shard in dataset.shards))
    place = start % dataset.train_sequences
    first = bisect.bisect_right(ends, place)
    ahead = ends[first] - dataset.shards[first].sequences - place
    due, room_bytes = [], MAX_SEEDED_BYTES
    for shard in (*dataset.shards[first:], *dataset.shards[:first]):
        room_bytes -= shard.bytes
        if room_bytes < 0:
            break
        due.append(shard)
        if ahead >= count:
            break
        ahead += shard.sequences
    return due


async def _hold(node: Node, dataset: DatasetManifest, due: list[ShardInfo]) -> None:
    """Fetch these shards and drop the others; where not all fit, the first ones stay."""
    node.blobs.spare_recent()
    for shard in due:
        await node.data.shard(bytes.fromhex(shard.sha256), shard.bytes)
    others = {shard.sha256 for shard in dataset.shards} - {shard.sha256 for shard in due}
    await asyncio.to_thread(node.blobs.drop, [bytes.fromhex(sha256) for sha256 in others])
