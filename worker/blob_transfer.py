"""One blob from several sources at once into its partial file, and who lied when it is wrong.

Invariants:

* Peers and anchors are used together for a large blob, one after the other for a small one; the
  coordinator's store when they do not do: they all ended, or brought no block for a while.
* The digest is of the whole, so a wrong one alone names nobody when several sources gave blocks.
  Who it was is found out by having all of it from one source alone: wrong again, that one lied;
  right, those lied whose blocks were others. So nobody is dropped for another's lie.
* The organiser's sources are the first to be heard alone: one more blob, and the search ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

import structlog

from protocol.channel import backoff_s
from protocol.errors import PeerFault, TransientError, UsageError
from worker.block_plan import BlockPlan
from worker.partial_blob import BLOCK_BYTES, PartialBlob
from worker.peer_blobs import checked_data
from worker.sources import Source, Sources

log = structlog.get_logger()

WIDTH = 4
"""Sources used at once for a large blob."""

SMALL_BYTES = 4 << 20
"""Up to this size one source is used at a time."""

PATIENCE_S = 5.0
"""When no block came for so long, another source is used as well."""

_ROTTEN_TIMES = 3
_RESERVE_TRIES = 6  # streams without a block; of others one is enough, somebody else has it


class BlobTransfer:
    """See the module; :meth:`run` once."""

    def __init__(
        self, sha256: bytes, partial: PartialBlob, sources: list[Source], book: Sources
    ) -> None:
        self._sha256 = sha256
        self._partial = partial
        self._sources = sources
        self._idle: list[Source] = []  # those that would serve, but are at no block
        self._book = book
        self._news = asyncio.Event()
        self._kept: Counter[str] = Counter()
        self._problems: dict[str, str] = {}
        self._disk_error: OSError | None = None

    async def run(self) -> None:
        """Until the bytes are right.

        Raises:
            TransientError: there is no source left, or the disk does not keep what is written.
            OSError: the disk is full or refuses.
        """
        self._partial.forget(self._book.bad)
        rotten = 0
        while rotten <= _ROTTEN_TIMES:
            await self._collect()
            if await self._is_right():
                return
            if await asyncio.to_thread(self._partial.drop_rotten):
                log.warning("a download was changed on the disk", sha256=self._sha256.hex())
                rotten += 1
            elif await self._judge():
                return
        raise TransientError(f"{self._partial.path} keeps changing on the disk: check the disk")

    async def _is_right(self) -> bool:
        return await asyncio.to_thread(self._partial.sha256) == self._sha256

    # ---- several sources at once -------------------------------------------------------

    async def _collect(self) -> None:
        """Fetch the blocks that are missing."""
        plan = BlockPlan(self._partial.count, self._partial.given)
        width = WIDTH if self._partial.total_bytes > SMALL_BYTES else 1
        self._idle = list(self._sources)
        running: set[asyncio.Task[None]] = set()
        patient = True
        async with asyncio.TaskGroup() as tasks:
            while not plan.complete and self._disk_error is None:
                self._news.clear()
                running = {task for task in running if not task.done()}
                idle = bool(self._idle) and plan.is_open
                wider = idle and len(running) < width and not self._idle[0].reserve
                if wider or (idle and not (running and patient)):
                    running.add(tasks.create_task(self._draw(self._idle.pop(0), plan)))
                    patient = True
                elif running:
                    patient = await self._hear()
                else:
                    break
            for task in running:
                task.cancel()
        self._require(plan)

    async def _hear(self) -> bool:
        """Wait for a block, or for the end of a source; False when neither came in time."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _require(self, plan: BlockPlan) -> None:
        if self._disk_error is not None:
            raise self._disk_error
        if not plan.complete:
            raise nobody_serves(self._sha256, self._problems)

    async def _draw(self, source: Source, plan: BlockPlan) -> None:
        """Fetch from one source for as long as there is something to do and it serves."""
        try:
            await self._draw_blocks(source, plan)
            self._idle.insert(0, source)
        except (TransientError, UsageError) as error:
            log.info("source could not serve", source=source.name, problem=str(error))
            self._problems[source.name] = str(error)
            self._book.refused(source.name, self._sha256)
        except PeerFault as error:
            self._problems[source.name] = str(error)
            self._drop(source.name, str(error))
            plan.undo(self._forget(source.name))
        except OSError as error:
            self._disk_error = error
        finally:
            plan.leave(source.name)
            self._news.set()

    async def _draw_blocks(self, source: Source, plan: BlockPlan) -> None:
        barren = 0  # streams in a row that brought no block
        block = plan.next(source.name)
        while block is not None:
            before = self._kept[source.name]
            try:
                block = await self._stream(source, plan, block)
                continue
            except TransientError as error:
                barren = barren + 1 if self._kept[source.name] == before else 0
                if barren == (_RESERVE_TRIES if source.reserve else 1):
                    raise
                log.info("a source broke off", source=source.name, problem=str(error))
            plan.leave(source.name)
            await asyncio.sleep(backoff_s(barren))
            block = plan.next(source.name)

    async def _stream(self, source: Source, plan: BlockPlan, block: int) -> int | None:
        """One stream, block after block; returns the next block, if that is elsewhere."""
        offset = block * BLOCK_BYTES
        buffer = bytearray()
        pieces = source.pieces(self._sha256, offset)
        data = checked_data(pieces, offset, self._partial.total_bytes, source.name)
        async with aclosing(data):
            async for piece in data:
                buffer += piece
                while len(buffer) >= (length := self._partial.length(block)):
                    await self._keep(source, plan, block, bytes(buffer[:length]))
                    del buffer[:length]
                    following = plan.next(source.name, after=block)
                    if following != block + 1:
                        return following
                    block = following
        return None

    async def _keep(self, source: Source, plan: BlockPlan, block: int, data: bytes) -> None:
        if plan.claim(block):
            await asyncio.to_thread(self._partial.keep, block, data, source.name)
            plan.finish(block)
        self._kept[source.name] += 1
        self._news.set()

    # ---- who lied ----------------------------------------------------------------------

    async def _judge(self) -> bool:
        """Find out who gave wrong bytes; at least one is dropped.

        Returns:
            Whether the bytes are right now; if not, they are to be fetched again.

        Raises:
            TransientError: there is no source left that could tell.
        """
        given = dict(self._partial.given)
        names = {block.source for block in given.values()}
        if len(names) <= 1:
            await self._convict(*names)
            return False
        log.warning("bytes from several sources are wrong together", sources=sorted(names))
        for source in sorted(self._sources, key=lambda source: not source.organiser):
            if not await self._alone(source):
                continue
            if await self._is_right():
                now = self._partial.given
                for name in {old.source for b, old in given.items() if old.sha256 != now[b].sha256}:
                    self._drop(name, "its blocks were other bytes than those of the blob")
                return True
            await self._convict(source.name)
        raise nobody_serves(self._sha256, self._problems)

    async def _alone(self, source: Source) -> bool:
        """Have everything from one source; whether it gave all."""
        own = [b for b, given in self._partial.given.items() if given.source == source.name]
        plan = BlockPlan(self._partial.count, own)
        await self._draw(source, plan)
        if self._disk_error is not None:
            raise self._disk_error
        return plan.complete

    async def _convict(self, *names: str) -> None:
        """All that is here is from one source, and it is wrong."""
        for name in names:
            self._problems[name] = "it served other bytes"
            self._drop(name, "all that it gave together is not the blob")
        await asyncio.to_thread(self._partial.clear)

    def _drop(self, name: str, why: str) -> None:
        self._book.convict(name, why)
        self._sources = [source for source in self._sources if source.name != name]

    def _forget(self, name: str) -> list[int]:
        blocks = [b for b, given in self._partial.given.items() if given.source == name]
        self._partial.forget([name])
        return blocks


def nobody_serves(sha256: bytes, problems: dict[str, str]) -> TransientError:
    """What to tell when every source failed."""
    said = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return TransientError(f"nobody serves {sha256.hex()[:16]} now ({said or 'no source is known'})")
