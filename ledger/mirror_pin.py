"""Which run a mirror's folder is of: pinned by its first update, and never changed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import rfc8785

from ledger.fold import Board
from ledger.tile_folder import TileFolder
from protocol.errors import BadSignature, UsageError
from protocol.identity import PeerId

_FILE = "mirror"
_FORMAT = "barnraise-mirror/1"
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Pin:
    """A run, and the root key that speaks for it."""

    root: PeerId
    run_id: str  # hex
    origin: str

    @property
    def run(self) -> bytes:
        return bytes.fromhex(self.run_id)

    @classmethod
    def of(cls, board: Board, root: PeerId | None) -> Pin:
        """The run that a record says it is of.

        Raises:
            BadSignature: its root key is another than ``root``.
        """
        manifest = board.manifest
        assert manifest is not None
        if root not in (None, manifest.root):
            raise BadSignature(
                f"leaf 0: this run's root key is {manifest.root}, not the one that was given"
            )
        return cls(manifest.root, board.run_id, manifest.origin)

    @classmethod
    def load(cls, folder: TileFolder) -> Pin | None:
        """What the folder is pinned to; None before its first update.

        Raises:
            UsageError: the file is damaged.
        """
        data = folder.read(_FILE, _MAX_BYTES)
        if data is None:
            return None
        try:
            said = json.loads(data)
            if said.pop("format") != _FORMAT:
                raise ValueError(_FORMAT)
            return cls(**{name: str(value) for name, value in said.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{folder.path / _FILE} is damaged: remove the folder, and mirror anew"
            ) from error

    def save(self, folder: TileFolder) -> None:
        """Pin the folder; it says nothing else from then on."""
        if Pin.load(folder) != self:
            folder.replace(_FILE, rfc8785.dumps({"format": _FORMAT, **asdict(self)}))
