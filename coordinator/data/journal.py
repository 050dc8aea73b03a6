"""The state of a build in its working folder ``.build``: what kill -9 cannot take.

Invariants:

* The journal is replaced atomically and names only what is already on the disk; whatever the
  working folder holds beyond it is cut off or made again.
* A journal continues only the command that wrote it, on the same input files.
* One build at a time per output folder, by a lock that the kernel releases.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from coordinator.data.options import BuildOptions, Phase
from protocol.dataset import DatasetManifest, ShardInfo
from protocol.errors import UsageError

WORK_NAME = ".build"
JOURNAL_NAME = "journal.json"
MAX_JOURNAL_BYTES = 16 << 20


class Journal(BaseModel):
    """Everything needed to continue; one phase is under way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    options: dict[str, Any]
    inputs_sha256: str
    phase: Phase = "tokenizer"
    # tokenise
    next_file: int = 0
    next_fragment: int = 0
    tokens_bytes: int = 0
    files_bytes: int = 0
    # shards
    validation: ShardInfo | None = None
    shards: tuple[ShardInfo, ...] = ()
    # publish
    manifest: DatasetManifest | None = None

    def advanced(self, **changes: Any) -> Journal:
        return self.model_copy(update=changes)


class WorkFolder:
    """``out/.build``: journal, spools, buckets and finished shards."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / WORK_NAME
        self.tokenizer = self.path / "tokenizer.json"
        self.tokens = self.path / "tokens.bin"
        self.files = self.path / "files.jsonl"
        self.buckets = self.path / "buckets"
        self.shards = self.path / "shards"

    def save(self, journal: Journal) -> None:
        write_atomically(self.path / JOURNAL_NAME, journal.model_dump_json().encode())

    def resume(self, options: BuildOptions, inputs_sha256: str) -> Journal:
        """The journal of an interrupted build of the same command, or a new one.

        Raises:
            UsageError: the folder holds an interrupted build of something else.
        """
        if options.restart:
            shutil.rmtree(self.path, ignore_errors=True)
        found = self._load()
        fresh = Journal(options=options.result_key(), inputs_sha256=inputs_sha256)
        if found is None or found.phase == "tokenizer":  # nothing of value is there yet
            shutil.rmtree(self.path, ignore_errors=True)
            self.shards.mkdir(parents=True)
            self.save(fresh)
            return fresh
        _check_same(found, fresh, self.out)
        return found

    def remove(self) -> None:
        """Remove everything, the journal last: a kill in between is still recognised."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != JOURNAL_NAME:
                entry.unlink()
        shutil.rmtree(self.path)

    @property
    def is_publishing(self) -> bool:
        """Whether an interrupted build was moving its files to their final place."""
        found = self._load()
        return found is not None and found.phase == "publish"

    def _load(self) -> Journal | None:
        try:
            data = (self.path / JOURNAL_NAME).read_bytes()
            return Journal.model_validate_json(data)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UsageError(
                f"{self.path} was not written by this version: remove it with --restart"
            ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content at once: either the old or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring renames in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the output folder (made if missing) for this process.

    Raises:
        UsageError: another build holds it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--out {out} is a file: give a folder") from error
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another build is running in {out}: wait for it") from error
        yield
    finally:
        os.close(descriptor)


def _check_same(found: Journal, wanted: Journal, out: Path) -> None:
    remedy = f"give that command again to continue it, or --restart to discard it ({out})"
    differing = sorted(
        name for name, value in wanted.options.items() if found.options.get(name) != value
    )
    if differing:
        names = ", ".join(name.replace("_", "-") for name in differing)
        raise UsageError(f"an interrupted build with other options ({names}) is there: {remedy}")
    if found.inputs_sha256 != wanted.inputs_sha256:
        raise UsageError(
            f"the input files changed since the interrupted build in {out} began: "
            "give --restart to begin again with what is there now"
        )
