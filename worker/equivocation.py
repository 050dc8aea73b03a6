"""Two different signed records where there may be one: proof against who signed them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from protocol.envelope import open_envelope
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service

MOST_PROOFS = 8
"""Of one group: one is enough, and a hostile reducer could sign any number."""


@dataclass(frozen=True)
class Equivocation:
    """Two records signed by one key under one natural key."""

    first: wire.Envelope
    second: wire.Envelope
    pieces: tuple[service.ResultPiece, ...] = ()
    """Both results with their bytes, as the coordinator takes them; empty for other records."""


def of_results(first: service.ResultPiece, second: service.ResultPiece) -> Equivocation:
    """Two results of one reducer for one chunk, both signatures verified.

    Args:
        first: verified in full.
        second: its bytes may be anything; they go along only if they are what was signed.
    """
    result = open_envelope(second.result, wire.ResultChunk).record
    whole = hashlib.sha256(second.encoded).digest() == result.sha256
    return Equivocation(first.result, second.result, (first, second) if whole else ())
