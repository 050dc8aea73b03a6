"""What a device tells everybody of its energy, where its owner wants that (``publish_energy``).

Invariants: only the sum over verified units, with the tokens of the same units; nothing that the
coordinator would have to refuse; told when it enrols, and again once a day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from protocol.energy import check_energy
from protocol.errors import BadRecord, ProtocolError
from worker.config import Home, WorkerConfig
from worker.energy_book import EnergyBook

log = structlog.get_logger()

AGAIN_S = 86_400.0


def told_energy(home: Home, config: WorkerConfig) -> dict[str, int]:
    """Fields of the enrolment's Device, blocking; none where there is nothing to tell."""
    if not config.publish_energy:
        return {}
    book = EnergyBook.load(home.energy)
    told = {
        "energy_mwh": round(book.verified_watt_hours * 1000),
        "energy_tokens": book.verified_tokens,
    }
    try:
        check_energy(*told.values())
    except BadRecord:  # a first unit of no measurable energy, or a meter that is out of its mind
        return {}
    return told if book.verified_tokens else {}


async def tell_again(config: WorkerConfig, enrol: Callable[[], Awaitable[None]]) -> None:
    """Enrol once a day, for ever: that tells it anew. Run it as a task."""
    while config.publish_energy:
        await asyncio.sleep(AGAIN_S)
        try:
            await enrol()
        except ProtocolError as error:
            log.info("energy not told today", problem=str(error))
