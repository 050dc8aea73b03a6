"""Which files a build reads, in which order.

Invariant: the order depends on the inputs' order and the files' names relative to the fixed part
of the glob, never on the file system or on where the corpus lies.
"""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from coordinator.data import embedded
from coordinator.data.options import BuildOptions, Input
from protocol.errors import UsageError

UNSTATED_LICENCE = "not stated"


@dataclass(frozen=True)
class InputFile:
    path: Path
    name: str  # relative to the fixed part of the pattern
    source: int  # index into BuildOptions.inputs
    bytes: int
    modified_ns: int


def find_files(options: BuildOptions) -> list[InputFile]:
    """All input files of a build, in reading order.

    Raises:
        UsageError: a pattern matches nothing, or all files are empty.
    """
    out = options.out.resolve()
    files: list[InputFile] = []
    for source, item in enumerate(options.inputs):
        found = [
            _describe(path, root, source)
            for path, root in _matches(item)
            if out not in path.resolve().parents
        ]
        if not found:
            raise UsageError(_nothing_found(item))
        files.extend(sorted(found, key=lambda file: file.name))
    if not sum(file.bytes for file in files):
        raise UsageError(
            f"the corpus is empty: each of the {len(files)} input files has 0 bytes; add text or "
            "name other files"
        )
    return files


def public_name(item: Input) -> str:
    """What the manifest calls an input: as given, or its pattern without the path above it."""
    if item.name:
        return item.name
    if item.kind == "shakespeare":
        return embedded.shakespeare_name()
    root = _fixed_part(item.pattern)
    return (Path(root.name) / Path(item.pattern).relative_to(root)).as_posix()[-200:]


def licence_of(item: Input) -> str:
    """The licence as given; what the organiser did not state is recorded as that."""
    if item.licence:
        return item.licence
    return embedded.SHAKESPEARE_LICENCE if item.kind == "shakespeare" else UNSTATED_LICENCE


def fingerprint(files: list[InputFile]) -> str:
    """Changes when a file is added, removed, resized or rewritten (by its time stamp)."""
    digest = hashlib.sha256()
    for file in files:
        line = [file.source, file.name, file.bytes, file.modified_ns]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _matches(item: Input) -> list[tuple[Path, Path]]:
    if item.kind == "shakespeare":
        root = embedded.shakespeare_root()
        return [(path, root) for path in embedded.shakespeare_files()]
    root = _fixed_part(item.pattern)
    paths = {Path(match) for match in glob.glob(item.pattern, recursive=True)}  # noqa: PTH207
    return [(path, root) for path in paths if path.is_file()]


def _fixed_part(pattern: str) -> Path:
    """The folder above the first component that has a wildcard (or above the file itself)."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def _describe(path: Path, root: Path, source: int) -> InputFile:
    status = path.stat()
    name = path.relative_to(root).as_posix().encode("utf-8", "replace").decode()
    return InputFile(path, name, source, status.st_size, status.st_mtime_ns)


def _nothing_found(item: Input) -> str:
    if Path(item.pattern).is_dir():
        return f"{item.pattern} is a folder: give a pattern such as '{item.pattern}/**/*.txt'"
    return (
        f"no file matches '{item.pattern}' (from {Path.cwd()}): check the path, and quote the "
        "pattern so that the shell leaves it alone"
    )
