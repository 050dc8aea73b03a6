"""What this machine keeps on disk for audits: its own updates, and the inputs that it reduced.

Invariants:

* A kill at any point leaves at most half-made folders, which the next start removes.
* Kept until the coordinator says that no audit needs their round, or the disk bound is reached:
  then the oldest go first. What the round under way may need is never deleted.
* It counts within what the owner allows of the disk (:mod:`worker.disk`), and is the last to go
  there: what else could be spared can be fetched again.
* Memory holds a bounded number of groups that wait for the disk, and nothing of older ones.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from protocol.envelope import Signed
from protocol.errors import NotFound, PeerFault, TransientError
from protocol.wire import records_pb2 as wire
from worker.disk import DiskQuota, Expendable
from worker.kept_inputs import PART, KeptInputs, needed_bytes, open_inputs, write_inputs
from worker.updates import UpdateName, find_update

if TYPE_CHECKING:  # it loads hivemind, which showing what is kept has no use for
    from worker.reducer import Reducer

log = structlog.get_logger()

MOST_BYTES = 2 << 30
MOST_OF_FREE_DISK = 0.1

_MOST_WAITING = 3
"""Groups in memory that wait for the disk."""


@dataclass(frozen=True)
class Kept:
    """One file or folder that an audit may ask for."""

    path: Path
    round: int

    @cached_property
    def size_bytes(self) -> int:
        files = [self.path, *self.path.rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file())

    def delete(self) -> None:
        """A folder is renamed first: a kill in between leaves no half of it."""
        if self.path.is_dir():
            part = self.path.with_name(self.path.name + PART)
            shutil.rmtree(part, ignore_errors=True)
            self.path.rename(part)
            shutil.rmtree(part)
        else:
            self.path.unlink(missing_ok=True)


class Retained:
    """Two folders under the home folder, and one bound on what they take together."""

    def __init__(
        self,
        updates: Path,
        inputs: Path,
        most_bytes: int = MOST_BYTES,
        quota: DiskQuota | None = None,
    ) -> None:
        """
        Args:
            updates: holds the files of :mod:`worker.updates`.
            inputs: holds one folder for each group.
            most_bytes: of both together; a tenth of the free disk if that is less.
            quota: of the whole home folder.
        """
        self.updates, self.inputs, self.most_bytes = updates, inputs, most_bytes
        self._quota = quota
        if quota is not None:
            quota.givers.append(self._expendable)
        self.current_round = 0  # what is of this round or later stays whatever it takes
        self._waiting: dict[bytes, tuple[Reducer, Signed[wire.InclusionSet]]] = {}
        self._news = asyncio.Event()
        self._tidied_for = (0, 0)
        self._disk = threading.Lock()  # one thread at a time makes room and fills it
        for part in inputs.glob(f"*{PART}"):
            shutil.rmtree(part, ignore_errors=True)

    # ---- own updates -------------------------------------------------------------------

    def update(self, assignment_id: bytes) -> Path | None:
        """The file of one's own encoded update; blocking."""
        return find_update(self.updates, assignment_id)

    # ---- a reducer's inputs ------------------------------------------------------------

    def is_writing(self, group_id: bytes) -> bool:
        """The inputs of this group are on their way to the disk."""
        return group_id in self._waiting

    def keep(self, reducer: Reducer, inclusion: Signed[wire.InclusionSet]) -> None:
        """Have a group's inputs written down by :meth:`run`; no round waits for a disk."""
        if len(self._waiting) >= _MOST_WAITING:
            log.warning("inputs not kept: the disk is too slow", round=inclusion.record.round)
            return
        self._waiting[reducer.group.group_id] = (reducer, inclusion)
        self._news.set()

    async def run(self) -> None:
        """Write down what is to be kept. Run it as a task, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.write_waiting()

    async def write_waiting(self) -> None:
        """Write down what waits for it now."""
        for group_id, (reducer, inclusion) in list(self._waiting.items()):
            try:
                await asyncio.to_thread(self.write, reducer, inclusion)
            except (TransientError, PeerFault) as error:
                log.warning("inputs not kept", group=group_id.hex(), problem=str(error))
            del self._waiting[group_id]

    def write(self, reducer: Reducer, inclusion: Signed[wire.InclusionSet]) -> None:
        """Write a group's inputs down; blocking. A group of an earlier attempt goes.

        Raises:
            TransientError: no room for them, or the disk failed.
            BadRecord: the inclusion set is of another group.
        """
        group = reducer.group
        final = self.inputs / f"{group.record.round:010d}-{group.group_id.hex()}"
        if final.exists():
            return
        with self._on_disk(f"cannot write {final}"):
            for kept in self._kept_inputs():
                if kept.round == group.record.round:
                    kept.delete()
            size_bytes = needed_bytes(reducer, inclusion)
            self._make_room(size_bytes)
            with self._room(final.with_name(final.name + PART), size_bytes):
                write_inputs(final, reducer, inclusion)

    def group(self, group_id: bytes, reducer: str) -> KeptInputs:
        """The kept inputs of a group; blocking.

        Args:
            reducer: our PeerID: whose range it is.

        Raises:
            NotFound: they are not here, or were damaged on disk.
        """
        folder = next(self.inputs.glob(f"*-{group_id.hex()}"), None)
        if folder is None:
            raise NotFound("the inputs of this group are not here")
        return open_inputs(folder, group_id, reducer)

    # ---- how long ----------------------------------------------------------------------

    def tidy(self, retain_from: int, current_round: int) -> None:
        """Delete what no audit needs, and what is over the bound; blocking, cheap without news.

        Args:
            retain_from: audits may ask for what is of this round or later.
            current_round: of the run's head.

        Raises:
            TransientError: the disk failed.
        """
        if (retain_from, current_round) == self._tidied_for:
            return
        self.current_round = current_round
        with self._on_disk("cannot delete old evidence"):
            for kept in self._kept():
                if kept.round < min(retain_from, current_round):
                    kept.delete()
            with suppress(TransientError):  # what the round under way needs stays whatever it takes
                self._make_room(0)
        self._tidied_for = (retain_from, current_round)

    def limit_bytes(self) -> int:
        """What both folders may take now; blocking."""
        held = sum(kept.size_bytes for kept in self._kept())
        free = shutil.disk_usage(self.inputs).free + held
        return min(self.most_bytes, int(free * MOST_OF_FREE_DISK))

    def _make_room(self, needed_bytes: int) -> None:
        """Delete the oldest until ``needed_bytes`` fit in.

        Raises:
            TransientError: they cannot.
        """
        limit_bytes = self.limit_bytes()
        kept = sorted(self._kept(), key=lambda item: item.round)
        held_bytes = sum(item.size_bytes for item in kept)
        for item in kept:
            if held_bytes + needed_bytes <= limit_bytes:
                break
            if item.round < self.current_round:
                held_bytes -= item.size_bytes
                item.delete()
                log.info("evidence dropped for want of room", round=item.round)
        if held_bytes + needed_bytes > limit_bytes:
            raise TransientError(f"{needed_bytes} bytes of inputs are over the disk bound")

    @contextmanager
    def _room(self, part: Path, size_bytes: int) -> Iterator[None]:
        """Within what the owner allows.

        Raises:
            NoRoom: there is none.
        """
        if self._quota is None:
            yield
            return
        self._quota.reserve(part, size_bytes, "the inputs of a reduce")
        try:
            yield
        finally:
            self._quota.release(part)

    def _expendable(self, guess: bool) -> list[Expendable]:
        """What an audit may still ask for but the round under way does not need, oldest first."""
        if guess:
            return []
        kept = sorted(self._kept(), key=lambda item: item.round)
        old = [item for item in kept if item.round < self.current_round]
        return [Expendable(item.size_bytes, item.delete) for item in old]

    @contextmanager
    def _on_disk(self, problem: str) -> Iterator[None]:
        with self._disk:
            try:
                yield
            except OSError as error:
                raise TransientError(f"{problem}: {error.strerror}") from error

    def _kept(self) -> Iterator[Kept]:
        yield from self._kept_inputs()
        for path in self.updates.glob("*.update"):
            name = UpdateName.of(path)
            yield Kept(path, 0 if name is None else name.round)

    def _kept_inputs(self) -> Iterator[Kept]:
        for path in self.inputs.iterdir():
            round_ = path.name.partition("-")[0]
            if path.suffix != PART and round_.isdecimal():
                yield Kept(path, int(round_))
