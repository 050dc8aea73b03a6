"""A member's gRPC traffic under its owner's limits: ``chaos_cap_client.py JSON``, one process.

Tells ``ready`` on stdout, works for some seconds, and then tells what it did, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.limits import Limits
from worker.meter import NetworkBudget
from worker.metered_line import MeteredLine
from worker.session import Session

ANSWER_BYTES = 3 << 20
_HELLO_EVERY_S = 1.0


async def fetch(session: Session, sha256: bytes) -> None:
    """One blob after the other, for ever."""
    while True:
        async with aclosing(session.blob_pieces(sha256, 0)) as pieces:
            async for _ in pieces:
                pass


async def answer(session: Session) -> None:
    """Answers as large as an audit's, for ever; nobody asked for them."""
    request = api.AnswerChallengeRequest(chunks=[wire.OpenedChunk(encoded=bytes(ANSWER_BYTES))])
    while True:
        try:
            await session.answer_challenge(request)
        except ProtocolError:
            continue


async def greet(session: Session, took_s: list[float]) -> None:
    """Small messages meanwhile."""
    while True:
        began_s = time.monotonic()
        await session.hello()
        took_s.append(time.monotonic() - began_s)
        await asyncio.sleep(_HELLO_EVERY_S)


async def main(link: str, folder: str, way: str, sha256: str, for_s: float, **limits: int) -> None:
    join_link = JoinLink.parse(link)
    budget = NetworkBudget(Limits(**limits))
    line = MeteredLine(join_link.address, Path(folder) / "line.sock", budget)
    line.open()
    session = await Session.connect(join_link, Identity.generate(), line.target)
    say("ready")
    took_s: list[float] = []
    try:
        async with asyncio.timeout(for_s), asyncio.TaskGroup() as tasks:
            tasks.create_task(greet(session, took_s))
            moving = fetch(session, bytes.fromhex(sha256)) if way == "down" else answer(session)
            tasks.create_task(moving)
    except TimeoutError:
        pass
    day = budget.day
    say(json.dumps({"hellos_s": took_s, "up_bytes": day.up_bytes, "down_bytes": day.down_bytes}))
    await session.close()
    await line.close()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    options: dict[str, Any] = json.loads(sys.argv[1])
    asyncio.run(main(**options))
