"""A tiny run folder made by the real ``init``, a real server over it, and a client of ours.

The client is made of the generated stubs and ``protocol.certificate`` alone: it shares no code
with the worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tokenizers import Tokenizer, models, pre_tokenizers

from coordinator.checkpoints import CheckpointStore
from coordinator.config import RunFile, RunFolder
from coordinator.database import Database
from coordinator.engine import Engine
from coordinator.init import InitResult, init_run
from coordinator.serve import Run, engine_options, make_service
from coordinator.server import BoundServer, start_server
from ledger.log import Log
from protocol.certificate import TLS_NAME, check_certificate
from protocol.dataset import DatasetManifest, ShardInfo, Source
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from protocol.wire.service_pb2_grpc import CoordinatorStub

LENGTH, VOCABULARY, EOS = 16, 64, 0

RUN_TOML = """\
[run]
name = "tiny"

[model]
model_type = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2

[training]
sequences_per_batch = 4
max_steps = 5

[update]
chunk_elements = 1024

[verification]
probation_steps = 0
probation_passes = 0
reducer_passes = 0

[server]
listen = "127.0.0.1:0"
public_address = "127.0.0.1:7443"
validation_sequences = 4
"""


def make_dataset(folder: Path, *, train: int = 64, validation: int = 8) -> DatasetManifest:
    """A dataset folder with random tokens and a tokenizer of 64 words."""
    (folder / "shards").mkdir(parents=True)
    words = {"<|endoftext|>": EOS} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = np.random.default_rng(7)

    def shard(sequences: int) -> ShardInfo:
        data = generator.integers(0, VOCABULARY, (sequences, LENGTH), dtype="<u2").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "shards" / f"{digest}.bin").write_bytes(data)
        return ShardInfo(sha256=digest, sequences=sequences, bytes=len(data))

    manifest = DatasetManifest(
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=VOCABULARY,
        eos_token_id=EOS,
        tokenizer_sha256=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        shuffle_seed=0,
        shards=(shard(train // 2), shard(train // 2)),
        validation=shard(validation),
        sources=(
            Source(
                name="dice <b>|</b>", licence="CC0", files=1, documents=1, bytes=1, sha256="0" * 64
            ),
        ),
        licence="CC0",
        tokens=train * LENGTH,
    )
    (folder / "dataset.json").write_bytes(manifest.canonical())
    return manifest


def make_run(data: Path, run_dir: Path, text: str = RUN_TOML, **options: Any) -> InitResult:
    """``coordinator init`` without the command line."""
    file = RunFile.parse(text, "run.toml")
    return init_run(file, text, data, run_dir, base=run_dir.parent, **options)


@dataclass
class Served:
    """A run that answers on loopback."""

    run: Run
    link: JoinLink
    engine: Engine
    database: Database
    bound: BoundServer

    @asynccontextmanager
    async def client(self, identity: Identity | None = None) -> AsyncIterator[Client]:
        channel = grpc.aio.secure_channel(
            self.link.address,
            grpc.ssl_channel_credentials(root_certificates=await fetch_pem(self.link)),
            options=[("grpc.ssl_target_name_override", TLS_NAME)],
        )
        async with channel:
            yield Client(CoordinatorStub(channel), self.link, identity or Identity.generate())


@asynccontextmanager
async def serving(folder: Path, *, clock: Callable[[], float] = time.time) -> AsyncIterator[Served]:
    """Serve a run folder on a free port, without children."""
    run = Run.open(RunFolder(folder), clock())
    database = Database(run.folder.database_url(run.settings))
    checkpoints = CheckpointStore(run.folder.blobs_url(run.settings), run.manifest)
    log = Log(run.manifest.origin, run.keys.log)
    engine = Engine(
        database,
        run.manifest,
        run.dataset,
        run.keys,
        checkpoints,
        log,
        clock=clock,
        options=engine_options(run.settings),
    )
    await engine.start()
    service = make_service(run, engine, database, checkpoints, log, clock=clock)
    bound = await start_server(service, run.keys.tls, "127.0.0.1:0", run.settings.limits)
    link = JoinLink("127.0.0.1", bound.port, run.manifest.run_id, run.manifest.root)
    try:
        yield Served(run, link, engine, database, bound)
    finally:
        await bound.stop()
        database.close()


async def fetch_pem(link: JoinLink) -> bytes:
    """The server's certificate, checked against the link."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(
        link.host, link.port, ssl=context, server_hostname=TLS_NAME
    )
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return check_certificate(der, link, time.time())


@dataclass
class Client:
    """Signs and calls."""

    stub: CoordinatorStub
    link: JoinLink
    identity: Identity

    def freshness(self, *, age_s: float = 0.0) -> wire.Freshness:
        sent_at_ms = int((time.time() - age_s) * 1000)
        return wire.Freshness(sent_at_ms=sent_at_ms, nonce=secrets.token_bytes(16))

    def enrolment(self, **fields: Any) -> wire.Enrolment:
        given = {
            "run_id": self.link.run_id,
            "worker": self.identity.peer_id,
            "donor": self.identity.peer_id,
            "client_version": "0.1.0",
            "device": wire.Device(device_class="cpu", name="a laptop", threads=1),
            "display_name": "Ada",
            "client_mode": True,
            "freshness": self.freshness(),
        }
        return wire.Enrolment(**(given | fields))

    async def enrol(self, **fields: Any) -> api.EnrolReply:
        return await self.stub.Enrol(seal(self.enrolment(**fields), self.identity))

    def hello(self) -> Any:
        return self.stub.Hello(
            api.HelloRequest(client_version="0.1.0", run_id=self.link.run_id), timeout=20
        )

    def work_request(self, **fields: Any) -> wire.Envelope:
        given = {
            "run_id": self.link.run_id,
            "worker": self.identity.peer_id,
            "freshness": self.freshness(),
        }
        return seal(wire.WorkRequest(**(given | fields)), self.identity)

    def watch(self) -> Any:
        request = wire.WatchRequest(
            run_id=self.link.run_id, worker=self.identity.peer_id, freshness=self.freshness()
        )
        return self.stub.Watch(seal(request, self.identity), timeout=20)


def reason(error: grpc.aio.AioRpcError) -> str:
    """``ErrorInfo.reason`` of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "barnraise"
    return str(info.reason)
