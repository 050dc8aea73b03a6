"""A peer that serves, or fetches, blobs: a process in which a fault can fire at one exact point.

``chaos_blob_process.py serve|fetch --link LINK --home FOLDER --anchor MULTIADDR [--fault JSON]``

``serve`` serves what the cache in FOLDER holds. ``fetch`` fetches ``--sha256`` of ``--bytes`` from
the peer ``--source`` and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from chaos_injector import Fault, install
from chaos_points_sources import POINTS

from protocol.identity import Identity
from protocol.link import JoinLink
from worker.blob_fetch import BlobFetcher, Wanted
from worker.config import Home
from worker.session import Session
from worker.shards import BlobStore
from worker.sources import Sources
from worker.swarm import Swarm


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=["serve", "fetch"])
    parser.add_argument("--link", type=JoinLink.parse, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--anchor", required=True)
    parser.add_argument("--fault", type=Fault.parse, action="append", default=[])
    parser.add_argument("--sha256", type=bytes.fromhex)
    parser.add_argument("--bytes", type=int)
    parser.add_argument("--source")
    given = parser.parse_args()
    install(given.fault, POINTS)
    home = Home(given.home)
    home.prepare()
    identity = Identity.generate()
    identity.save(home.identity)
    async with AsyncExitStack() as stack:
        session = await Session.connect(given.link, identity)
        stack.push_async_callback(session.close)
        swarm = await Swarm.create(
            identity_path=home.identity,
            identity=identity,
            run_id=given.link.run_id,
            trust=session.trust,
            initial_peers=[given.anchor],
            client_mode=given.do == "fetch",
        )
        stack.push_async_callback(swarm.shutdown)
        blobs = BlobStore(home.blobs, home.scratch)
        if given.do == "serve":
            swarm.serve_blobs(blobs.find)
            print("serving", identity.peer_id, flush=True)
            await asyncio.Event().wait()
        sources = Sources(session)
        sources.swarm, sources.anchor_ids = swarm, (given.source,)
        await BlobFetcher(blobs, sources).fetch(Wanted(given.sha256, given.bytes))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
