"""Brings a folder of the record's files up to date from a site, or from another mirror.

Nothing that the source says is believed. Steps of an update, all of which must hold
(:meth:`Mirror.update`); until the last one, nothing that the folder shows is changed:

1. the new head is of the folder's record, not smaller, and signed by a key that the pinned root
   delegated;
2. it extends the head that the folder holds, by a consistency proof from the source's tiles;
3. every new leaf parses and contradicts none before it (:mod:`ledger.fold`), and all of them hash
   to the new head; tiles of hashes are computed here, not copied;
4. its key was delegated at the newest leaf's time;
5. every public act is there, and is what its leaf stands for (:mod:`ledger.act_check`); profiles
   and the run's page can be read, and say nothing that was to be forgotten;
6. all of that is put into place, the head last.

Invariants:

* The root key is pinned in the folder from the first update on.
* What was revoked once stays revoked, whatever a later source leaves out.
* A refused head is kept, with the reason: signed, it proves that its log showed two histories.
* A full bundle of leaves that lies here is never asked for again, also after the program was
  killed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ledger.authority import Delegations, log_keys
from ledger.fetching import Fetch
from ledger.fold import Board
from ledger.mirror_pin import Pin
from ledger.mirror_tiles import TileBuilder, check_extends
from ledger.published import (
    MAX_ACT_BYTES,
    MAX_PROFILES_BYTES,
    MAX_SITE_BYTES,
    PROFILES,
    SITE,
    Profiles,
    Site,
    act_path,
)
from ledger.replay import Replay
from ledger.sources import TileSource
from ledger.tile_folder import CHECKPOINT, TileFolder
from ledger.tiles import (
    MAX_BUNDLE_BYTES,
    TILE_WIDTH,
    Tile,
    pack_entries,
    tiles_of,
    unpack_entries,
)
from protocol.envelope import parse_envelope
from protocol.errors import BadDigest, BadRecord, BadSignature, PeerFault, UsageError
from protocol.identity import PeerId
from protocol.notes import MAX_NOTE_BYTES, Checkpoint, open_checkpoint, read_checkpoint

Progress = Callable[[int, int], None]
"""``(leaves done, leaves in all)``"""


@dataclass(frozen=True)
class Update:
    """What an update brought."""

    origin: str
    root: PeerId
    old_size: int  # 0: the folder was empty
    size: int
    fetched_bundles: int  # of entries
    fetched_acts: int


@dataclass
class _Held:
    """The log that the folder shows, and what is asked of it next."""

    replay: Replay
    bundle: list[bytes] = field(default_factory=list)  # the last, partial one


class Mirror:
    """One folder, kept up to date from one source."""

    def __init__(
        self,
        folder: TileFolder,
        fetch: Fetch,
        *,
        root: PeerId | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Update ``folder``; nothing is read before :meth:`update`.

        Args:
            folder: made if missing.
            fetch: the source.
            root: fingerprint of the run's root key; without it the first update pins the one that
                the record names.
            progress: told how far the replay is.
        """
        self._folder = folder
        self._fetch = fetch
        self._source = TileSource(fetch)
        self._root = root
        self._progress = progress
        self._held: _Held | None = None
        self._tiles = TileBuilder(folder)
        self._known: Delegations | None = None
        self._bundles = self._acts = 0  # fetched by this update

    def update(self) -> Update:
        """Bring the folder up to date once.

        Raises:
            BadRecord, BadSignature, BadDigest: what is wrong with the source; nothing was changed,
                and its head is kept in ``refused``.
            TransientError: the source could not be read; what came of it is kept for the next time.
            UsageError: the folder is damaged, of another run, or in use.
        """
        with self._folder.alone():
            self._bundles = self._acts = 0
            pin = self._pinned()
            held = self._held or self._replay(pin)
            self._held = None  # until all went well: what is folded cannot be unfolded
            note = self._need(CHECKPOINT, MAX_NOTE_BYTES)
            try:
                made = self._take(held, pin, note)
            except PeerFault as error:
                self._folder.drop_staged()
                kept = self._folder.keep_refused(note, str(error))
                where = f"; the head is kept in {kept}" if kept else ""
                raise type(error)(f"refused, nothing was changed: {error}{where}") from error
            self._held = held
            return made

    def _pinned(self) -> Pin | None:
        pin = Pin.load(self._folder)
        if pin is not None and self._root not in (None, pin.root):
            raise UsageError(
                f"{self._folder.path} mirrors a run whose root key is {pin.root}: choose another "
                "folder for another run"
            )
        return pin

    def _replay(self, pin: Pin | None) -> _Held:
        """Fold what the folder holds, from its first leaf on."""
        held, note = _Held(Replay(self)), self._folder.checkpoint()
        self._tiles = TileBuilder(self._folder)
        if note is None:
            return held
        try:
            size = read_checkpoint(note).size
            for tile in tiles_of(size, None):
                data = self._folder.read(tile.path, MAX_BUNDLE_BYTES)
                if data is None:
                    raise BadRecord(f"{tile.path} is missing")
                self._fold(held, unpack_entries(data, tile.width), size)
            pin = pin or Pin.of(held.replay.board, self._root)
            self._known = self._folder.delegations()
            held.replay.check_head(note, self._known, pin)
        except PeerFault as error:
            raise UsageError(
                f"{self._folder.path} is damaged, or of another run: {error}; mirror into a new "
                "folder"
            ) from error
        return held

    def _take(self, held: _Held, pin: Pin | None, data: bytes) -> Update:
        """Check everything, then put it into place."""
        note = _text(data)
        head = read_checkpoint(note)
        delegations = self._learn()
        old_size = held.replay.size
        if pin is None:
            pin = Pin.of(held.replay.board, self._root) if old_size else self._first_pin(head)
        if head.origin != pin.origin:
            raise BadRecord(f"the head is of {head.origin!r}, this folder is for {pin.origin!r}")
        if head.size < old_size:
            raise BadDigest(
                f"the log shrank: {old_size} leaves are here, {head.size} under the head"
            )
        keys = log_keys(delegations, pin.root, pin.origin, run_id=pin.run, at_s=None)
        open_checkpoint(note, keys)
        check_extends(self._source, old_size, held.replay.root(), head)
        self._fetch_leaves(held, head)
        held.replay.check_head(note, delegations, pin)
        self._tiles.stage_partial()
        profiles, site = self._profiles(), self._site(pin)
        pin.save(self._folder)
        self._folder.publish(note, delegations)
        for path, content in ((PROFILES, profiles), (SITE, site)):
            if content is not None and content != self._folder.read(path, len(content)):
                self._folder.replace(path, content)
        return Update(pin.origin, pin.root, old_size, head.size, self._bundles, self._acts)

    def _first_pin(self, head: Checkpoint) -> Pin:
        """Which run this is; that its head is signed by the run's root is checked next."""
        if not head.size:
            raise BadRecord("the log is empty: not even its run was recorded")
        board = Board()
        board.apply(self._bundle(next(tiles_of(head.size, None)))[0])
        return Pin.of(board, self._root)

    def _fetch_leaves(self, held: _Held, head: Checkpoint) -> None:
        """Fold the leaves that the folder lacks."""
        size = held.replay.size
        if head.size == size:
            return
        for tile in tiles_of(head.size, None, first=size // TILE_WIDTH):
            leaves = self._bundle(tile)
            known = list(held.bundle) if tile.index == size // TILE_WIDTH else []
            for offset, leaf in enumerate(known):
                if leaves[offset] != leaf:
                    index = tile.index * TILE_WIDTH + offset
                    raise BadDigest(f"leaf {index} is another than the one that this folder holds")
            self._fold(held, leaves[len(known) :], head.size)

    def _bundle(self, tile: Tile) -> list[bytes]:
        """Leaves of a bundle: from the folder, from an update that was cut short, or the source."""
        for read in (self._folder.read, self._folder.staged):
            data = read(tile.path, MAX_BUNDLE_BYTES)
            if data is not None:
                return unpack_entries(data, tile.width)
        leaves = self._source.bundle(tile)
        self._bundles += 1
        self._folder.stage(tile.path, pack_entries(leaves))
        return leaves

    def _fold(self, held: _Held, leaves: list[bytes], total: int) -> None:
        for data in leaves:
            _, made = held.replay.take(data)
            self._tiles.add(made)
            held.bundle.append(data)
            if len(held.bundle) == TILE_WIDTH:
                held.bundle.clear()
            self._progress(held.replay.size, total)

    def delegations(self) -> Delegations | None:
        """What is known of the root key's word: for :class:`ledger.act_check.ActCheck`."""
        return self._known

    def _learn(self) -> Delegations:
        """The word of the source and of the folder together."""
        published = self._source.delegations()
        if published is None:
            raise BadSignature("no delegations are published with this log")
        self._known = published.joined(self._folder.delegations())
        return self._known

    def act(self, index: int) -> bytes | None:
        """The act behind a leaf, staged if the folder lacks it."""
        path = act_path(index)
        for read in (self._folder.read, self._folder.staged):
            data = read(path, MAX_ACT_BYTES)
            if data is not None:
                return data
        data = self._source.act(index)
        if data is not None:
            data = parse_envelope(data).SerializeToString(deterministic=True)  # only what is signed
            self._folder.stage(path, data)
            self._acts += 1
        return data

    def _profiles(self) -> bytes | None:
        data = self._fetch(PROFILES, MAX_PROFILES_BYTES)
        if data is None:
            return None
        held = self._folder.read(PROFILES, MAX_PROFILES_BYTES)
        before = Profiles() if held is None else Profiles.parse(held)
        made = Profiles.parse(data).after(before).dump()
        if len(made) > MAX_PROFILES_BYTES:
            raise BadRecord(f"{PROFILES}: with what is to be forgotten they are too large")
        return made

    def _site(self, pin: Pin) -> bytes | None:
        data = self._fetch(SITE, MAX_SITE_BYTES)
        if data is None:
            return None
        return Site.parse(data).leading_to(pin.run_id, pin.root).dump()

    def _need(self, path: str, most_bytes: int) -> bytes:
        data = self._fetch(path, most_bytes)
        if data is None:
            raise BadRecord(f"{path} is missing: this is not a log's site, nor a mirror")
        return data[: most_bytes + 1]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRecord("the checkpoint is not text") from error
