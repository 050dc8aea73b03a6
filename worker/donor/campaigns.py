"""Which campaign a pledge is for, and what an hour of its reference device is in credit."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import UsageError
from worker.donor.acts import ID_BYTES
from worker.donor.desk import Desk


@dataclass(frozen=True)
class ReferenceDevice:
    """What GPU-hours are hours of."""

    name: str
    microcredits_per_hour: int


def default_campaign(run_id: bytes) -> bytes:
    """The run's own campaign, which needs no leaf."""
    return run_id[:ID_BYTES]


def reference_device(desk: Desk, campaign: bytes) -> ReferenceDevice:
    """From the campaign's terms, as the campaign key signed them.

    Raises:
        UsageError: it names none, or the public site does not tell.
    """
    raise UsageError("not yet")
