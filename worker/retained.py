"""What this machine keeps on disk for audits: its own updates, and the inputs that it reduced.

Invariants:

* Inputs of a group are there whole or not at all: written under another name, then renamed. So a
  kill at any point leaves at most a half-made folder, which the next start removes.
* Kept until the coordinator says that no audit needs their round, or the disk bound is reached:
  then the oldest go first. What the round under way may need is never deleted.
* Nothing read back is believed: leaf hashes must lead to the roster's commitments and chunks hash
  to them. A damaged disk makes evidence unavailable, never wrong.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import structlog

from protocol import merkle
from protocol.envelope import Signed, open_envelope, parse_envelope
from protocol.errors import NotFound, PeerFault, TransientError
from protocol.wire import records_pb2 as wire
from worker.group import Group
from worker.reducer import Reducer
from worker.updates import ChunkFile, UpdateName, find_update

log = structlog.get_logger()

MOST_BYTES = 2 << 30
MOST_OF_FREE_DISK = 0.1

_MOST_WAITING = 3
"""Groups in memory that wait for the disk."""

_PART = ".part"
_ROSTER, _INCLUSION = "roster", "inclusion"


@dataclass(frozen=True)
class Kept:
    """One file or folder that an audit may ask for."""

    path: Path
    round: int

    @cached_property
    def bytes(self) -> int:
        files = [self.path, *self.path.rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file())

    def delete(self) -> None:
        """A folder is renamed first: a kill in between leaves no half of it."""
        if self.path.is_dir():
            part = self.path.with_name(self.path.name + _PART)
            shutil.rmtree(part, ignore_errors=True)
            self.path.rename(part)
            shutil.rmtree(part)
        else:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class KeptInputs:
    """The inputs of one group's range, as they were when its inclusion set was signed."""

    folder: Path
    group: Group
    first: int  # chunks [first, end) of every included member
    end: int

    def of(self, member: str) -> ChunkFile:
        """One member's chunks; blocking.

        Raises:
            NotFound: they are not here, or were damaged on disk.
        """
        layout, known = self.group.layout, self.group.members.get(member)
        if known is None:
            raise NotFound("not a member of this group")
        path = self.folder / _member_file(self.group, member)
        try:
            with path.open("rb") as file:
                leaves = [file.read(merkle.HASH_BYTES) for _ in range(layout.count)]
        except OSError as error:
            raise NotFound(f"the chunks of {member} are not here any more") from error
        if merkle.root(leaves) != known.commitment_root:
            raise NotFound(f"the chunks of {member} were damaged on disk")
        offset = merkle.HASH_BYTES * layout.count
        codec = self.group.codec
        return ChunkFile(path, offset, layout, codec, self.first, self.end, member, tuple(leaves))


class Retained:
    """Two folders under the home folder, and one bound on what they take together."""

    def __init__(self, updates: Path, inputs: Path, most_bytes: int = MOST_BYTES) -> None:
        """
        Args:
            updates: holds the files of :mod:`worker.updates`.
            inputs: holds one folder for each group; made if it is not there.
            most_bytes: of both together; a tenth of the free disk if that is less.
        """
        self.updates, self.inputs, self.most_bytes = updates, inputs, most_bytes
        self.current_round = 0  # what is of this round or later stays whatever it takes
        self._waiting: dict[bytes, tuple[Reducer, Signed[wire.InclusionSet]]] = {}
        self._news = asyncio.Event()
        self._tidied_for = (0, 0)
        inputs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in inputs.glob(f"*{_PART}"):
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
        included = (member.worker for member in group.included(inclusion))
        members = [name for name in included if reducer.inboxes[name].statement is not None]
        round_, final = group.record.round, self._folder(group)
        if final.exists():
            return
        part = final.with_name(final.name + _PART)
        try:
            for kept in self._kept_inputs():
                if kept.round == round_:
                    kept.delete()
            self._make_room(_bytes_needed(reducer, len(members)))
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o700)
            (part / _ROSTER).write_bytes(group.roster.envelope.SerializeToString())
            (part / _INCLUSION).write_bytes(inclusion.envelope.SerializeToString())
            for name in members:
                inbox = reducer.inboxes[name]
                with (part / _member_file(group, name)).open("wb") as file:
                    file.writelines(inbox.leaf_hashes)
                    file.writelines(inbox.chunks[i] for i in range(reducer.first, reducer.end))
            part.rename(final)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise TransientError(f"cannot write {final}: {error.strerror}") from error

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
        try:
            envelope = parse_envelope((folder / _ROSTER).read_bytes())
            group = Group.of(open_envelope(envelope, wire.Roster))
        except (OSError, PeerFault) as error:
            raise NotFound("the roster of this group was damaged on disk") from error
        own = group.range_of(reducer)
        if own is None or group.group_id != group_id:
            raise NotFound("the roster of this group was damaged on disk")
        return KeptInputs(folder, group, own.first_chunk, own.end_chunk)

    def _folder(self, group: Group) -> Path:
        return self.inputs / f"{group.record.round:010d}-{group.group_id.hex()}"

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
        try:
            for kept in self._kept():
                if kept.round < min(retain_from, current_round):
                    kept.delete()
            with suppress(TransientError):  # what the round under way needs stays whatever it takes
                self._make_room(0)
        except OSError as error:
            raise TransientError(f"cannot delete old evidence: {error.strerror}") from error
        self._tidied_for = (retain_from, current_round)

    def limit_bytes(self) -> int:
        """What both folders may take now; blocking."""
        held = sum(kept.bytes for kept in self._kept())
        free = shutil.disk_usage(self.inputs).free + held
        return min(self.most_bytes, int(free * MOST_OF_FREE_DISK))

    def _make_room(self, needed_bytes: int) -> None:
        """Delete the oldest until ``needed_bytes`` fit in.

        Raises:
            TransientError: they cannot.
        """
        limit_bytes = self.limit_bytes()
        kept = sorted(self._kept(), key=lambda item: item.round)
        held_bytes = sum(item.bytes for item in kept)
        for item in kept:
            if held_bytes + needed_bytes <= limit_bytes:
                break
            if item.round < self.current_round:
                held_bytes -= item.bytes
                item.delete()
                log.info("evidence dropped for want of room", round=item.round)
        if held_bytes + needed_bytes > limit_bytes:
            raise TransientError(f"{needed_bytes} bytes of inputs are over the disk bound")

    def _kept(self) -> Iterator[Kept]:
        yield from self._kept_inputs()
        for path in self.updates.glob("*.update"):
            name = UpdateName.of(path)
            yield Kept(path, 0 if name is None else name.round)

    def _kept_inputs(self) -> Iterator[Kept]:
        for path in self.inputs.iterdir():
            round_ = path.name.partition("-")[0]
            if path.suffix != _PART and round_.isdecimal():
                yield Kept(path, int(round_))


def _member_file(group: Group, member: str) -> str:
    return f"{list(group.members).index(member):04d}"


def _bytes_needed(reducer: Reducer, members: int) -> int:
    group = reducer.group
    chunks = sum(group.encoded_bytes(chunk) for chunk in range(reducer.first, reducer.end))
    return members * (chunks + merkle.HASH_BYTES * group.layout.count)
