"""Signed acts in a file, carried from the machine that signs to the one that records.

::

    {"format": "barnraise-acts/1", "run_id": HEX, "acts": [DSSE ENVELOPE AS JSON, ...]}

The file is no secret and needs no trust: every act in it carries its signature.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from coordinator.key_files import envelope_from_json, envelope_to_json
from protocol.errors import UsageError
from protocol.wire import records_pb2 as wire

FORMAT = "barnraise-acts/1"
MAX_FILE_BYTES = 256 << 20
MAX_ACTS = 200_000


def write_acts(path: Path, run_id: bytes, acts: Sequence[wire.Envelope]) -> None:
    """Write a new file.

    Raises:
        UsageError: it exists already, or cannot be written.
    """
    document = {
        "format": FORMAT,
        "run_id": run_id.hex(),
        "acts": [envelope_to_json(act) for act in acts],
    }
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
    except FileExistsError as error:
        raise UsageError(f"{path} exists already: choose another name with --out") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_acts(path: Path, run_id: bytes) -> list[wire.Envelope]:
    """Read a file, untrusted; what is in its envelopes is not looked at.

    Raises:
        UsageError: it cannot be read, is too large, or is for another run.
    """
    data = read_bounded(path, MAX_FILE_BYTES)
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise UsageError(f"{path} is not of the format {FORMAT}")
        named, acts = document["run_id"], document["acts"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no file of signed acts: {error}") from error
    if named != run_id.hex():
        raise UsageError(f"{path} is for the run {str(named)[:16]}, not {run_id.hex()[:16]}")
    if not isinstance(acts, list) or len(acts) > MAX_ACTS:
        raise UsageError(f"{path} holds no list of at most {MAX_ACTS} acts")
    return [envelope_from_json(act) for act in acts]


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A file's bytes.

    Raises:
        UsageError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > most_bytes:
        raise UsageError(f"{path} is over {most_bytes >> 20} MiB")
    return data
