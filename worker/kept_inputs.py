"""One reduced group's inputs in a folder: what a reducer can still show when its group has closed.

    roster       envelope
    inclusion    envelope
    0000 ...     of each included member, numbered as in the roster: the leaf hashes of its whole
                 update, then the encoded chunks of our range

Invariants:

* The folder is there whole or not at all: written under another name, then renamed.
* Nothing read back is believed: leaf hashes must lead to the roster's commitments and chunks hash
  to them. A damaged disk makes evidence unavailable, never wrong.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import merkle
from protocol.envelope import Signed, open_envelope, parse_envelope
from protocol.errors import NotFound, PeerFault
from protocol.wire import records_pb2 as wire
from worker.group import Group
from worker.updates import ChunkFile

if TYPE_CHECKING:  # it loads hivemind, which showing what is kept has no use for
    from worker.reducer import Reducer

PART = ".part"
"""Suffix of a folder that is being made or removed."""

_ROSTER, _INCLUSION = "roster", "inclusion"


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


def write_inputs(folder: Path, reducer: Reducer, inclusion: Signed[wire.InclusionSet]) -> None:
    """Write the inputs of an inclusion set's members; blocking.

    A member that is not complete here is left out: its bytes prove nothing.

    Raises:
        OSError: the disk failed; nothing is left.
        BadRecord: the inclusion set is of another group.
    """
    group, part = reducer.group, folder.with_name(folder.name + PART)
    members = _complete(reducer, inclusion)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(mode=0o700)
        (part / _ROSTER).write_bytes(group.roster.envelope.SerializeToString())
        (part / _INCLUSION).write_bytes(inclusion.envelope.SerializeToString())
        for name in members:
            inbox = reducer.inboxes[name]
            with (part / _member_file(group, name)).open("wb") as file:
                file.writelines(inbox.leaf_hashes)
                file.writelines(inbox.chunks[i] for i in range(reducer.first, reducer.end))
        part.rename(folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise


def needed_bytes(reducer: Reducer, inclusion: Signed[wire.InclusionSet]) -> int:
    """What :func:`write_inputs` will take, but for the two envelopes.

    Raises:
        BadRecord: the inclusion set is of another group.
    """
    group = reducer.group
    chunks = sum(group.encoded_bytes(chunk) for chunk in range(reducer.first, reducer.end))
    leaves = merkle.HASH_BYTES * group.layout.count
    return len(_complete(reducer, inclusion)) * (leaves + chunks)


def open_inputs(folder: Path, group_id: bytes, reducer: str) -> KeptInputs:
    """Find one's way in a folder; blocking.

    Args:
        reducer: PeerID of whose range it is.

    Raises:
        NotFound: it is not here any more, or was damaged on disk.
    """
    try:
        envelope = parse_envelope((folder / _ROSTER).read_bytes())
        group = Group.of(open_envelope(envelope, wire.Roster))
    except (OSError, PeerFault) as error:
        raise NotFound("the roster of this group was damaged on disk") from error
    own = group.range_of(reducer)
    if own is None or group.group_id != group_id:
        raise NotFound("the roster of this group was damaged on disk")
    return KeptInputs(folder, group, own.first_chunk, own.end_chunk)


def _complete(reducer: Reducer, inclusion: Signed[wire.InclusionSet]) -> list[str]:
    included = (member.worker for member in reducer.group.included(inclusion))
    return [name for name in included if reducer.inboxes[name].statement is not None]


def _member_file(group: Group, member: str) -> str:
    return f"{list(group.members).index(member):04d}"
