"""A peer that has moved is dialled where it is now, though the old connection looks alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protocol.identity import Identity
from worker.streams import BoundedP2P

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(120)]


@asynccontextmanager
async def daemon(folder: Path, *listen: str) -> AsyncIterator[BoundedP2P]:
    identity = Identity.generate()
    path = folder / f"{identity.peer_id}.key"
    identity.save(path)
    started = await BoundedP2P.start(
        identity_path=path,
        peer_id=identity.peer_id,
        initial_peers=(),
        client_mode=not listen,
        listen=listen,
    )
    try:
        yield started
    finally:
        await started.shutdown()


async def connected_to(peer: BoundedP2P) -> list[str]:
    return [str(address) for found in await peer.list_peers() for address in found.addrs]


async def hosts_and_ports(peer: BoundedP2P) -> list[str]:
    found = await peer.get_visible_maddrs(latest=True)
    return sorted(str(address).split("/p2p/")[0] for address in found)


async def test_it_is_dialled_anew_only_when_it_moved(tmp_path: Path) -> None:
    listen: Sequence[str] = ("/ip4/127.0.0.2/tcp/0", "/ip4/127.0.0.3/tcp/0")
    async with daemon(tmp_path, *listen) as there, daemon(tmp_path) as here:
        old, new = await hosts_and_ports(there)
        name = str(there.peer_id)
        await here.connect(name, [old])
        connection: list[str] = []  # by our port of it
        while not connection:  # it learns of it a moment later
            await asyncio.sleep(0.05)
            connection = await connected_to(there)
        # Told of both, or of nothing that could be compared: the connection stays.
        for told in ([new, old], [], [new, "/dns4/localhost/tcp/4001"]):
            await here.connect(name, told)
            assert await connected_to(there) == connection
        await here.connect(name, [new])
        assert await connected_to(there) != connection
        assert len(await connected_to(here)) == 1
