"""A served run with one shard of many blocks, and peers on loopback that hold it, or say so."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from chaos_injector import Fault

from protocol.identity import Identity
from protocol.leash import leashed
from protocol.wire import service_pb2 as api
from worker.blob_fetch import BlobFetcher, Fetched, Wanted
from worker.config import Home
from worker.partial_blob import BLOCK_BYTES
from worker.session import Session
from worker.shards import BlobStore
from worker.sources import Source, Sources
from worker.swarm import Swarm

BLOCKS = 12

Change = Callable[[Path], Path | None]
"""What a peer serves instead of the file that it is asked for."""


def load_rig(name: str) -> ModuleType:
    """A rig of another folder of the tests."""
    path = Path(__file__).parents[1] / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counted(Sources):
    """The sources of a run, with a count of what each was asked for and gave.

    :meth:`gate` holds the streams of all sources but one back, until that one has given so many
    blocks or something has happened: which blocks come from whom is then no matter of speed.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.asked: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self._first, self._after, self._open = "", 0, asyncio.Event()
        self._open.set()

    def gate(self, first: str, after: int = BLOCKS + 1) -> None:
        self._first, self._after = first, after
        self._open.clear()

    async def open_when_struck(self, process: subprocess.Popen[str]) -> None:
        """Open the gate when a process of ours has been stopped or killed."""
        how = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, how)
        self._open.set()

    async def of(self, sha256: bytes, state_digest: bytes | None = None) -> list[Source]:
        found = await super().of(sha256, state_digest)
        return [replace(source, pieces=self._counted(source)) for source in found]

    def _counted(self, source: Source) -> Callable[[bytes, int], AsyncIterator[api.Piece]]:
        async def pieces(sha256: bytes, offset: int) -> AsyncIterator[api.Piece]:
            if source.name != self._first:
                await self._open.wait()
            self.asked[source.name] += 1
            async with aclosing(source.pieces(sha256, offset)) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    self.received_bytes[source.name] += len(piece.data)
                    given = self.received_bytes[source.name]
                    yield piece
                    # Asked for the next one: this one has been taken in.
                    if source.name == self._first and given >= self._after * BLOCK_BYTES:
                        self._open.set()

        return pieces


@dataclass
class Field:
    """The run and everybody in it."""

    folder: Path
    served: Any
    session: Session
    anchor: Swarm
    client: Swarm
    addresses: list[str]
    wanted: Wanted
    shard: Path
    stack: AsyncExitStack
    _pool: list[Swarm] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def store(self) -> BlobStore:
        """An empty cache of the fetching side."""
        home = Home(self.folder / f"home-{next(self._numbers)}")
        home.prepare()
        return BlobStore(home.blobs, home.scratch)

    def sources(self, *names: str) -> Counted:
        """These peers in this order, then the coordinator."""
        sources = Counted(self.session)
        sources.swarm, sources.anchor_ids = self.client, names
        return sources

    async def fetch(self, store: BlobStore, sources: Counted) -> Fetched:
        fetched = await BlobFetcher(store, sources).fetch(self.wanted)
        assert hashlib.sha256(fetched.path.read_bytes()).digest() == self.wanted.sha256
        assert list(store.scratch.iterdir()) == []
        return fetched

    async def peers(self, *changes: Change) -> list[str]:
        """Peers in this loop that serve the shard, each as its change makes it; made once."""
        while len(self._pool) < len(changes):
            swarm = await join(self.folder, self.session, Identity.generate(), self.addresses)
            self.stack.push_async_callback(swarm.shutdown)
            await self.client.connect((await swarm.multiaddrs())[0])
            self._pool.append(swarm)
        pool = self._pool[: len(changes)]
        for swarm, change in zip(pool, changes, strict=True):
            copy = self.folder / f"{swarm.peer_id}.bin"
            shutil.copyfile(self.shard, copy)
            served = change(copy)
            swarm.serve_blobs(
                lambda sha256, file=served: file if sha256 == self.wanted.sha256 else None
            )
        return [swarm.peer_id for swarm in pool]

    async def faulty_peer(self, fault: Fault) -> tuple[str, subprocess.Popen[str]]:
        """A peer in a process of its own, in which a fault fires; its name and the process."""
        home = Home(self.folder / f"peer-{next(self._numbers)}")
        home.prepare()
        shutil.copyfile(self.shard, home.blobs / f"{self.wanted.sha256.hex()}.bin")
        process = self.start("serve", home.path, fault)
        self.stack.callback(end, process)
        return await asyncio.to_thread(_name_of, process), process

    def start(self, do: str, home: Path, fault: Fault, *arguments: str) -> subprocess.Popen[str]:
        """A process of ``chaos_blob_process``."""
        said = {"point": fault.point, "do": fault.do, "nth": fault.nth, "where": fault.where}
        return subprocess.Popen(
            leashed(
                [
                    sys.executable,
                    str(Path(__file__).with_name("chaos_blob_process.py")),
                    *(do, "--link", str(self.served.link), "--home", str(home)),
                    *("--anchor", self.addresses[0], "--fault", json.dumps(said), *arguments),
                ]
            ),
            stdout=subprocess.PIPE,
            text=True,
        )


def _name_of(process: subprocess.Popen[str]) -> str:
    """Wait until it serves."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving "):
            return line.split()[1]
    raise AssertionError("the peer ended before it served")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def join(
    folder: Path, session: Session, identity: Identity, peers: list[str], *, client: bool = False
) -> Swarm:
    path = folder / f"{identity.peer_id}.key"
    identity.save(path)
    return await Swarm.create(
        identity_path=path,
        identity=identity,
        run_id=session.link.run_id,
        trust=session.trust,
        initial_peers=peers,
        client_mode=client,
    )


@asynccontextmanager
async def open_field(folder: Path) -> AsyncIterator[Field]:
    run_rig = load_rig("run_rig.py")
    data, run = folder / "data", folder / "run"
    per_block = BLOCK_BYTES // (run_rig.LENGTH * 2)
    # Two shards: the last block of each is a short one.
    manifest = run_rig.make_dataset(data, train=2 * (BLOCKS * per_block - 1000))
    await asyncio.to_thread(run_rig.make_run, data, run)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(run_rig.serving(run))
        session = await Session.connect(served.link, Identity.generate())
        stack.push_async_callback(session.close)
        anchor = await join(folder, session, Identity.generate(), [])
        stack.push_async_callback(anchor.shutdown)
        addresses = await anchor.multiaddrs()
        client = await join(folder, session, Identity.generate(), addresses, client=True)
        stack.push_async_callback(client.shutdown)
        shard = manifest.shards[0]
        yield Field(
            folder=folder,
            served=served,
            session=session,
            anchor=anchor,
            client=client,
            addresses=addresses,
            wanted=Wanted(bytes.fromhex(shard.sha256), shard.bytes),
            shard=data / "shards" / f"{shard.sha256}.bin",
            stack=stack,
        )
