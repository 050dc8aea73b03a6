"""Which source fetches which block next: bookkeeping without input or output.

Invariants:

* While there is a block that nobody fetches, no block is fetched twice.
* When there is none, the one that has been under way longest is fetched by an idle source too: who
  is slow or stalled loses it, without anybody having to say after how many seconds.
* A source goes on with the next block if it can, for that is the same stream.
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPlan:
    """The blocks of one blob and who is at which."""

    def __init__(self, count: int, done: Iterable[int] = ()) -> None:
        self._count = count
        self._done = set(done)
        self._claimed = set(self._done)  # done, or being written down
        self._busy: dict[str, int] = {}  # source -> its block, longest under way first

    @property
    def complete(self) -> bool:
        return len(self._done) == self._count

    @property
    def is_open(self) -> bool:
        """Whether a source that asks for a block gets one."""
        return len(self._claimed) < self._count

    def next(self, source: str, after: int | None = None) -> int | None:
        """Give a source its next block; None when there is nothing to do for it.

        Args:
            after: the block that it has just fetched.
        """
        self.leave(source)
        block = self._choose(after)
        if block is not None:
            self._busy[source] = block
        return block

    def leave(self, source: str) -> None:
        """A source is at no block any more."""
        self._busy.pop(source, None)

    def claim(self, block: int) -> bool:
        """Whether the caller is the one to write a block down; so only the first is."""
        if block in self._claimed:
            return False
        self._claimed.add(block)
        return True

    def finish(self, block: int) -> None:
        """A block that was claimed is written down."""
        self._done.add(block)

    def undo(self, blocks: Iterable[int]) -> None:
        """Blocks that turned out to be worth nothing."""
        self._done.difference_update(blocks)
        self._claimed.difference_update(blocks)

    def _is_free(self, block: int) -> bool:
        return block not in self._claimed and block not in self._busy.values()

    def _choose(self, after: int | None) -> int | None:
        if after is not None and after + 1 < self._count and self._is_free(after + 1):
            return after + 1
        start, end = self._widest_gap()
        if start < end:
            coming = start - 1 in self._busy.values()  # somebody who would go on into it
            return (start + end) // 2 if coming else start
        slow = (block for block in self._busy.values() if block not in self._claimed)
        return next(slow, None)

    def _widest_gap(self) -> tuple[int, int]:
        widest, start = (0, 0), 0
        for block in range(self._count + 1):
            if block == self._count or not self._is_free(block):
                if block - start > widest[1] - widest[0]:
                    widest = (start, block)
                start = block + 1
        return widest
