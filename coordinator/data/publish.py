"""The last step of a build: from the working folder to the dataset's own place.

Invariant: ``dataset.json`` appears last and at once. Until then an earlier dataset in the folder
is still described by its own manifest; every step may be repeated after a kill.
"""

from __future__ import annotations

import re
from pathlib import Path

from coordinator.data.journal import WorkFolder, sync_folder, write_atomically
from coordinator.data.sources import SOURCES_NAME
from protocol.dataset import MANIFEST_NAME, SHARDS_NAME, TOKENIZER_NAME, DatasetManifest

_CONTENT_NAMED = re.compile(r"[0-9a-f]{64}\.(bin|txt)")


def publish(work: WorkFolder, manifest: DatasetManifest) -> None:
    """Move a finished build into place and remove the working folder."""
    shards = {shard.file_name for shard in (*manifest.shards, manifest.validation)}
    lists = {f"{source.sha256}.txt" for source in manifest.sources}
    _move(work.shards, work.out / SHARDS_NAME, shards)
    _move(work.path / SOURCES_NAME, work.out / SOURCES_NAME, lists)
    write_atomically(work.out / TOKENIZER_NAME, work.tokenizer.read_bytes())
    write_atomically(work.out / MANIFEST_NAME, manifest.canonical())
    _remove_others(work.out / SHARDS_NAME, shards)
    _remove_others(work.out / SOURCES_NAME, lists)
    work.remove()


def _move(origin: Path, target: Path, names: set[str]) -> None:
    target.mkdir(exist_ok=True)
    for name in sorted(names):
        # Absent at the origin: moved before the build was interrupted.
        if (origin / name).exists():
            (origin / name).replace(target / name)
    sync_folder(target)


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Remove what belonged to the dataset that was replaced, and nothing of anybody else's."""
    for path in folder.iterdir():
        if path.name not in keep and _CONTENT_NAMED.fullmatch(path.name):
            path.unlink()
