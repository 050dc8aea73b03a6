"""The record in its database, written out as static files that any web host can serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import load_delegations
from ledger.log import latest_head
from ledger.published import (
    MAX_ACT_BYTES,
    PROFILES,
    SITE,
    act_path,
    load_profiles,
    load_site,
    public_acts,
)
from ledger.tile_folder import TileFolder
from ledger.tiles import TILE_WIDTH, Tile, levels_of, read_tile, tiles_of
from protocol.errors import BadDigest, UsageError
from protocol.notes import Checkpoint, read_checkpoint


def export_tiles(
    session: Session, out: Path, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Write the log under its newest signed head, and what is published beside it.

    Files that are there already in full are kept, so that a folder is brought up to date cheaply.

    Args:
        session: of the ledger's database.
        out: folder, made if missing.
        progress: told the number of leaves written so far.

    Returns:
        Leaves under the head.

    Raises:
        UsageError: no head was signed yet, or the folder holds something else.
        BadDigest: the folder holds another history of this log.
    """
    head = latest_head(session)
    if head is None:
        raise UsageError("nothing to export: no head of this log was signed yet")
    size = read_checkpoint(head.checkpoint).size
    folder = TileFolder(out)
    with folder.alone():
        _check_held(session, folder, read_checkpoint(head.checkpoint))
        for level in levels_of(size):
            for tile in tiles_of(size, level):
                _stage_once(session, folder, tile)
        for tile in tiles_of(size, None):
            _stage_once(session, folder, tile)
            progress(tile.index * TILE_WIDTH + tile.width)
        for index, envelope in public_acts(session, size):
            if folder.read(act_path(index), MAX_ACT_BYTES) != envelope:
                folder.stage(act_path(index), envelope)
        folder.publish(head.checkpoint, load_delegations(session))
        folder.replace(PROFILES, load_profiles(session).dump())
        site = load_site(session)
        if site is not None:
            folder.replace(SITE, site.dump())
    return size


def _check_held(session: Session, folder: TileFolder, head: Checkpoint) -> None:
    """Insist that the folder holds nothing, or an earlier head of this log."""
    note = folder.checkpoint()
    if note is None:
        return
    held = read_checkpoint(note)
    if held.origin != head.origin:
        raise UsageError(
            f"{folder.path} holds the record of {held.origin!r}: choose another folder"
        )
    if held.size > head.size or tree.root(session, held.size) != held.root:
        raise BadDigest(
            f"{folder.path} holds a head of {held.size} leaves that this database does not extend: "
            "nothing was written"
        )


def _stage_once(session: Session, folder: TileFolder, tile: Tile) -> None:
    if not (folder.path / tile.path).exists():
        folder.stage(tile.path, read_tile(session, tile))
