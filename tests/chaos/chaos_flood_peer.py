"""Free identities that hold as many of a peer's streams as they get.

``chaos_flood_peer.py RUN_ID ADDRESS --identities N --streams M``: each identity has a real daemon
of its own. It prints ``{"event": "standing", "held": ...}`` once every stream was opened, and holds
them until stdin ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from protocol.errors import TransientError
from protocol.identity import Identity
from worker import frames
from worker.group import GROUP_ID_BYTES
from worker.round_service import RoundService
from worker.streams import BoundedP2P

_SETTLED_S = 1.0  # a stream that is turned away is closed at once


async def hold(
    folder: Path, run_id: bytes, address: str, streams: int
) -> tuple[int, AsyncExitStack]:
    """Open streams of one identity for a group that does not exist; how many stay open."""
    identity = Identity.generate()
    path = folder / identity.peer_id
    identity.save(path)
    p2p = await BoundedP2P.start(
        identity_path=path,
        peer_id=identity.peer_id,
        initial_peers=[address],
        client_mode=True,
        listen=(),
    )
    held = AsyncExitStack()
    held.push_async_callback(p2p.shutdown)
    target = address.rsplit("/p2p/", 1)[1]
    handle = str(RoundService._get_handle_name(run_id.hex(), "rpc_gather"))
    standing = 0
    for _ in range(streams):
        try:
            stream = await held.enter_async_context(p2p.stream(target, handle, frames.Frame))
            await stream.send(frames.Frame(group_id=os.urandom(GROUP_ID_BYTES)))
            standing += await _stays(stream.receive())
        except (TransientError, OSError):
            continue
    return standing, held


async def _stays(answer: object) -> bool:
    try:
        async with asyncio.timeout(_SETTLED_S):
            await answer  # type: ignore[misc]
    except TimeoutError:
        return True
    except (TransientError, OSError, asyncio.IncompleteReadError):
        return False
    return False


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_id", type=bytes.fromhex)
    parser.add_argument("address")
    parser.add_argument("--identities", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        crowd = await asyncio.gather(
            *(
                hold(Path(folder), given.run_id, given.address, given.streams)
                for _ in range(given.identities)
            )
        )
        counts = [standing for standing, _ in crowd]
        print(json.dumps({"event": "standing", "held": counts}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for _, held in crowd:
            await held.aclose()


if __name__ == "__main__":
    asyncio.run(main())
