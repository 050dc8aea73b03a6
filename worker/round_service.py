"""The two stream handlers of the all-reduce, and the groups that they serve.

Invariant: a stream reaches a group only through the group's id; the peer's name is the one that
the transport authenticated. Handlers translate; :mod:`worker.reducer` and
:mod:`worker.allreduce` decide.
"""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator  # noqa: UP035  # ServicerBase reads typing's

from hivemind.p2p import P2PContext, ServicerBase
from hivemind.proto import averaging_pb2

from protocol.errors import BadRecord
from worker import frames
from worker.allreduce import GroupReduce
from worker.callers import Familiar
from worker.group import GROUP_ID_BYTES
from worker.streams import BoundedP2P, Served

UNKNOWN_GROUP_WAIT_S = 60.0
"""Members learn of a roster at different moments: so long does a stream wait for ours."""


class GroupBook:
    """The groups that are open here, by id."""

    def __init__(self) -> None:
        self.familiar = Familiar()
        self._groups: dict[bytes, GroupReduce] = {}
        self._opened = asyncio.Event()

    def get(self, group_id: bytes) -> GroupReduce | None:
        return self._groups.get(group_id)

    def add(self, group: GroupReduce) -> None:
        self._groups[group.group_id] = group
        self.familiar.add(group.group.members)
        self.familiar.add(item.reducer for item in group.group.reducers)
        opened, self._opened = self._opened, asyncio.Event()
        opened.set()

    def remove(self, group_id: bytes) -> None:
        self._groups.pop(group_id, None)

    def close_all(self) -> None:
        for group in list(self._groups.values()):
            group.close()

    def reducers(self) -> dict[str, list[str]]:
        """Of the open groups, with the addresses that their rosters tell."""
        items = (item for group in self._groups.values() for item in group.group.reducers)
        return {item.reducer: list(item.multiaddrs) for item in items}

    def partners(self) -> dict[str, list[str]]:
        """All reducers, and whoever sends to us; of those the rosters tell no address."""
        reduced = [group for group in self._groups.values() if group.is_reducer]
        return {name: [] for group in reduced for name in group.group.members} | self.reducers()

    async def wait(self, group_id: bytes) -> GroupReduce | None:
        """The group, once it is open here; None when it did not open in time."""
        try:
            async with asyncio.timeout(UNKNOWN_GROUP_WAIT_S):
                while group_id not in self._groups:
                    await self._opened.wait()
        except TimeoutError:
            return None
        return self._groups[group_id]


class RoundService(ServicerBase):  # type: ignore[misc]
    """GATHER and BROADCAST on hivemind's streams; see :mod:`worker.frames` for the frames."""

    def __init__(self, book: GroupBook) -> None:
        self._book = book

    async def add_p2p_handlers(self, p2p: BoundedP2P, **options: Any) -> None:
        """Serve on this daemon, those first who take part in a reduce."""
        p2p.callers.familiar = self._book.familiar
        await super().add_p2p_handlers(p2p, **options)

    async def rpc_gather(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        first = await anext(stream, None)
        if first is None:
            return
        group = await self._group(first)
        if group is None or group.reducer is None:
            yield _unknown(first)
            return
        sender = context.remote_id.to_base58()
        async for reply in group.reducer.receive(sender, first, stream):
            if reply.tensor_part.dtype == frames.READY and isinstance(context, Served):
                # As many senders at once as the owner's line takes: what each sends ahead counts.
                await context.toll.expect(group.reducer.bytes_from(reply.tensor_part.chunks))
            yield reply

    async def rpc_broadcast(
        self, request: averaging_pb2.AveragingData, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        group = await self._group(request)
        if group is None:
            yield _unknown(request)
            return
        async for reply in group.serve_results(request):
            yield reply

    async def _group(self, first: averaging_pb2.AveragingData) -> GroupReduce | None:
        if len(first.group_id) != GROUP_ID_BYTES:
            raise BadRecord("not a group id")
        return await self._book.wait(first.group_id)


def _unknown(first: averaging_pb2.AveragingData) -> averaging_pb2.AveragingData:
    return frames.refused(first.group_id, frames.BAD_GROUP_ID, "unknown group, or no reducer of it")
