"""Provenance: what was read, from where, under which licence.

Invariant: the manifest holds one line for each input with the digest of a list of its files, in
the format of ``sha256sum``; the list itself lies beside the dataset, so that anyone who has the
files can check it: ``cd corpus && sha256sum -c list.txt``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from coordinator.data.inputs import licence_of, public_name
from coordinator.data.options import BuildOptions
from coordinator.data.tokenise import FileRecord
from protocol.dataset import Source

SOURCES_NAME = "sources"


def record_line(record: FileRecord) -> bytes:
    """One line of the build's own list of files."""
    return json.dumps(asdict(record)).encode() + b"\n"


def read_records(path: Path) -> Iterator[FileRecord]:
    """The build's own list of files, in reading order."""
    with path.open("rb") as stream:
        for line in stream:
            yield FileRecord(**json.loads(line))


def write_sources(options: BuildOptions, records: Path, folder: Path) -> tuple[Source, ...]:
    """Write each input's list of files as ``<sha256>.txt`` and summarise it."""
    folder.mkdir(exist_ok=True)
    summaries = []
    for source in range(len(options.inputs)):
        summaries.append(_write_source(options, source, records, folder))
    return tuple(summaries)


def joint_licence(sources: tuple[Source, ...]) -> str:
    """The licences of all sources, each once."""
    return "; ".join(dict.fromkeys(source.licence for source in sources))[:2000]


def _write_source(options: BuildOptions, source: int, records: Path, folder: Path) -> Source:
    partial = folder / "partial"
    digest = hashlib.sha256()
    files = documents = size = 0
    with partial.open("wb") as stream:
        for record in read_records(records):
            if record.source != source:
                continue
            line = f"{record.sha256}  {record.name}\n".encode()
            stream.write(line)
            digest.update(line)
            files += 1
            documents += record.documents
            size += record.bytes
    partial.replace(folder / f"{digest.hexdigest()}.txt")
    item = options.inputs[source]
    return Source(
        name=public_name(item),
        licence=licence_of(item),
        files=files,
        documents=documents,
        bytes=size,
        sha256=digest.hexdigest(),
    )
