"""What a member of a reduce tells the coordinator besides its results: measurements and proofs.

Invariant: each has a deadline of its own and never raises. A round is not held up by it, and what
is lost costs nobody anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog

from protocol.errors import ProtocolError
from protocol.wire import service_pb2 as api
from worker.session import Session

if TYPE_CHECKING:
    from worker.allreduce import GroupReduce
    from worker.screening import Screener

log = structlog.get_logger()

_SCREENING_S = 5.0
_PROOF_S = 30.0


async def submit_screening(session: Session, screener: Screener, members: int) -> None:
    """Tell what was measured of the members' inputs.

    Args:
        members: of the inclusion set.
    """
    try:
        async with asyncio.timeout(_SCREENING_S):
            for record in await asyncio.to_thread(screener.records, members, session.identity):
                await session.submit_screening(record)
    except (ProtocolError, TimeoutError) as error:
        log.warning("screening not taken by the coordinator", problem=str(error) or "too slow")


async def bring_proofs(session: Session, group: GroupReduce) -> None:
    """Bring results that contradict each other; those that were taken are forgotten."""
    for proof in [proof for proof in group.equivocations if proof.pieces]:
        if not await _bring(session, proof.pieces):
            return
        group.equivocations.remove(proof)


async def bring_results(session: Session, group: GroupReduce) -> None:
    """The run went on from another state than these results lead to. Whoever signed other ones for
    the coordinator than for us is found out when both are in one place."""
    log.warning("the run went on from another state: showing what we were sent")
    await _bring(session, group.pieces.values())


async def _bring(session: Session, pieces: Iterable[api.ResultPiece]) -> bool:
    try:
        async with asyncio.timeout(_PROOF_S):
            await session.submit_results(pieces)
    except (ProtocolError, TimeoutError) as error:
        log.warning("results not taken as proof", problem=str(error) or "too slow")
        return False
    return True
