"""The cache within its limits and in the status; and whether the run fits into it at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from protocol.errors import TransientError
from protocol.wire import records_pb2 as wire
from worker.prefetch import Prefetch
from worker.status import Board
from worker.unit_room import least_bytes

if TYPE_CHECKING:
    from worker.node import Node

log = structlog.get_logger()

_EVERY_S = 10.0


async def keep_cache(node: Node, prefetch: Prefetch, board: Board) -> None:
    """Let go of what is over the limits of now, and keep ``board.parts["cache"]`` up to date. Run
    it as a task."""
    while True:
        try:
            await asyncio.to_thread(node.disk.tidy)
        except TransientError as error:
            log.warning("the cache is larger than it may be", problem=str(error))
        board.parts["cache"] = {
            **await asyncio.to_thread(node.disk.part),
            "shards_found": node.data.found,
            "shards_fetched": node.data.fetched,
            "shards_ahead": prefetch.fetched,
        }
        await asyncio.sleep(_EVERY_S)


async def require_room(node: Node, head: wire.RunHead) -> None:
    """Before anything is fetched or leased: could a unit be seen through within the limit?

    Raises:
        UsageError: never; says which limit would do.
        TransientError: the dataset's manifest cannot be fetched now.
    """
    manifest = node.session.greeting.manifest
    needed_bytes = least_bytes(head, await node.data.dataset(), manifest)
    await asyncio.to_thread(node.disk.require, needed_bytes, "a unit of this run")
