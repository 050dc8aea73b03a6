"""Which campaign a pledge is for, and what an hour of its reference device is in credit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from protocol.errors import NotFound, UsageError
from worker.donor.acts import ID_BYTES
from worker.donor.amounts import MAX_MICROCREDITS
from worker.donor.site import fetch_json

_IN_CREDITS = "pledge in credits instead, without --gpu-hours"


@dataclass(frozen=True)
class ReferenceDevice:
    """What GPU-hours are hours of."""

    name: str
    microcredits_per_hour: int


def default_campaign(run_id: bytes) -> bytes:
    """The run's own campaign, which needs no leaf."""
    return run_id[:ID_BYTES]


async def reference_device(site: str, campaign: bytes) -> ReferenceDevice:
    """As the public site gives it from the campaign's terms.

    It is the site's word: whoever pledges by it is shown the credit that is signed.

    Raises:
        UsageError: the campaign names no device, or the run has no site.
        TransientError: the site does not answer.
    """
    try:
        page = await asyncio.to_thread(fetch_json, site, f"api/v1/campaigns/{campaign.hex()}")
    except NotFound as error:
        raise UsageError(f"{error}: see the run's campaigns at {site}/campaigns") from error
    shown = page.get("campaign") if isinstance(page, dict) else None
    terms = shown if isinstance(shown, dict) else {}
    name, rate = terms.get("reference_device"), terms.get("reference_microcredits_per_hour")
    if name is None and rate is None:
        raise UsageError(f"this campaign names no device that GPU-hours are of: {_IN_CREDITS}")
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not isinstance(rate, int)
        or not 0 < rate <= MAX_MICROCREDITS
    ):
        raise UsageError(f"{site} does not say what a GPU-hour is in credit: {_IN_CREDITS}")
    return ReferenceDevice(name, rate)
