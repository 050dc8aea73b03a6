"""Appealing against a verdict: the device asks that its work be replayed on another kind of device.

The worker need not be running, and may be blocked: the appeal is signed with the device's key.
"""

from __future__ import annotations

from protocol.errors import NotFound, TransientError, UsageError
from protocol.identity import Identity
from worker.config import Home, WorkerConfig
from worker.journal import Journal
from worker.session import Session


async def appeal(home: Home, config: WorkerConfig, round_: int) -> str:
    """Appeal against the verdict on what this device did in a round.

    Returns:
        What happens next, for a person.

    Raises:
        UsageError: this device did nothing in that round, or no verdict convicts it.
    """
    journal = Journal(home.journal)
    try:
        done = [row.assignment_id for row in journal.receipts() if row.round == round_]
    finally:
        journal.close()
    if not done:
        raise UsageError(f"this device handed in no work for round {round_}")
    try:
        session = await Session.connect(config.join_link, Identity.load(home.identity))
    except TransientError as error:
        raise UsageError(str(error)) from error
    try:
        return await _first_answer(session, done)
    finally:
        await session.close()


async def _first_answer(session: Session, assignments: list[bytes]) -> str:
    """A round can hold a first unit beside a merged one: one of them is what was judged."""
    refused: UsageError = NotFound("there is nothing to appeal against")
    for assignment_id in assignments:
        try:
            return str((await session.appeal(assignment_id)).message)
        except UsageError as error:
            refused = error
    raise refused
