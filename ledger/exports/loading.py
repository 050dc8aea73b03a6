"""Reads a whole record for a dump: its fold, its profiles, its signed head."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from ledger import published, tree
from ledger.exports.profiles import Profiles, shown_profiles
from ledger.fold import Board, fold
from ledger.log import latest_head, read_leaves
from ledger.sources import directory_source
from protocol import merkle
from protocol.errors import BadDigest, UsageError
from protocol.notes import read_checkpoint

Loaded = tuple[Board, Profiles, str]


def from_database(session: Session) -> Loaded:
    """From the database that holds the log.

    Raises:
        UsageError: no head was signed yet.
        ProtocolError: the log is damaged.
    """
    head = latest_head(session)
    if head is None or head.tree_size == 0:
        raise UsageError("nothing to dump: no head of this log was signed yet")
    board = fold(read_leaves(session, 0, head.tree_size))
    return board, shown_profiles(published.load_profiles(session)), head.checkpoint


def from_folder(folder: Path) -> Loaded:
    """From a mirror, whose leaves must hash to its head. Who signed it, `ledger verify` checks.

    Raises:
        UsageError, TransientError: there is no mirror.
        ProtocolError: it is damaged.
    """
    source = directory_source(folder)
    note = source.checkpoint()
    head = read_checkpoint(note)
    board, edge = Board(), tree.Frontier(0, [])
    for data in source.entries(head.size):
        edge.push(merkle.leaf_hash(data))
        board.apply(data)
    if edge.root() != head.root or board.manifest is None:
        raise BadDigest(f"the {head.size} leaves in {folder} do not hash to its head's root")
    board.check_merged()
    return board, _profiles(folder), note


def _profiles(folder: Path) -> Profiles:
    path = folder / published.PROFILES
    try:
        with path.open("rb") as file:
            data = file.read(published.MAX_PROFILES_BYTES + 1)
    except FileNotFoundError:
        return Profiles()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return shown_profiles(published.Profiles.parse(data))
