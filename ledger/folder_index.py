"""An index of a folder of the record's files, so that pages can be made of them.

A folder has no order but that of the leaves; the leaderboard looks them up by round, donor and
assignment. The index is a SQLite file with the tables of the record, made from the folder alone.

Invariants:

* What is in it was verified: leaves are folded, hash to the folder's head, and that is signed by a
  key that the run's root delegated.
* It is of one head or of a later one, whenever its writer dies; half an index is made anew.
* The folder is only read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import Delegations, store_delegations
from ledger.crowd_records import ActLeaf, DelegationLeaf
from ledger.log import append_leaves, latest_head, read_leaves
from ledger.mirror_pin import Pin
from ledger.published import (
    MAX_PROFILES_BYTES,
    MAX_SITE_BYTES,
    PROFILES,
    SITE,
    Profiles,
    Site,
    store_profiles,
    store_site,
)
from ledger.records import Leaf, RunLeaf, parse_leaf
from ledger.replay import Replay
from ledger.schema import ActRow, Base, LogHead
from ledger.sources import directory_source
from ledger.tile_folder import CHECKPOINT, DELEGATIONS, TileFolder
from ledger.tiles import TILE_WIDTH, tiles_of
from protocol.envelope import parse_envelope
from protocol.errors import BadDigest, UsageError
from protocol.identity import PeerId
from protocol.notes import read_checkpoint

_ROWS = 2000
_WATCHED = (CHECKPOINT, DELEGATIONS, PROFILES, SITE)


class FolderIndex:
    """The index of one folder, in one file."""

    def __init__(self, folder: Path, file: Path, *, root: PeerId | None = None) -> None:
        """Index ``folder`` in ``file``; nothing is read or written before :meth:`refresh`.

        Args:
            folder: of tiles; only read.
            file: SQLite, made if missing.
            root: fingerprint of the run's root key; without it, the one that the folder pins, or
                that its record names.
        """
        self._folder = TileFolder(folder)
        self._file = file
        self._root = root
        self._source = directory_source(folder)
        self._replay = Replay(self._source)
        self._seen: object = None

    @property
    def url(self) -> str:
        """The index as a database that :func:`ledger.leaderboard.app.create_app` takes."""
        return f"sqlite:///{self._file}"

    def refresh(self) -> bool:
        """Bring the index up to date; returns whether there was anything to do.

        Raises:
            PeerFault: the folder is damaged, or not signed by who may; the index stays as it was.
            UsageError: there is no record in the folder, or the index cannot be written.
        """
        seen = self._look()
        if seen == self._seen:
            return False
        with self._alone():
            note = self._folder.checkpoint()
            if note is None:
                raise UsageError(
                    f"{self._folder.path} holds no record: make it with barnraise ledger mirror"
                )
            if not self._file.exists() or not self._continue(note):
                self._make_anew(note)
        self._seen = seen
        return True

    def _continue(self, note: str) -> bool:
        """Go on with the index that is there; False if it has to be made anew."""
        try:
            if self._fill(self._file, note):
                return True
        except DatabaseError:  # damaged, or of an older version
            if self._seen is not None:
                raise
        if self._seen is not None:  # readers have the file open
            raise UsageError(f"{self._folder.path} holds another history now: serve it anew")
        return False

    def _look(self) -> object:
        """Changes whenever one of the files that change was replaced."""
        found: list[object] = []
        for name in _WATCHED:
            try:
                status = (self._folder.path / name).stat()
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                found.append(None)
        return found

    def _make_anew(self, note: str) -> None:
        building = self._file.with_name(self._file.name + ".building")
        for name in (building, self._file):
            for suffix in ("", "-wal", "-shm"):
                name.with_name(name.name + suffix).unlink(missing_ok=True)
        self._replay = Replay(self._source)
        if not self._fill(building, note):
            raise BadDigest("a new index does not fit its folder")
        building.replace(self._file)

    def _fill(self, file: Path, note: str) -> bool:
        """Add what is new, in one transaction; False if the index is of another history."""
        engine = _engine(file)
        try:
            with Session(engine) as session, session.begin():
                head = latest_head(session)
                if head is None or head.checkpoint != note:
                    if not self._extends(session, note):
                        return False
                    self._add_leaves(session, note)
                self._add_beside(session)
            return True
        finally:
            engine.dispose()

    def _extends(self, session: Session, note: str) -> bool:
        head = read_checkpoint(note)
        held = latest_head(session)
        if held is None:
            return tree.tree_size(session) == 0
        at = read_checkpoint(held.checkpoint)
        return at.origin == head.origin and at.size <= head.size

    def _add_leaves(self, session: Session, note: str) -> None:
        """Replay the folder, and append the leaves that the index lacks."""
        size, waiting = tree.tree_size(session), list[Leaf]()
        delegated: dict[int, DelegationLeaf] = {}  # by leaf index
        known_root = tree.root(session, size)
        if self._replay.size > read_checkpoint(note).size:
            self._replay = Replay(self._source)
        replay, self._replay = (
            self._replay,
            Replay(self._source),
        )  # of no use once a leaf was refused
        for data in self._leaves(replay.size, read_checkpoint(note).size):
            leaf, _ = replay.take(data)
            if replay.size == size and replay.root() != known_root:
                raise BadDigest(f"the first {size} leaves are not those that were indexed")
            if replay.size > size:
                waiting.append(leaf)
                if isinstance(leaf, DelegationLeaf):
                    delegated[replay.size - 1] = leaf
                elif isinstance(leaf, ActLeaf):
                    act = self._source.act(replay.size - 1)
                    self._add_act(session, replay.size - 1, leaf, act)
            if len(waiting) == _ROWS:
                append_leaves(session, waiting)
                waiting.clear()
        append_leaves(session, waiting)
        delegations = self._folder.delegations()
        pin = Pin.load(self._folder) or Pin.of(replay.board, self._root)
        replay.check_head(note, delegations, pin)
        self._replay = replay
        self._add_head(session, note, delegations)
        published = _by_digest(delegations)
        for index, said in delegated.items():
            self._add_act(session, index, said, published.get(said.record_digest))

    def _leaves(self, start: int, end: int) -> Iterator[bytes]:
        if start == end:
            return
        for tile in tiles_of(end, None, first=start // TILE_WIDTH):
            yield from self._source.bundle(tile)[max(0, start - tile.index * TILE_WIDTH) :]

    @staticmethod
    def _add_head(session: Session, note: str, delegations: Delegations | None) -> None:
        size = read_checkpoint(note).size
        session.merge(LogHead(tree_size=size, checkpoint=note, signed_at_s=0))
        if delegations is not None:
            store_delegations(session, delegations.delegations, delegations.revocations)

    def _add_beside(self, session: Session) -> None:
        profiles = self._folder.read(PROFILES, MAX_PROFILES_BYTES)
        if profiles is not None:
            store_profiles(session, Profiles.parse(profiles))
        site = self._folder.read(SITE, MAX_SITE_BYTES)
        if site is not None:
            run = parse_leaf(next(read_leaves(session, 0, 1)))
            assert isinstance(run, RunLeaf)
            shown = Site.parse(site).leading_to(run.run_id, run.run_manifest().root)
            store_site(session, run.run_id, shown)

    @staticmethod
    def _add_act(session: Session, index: int, leaf: ActLeaf, data: bytes | None) -> None:
        """Keep the act behind a leaf, where it is public; the replay has checked it."""
        if data is None:
            return
        session.add(
            ActRow(
                leaf_index=index,
                digest=leaf.record_digest,
                signer=parse_envelope(data).signatures[0].keyid,
                public=True,
                envelope=data,
            )
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Several sites may serve one folder: one of them writes the index."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._file.with_name(self._file.name + ".lock"), os.O_CREAT)
        except OSError as error:
            raise UsageError(
                f"cannot write the index {self._file}: {error.strerror}; choose another --index"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _engine(file: Path) -> Engine:
    engine = create_engine(f"sqlite:///{file}")

    @event.listens_for(engine, "connect")
    def configure(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        # What it is made of is still there: an index need not survive a power cut, but a reader
        # must not wait for its writer.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    Base.metadata.create_all(engine)
    return engine


def _by_digest(records: Delegations | None) -> dict[str, bytes]:
    """What the root key signed: a mirror has it in ``delegations``, not in ``acts``."""
    if records is None:
        return {}
    return {
        hashlib.sha256(envelope.payload).hexdigest(): envelope.SerializeToString(deterministic=True)
        for envelope in (*records.delegations, *records.revocations)
    }
