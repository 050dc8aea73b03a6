"""Where the evidence of an audit comes from: the coordinator of a join link, or a run folder.

Invariants:

* The link is enough: manifest by its digest, keys by the root in the link, everything else by
  signature or digest. Every size is bounded before it is read.
* What was fetched once is kept under its digest, and hashed again before it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from coordinator.audit.public_record import read_run_leaf
from coordinator.audit.public_records import Evidence
from coordinator.audit.replay import verified_reader
from ledger.receipts import verify_receipt
from ledger.records import CreditLeaf, RunLeaf
from ledger.sources import HttpSource, TileSource, directory_source
from protocol.channel import call, open_channel, translate, trusted_certificate
from protocol.dataset import SHARDS_NAME, DatasetManifest, SequenceReader, ShardInfo
from protocol.digest import file_sha256
from protocol.download import download
from protocol.envelope import open_envelope
from protocol.errors import BadDigest, BadRecord, NotFound, TransientError
from protocol.hello import check_hello, client_version
from protocol.limits import MAX_MANIFEST_BYTES, MAX_RECORD_BYTES
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.model import ParameterSpec, element_count, parameter_spec
from protocol.projection import PROJECTION_BYTES
from protocol.state import read_vector
from protocol.tolerance import ToleranceTable
from protocol.training import FloatVector
from protocol.trust import TrustStore
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from protocol.wire.service_pb2_grpc import CoordinatorStub

_AUDITS = 4
"""Of one contribution, with its appeals: more than it is worth to hear of."""

_RESULTS = 9
"""Replays of one audit, at most."""

_ENVELOPE_BYTES = 1 << 10
"""A signed record without what it carries."""

_STREAM_TIMEOUT_S = 600.0
_FILE_BYTES_PER_PARAMETER = 200
_FILE_SLACK_BYTES = 1 << 16

Say = Callable[[str], None]
"""Tells a person what is being fetched."""


@dataclass
class Visitor:
    """A connection to a run's coordinator, by somebody without a key."""

    link: JoinLink
    stub: CoordinatorStub
    home: Path
    manifest: RunManifest
    trust: TrustStore
    public_url: str

    @classmethod
    @asynccontextmanager
    async def connect(cls, link: JoinLink, home: Path) -> AsyncIterator[Visitor]:
        """Open the pinned channel and check what the coordinator says first.

        Raises:
            UsageError: wrong link, unknown run, unsupported version.
            TransientError: the coordinator does not answer.
        """
        (home / SHARDS_NAME).mkdir(parents=True, exist_ok=True)
        async with open_channel(link, await trusted_certificate(link)) as channel:
            stub = CoordinatorStub(channel)  # type: ignore[no-untyped-call]
            request = api.HelloRequest(client_version=client_version(), run_id=link.run_id)
            reply = await call(lambda timeout: stub.Hello(request, timeout=timeout))
            trust = TrustStore(link.run_id, link.root)
            manifest = check_hello(reply, link, trust)
            yield cls(link, stub, home, manifest, trust, reply.public_url)

    async def evidence(
        self,
        round_: int,
        worker: str,
        *,
        record: str = "",
        table: ToleranceTable | None = None,
        say: Say = lambda _: None,
    ) -> Evidence:
        """Fetch everything that doing an audit again takes.

        Args:
            round_: of the contribution.
            worker: PeerID.
            record: web address or folder of the public record; default: what the coordinator
                names, if it names one.
            table: measured bounds, if there are any.
            say: told what is being fetched.

        Raises:
            NotFound: there is no such audit, or it is kept no more.
            TransientError: not decided yet, or the coordinator is away.
        """
        say("the audit")
        layout = ChunkLayout(
            element_count(spec := parameter_spec(self.manifest.model_config_json)),
            self.manifest.update.chunk_elements,
        )
        file, chunks = await self._audit(round_, worker, layout)
        say("the data")
        reader = await self._reader(file)
        say("the weights")
        weights = await self._weights(file, spec)
        say("the record")
        where = record or self.public_url
        return Evidence(
            self.manifest,
            self.trust,
            round_,
            worker,
            file,
            chunks,
            layout,
            weights,
            reader,
            run_leaf=await asyncio.to_thread(self._run_leaf, where) if where else None,
            credit=await self._credit(file),
            table=table,
        )

    async def _audit(
        self, round_: int, worker: str, layout: ChunkLayout
    ) -> tuple[api.AuditFile, tuple[wire.OpenedChunk, ...]]:
        request = api.GetAuditRequest(run_id=self.link.run_id, round=round_, worker=worker)
        pieces = Pieces(layout)
        try:
            async for piece in self.stub.GetAudit(request, timeout=_STREAM_TIMEOUT_S):
                pieces.add(piece)
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        return pieces.whole()

    async def _reader(self, file: api.AuditFile) -> SequenceReader:
        """The dataset, with the shards that the unit needs."""
        digest = self.manifest.dataset_sha256
        path = self.home / f"{digest}.json"
        await self._blob(digest, path, None, MAX_MANIFEST_BYTES)
        dataset = DatasetManifest.parse(await asyncio.to_thread(path.read_bytes))
        contribution = open_envelope(file.contribution, wire.Contribution).record
        needed = SequenceReader(dataset, lambda _: path).needed(
            contribution.start_sequence, contribution.end_sequence
        )
        for shard in needed:
            await self._shard(shard)
        return verified_reader(dataset, self.home)

    async def _shard(self, shard: ShardInfo) -> None:
        target = self.home / SHARDS_NAME / shard.file_name
        await self._blob(shard.sha256, target, shard.bytes, shard.bytes)

    async def _blob(
        self, sha256: str, target: Path, total_bytes: int | None, limit_bytes: int
    ) -> None:
        def source(offset: int) -> AsyncIterator[api.Piece]:
            request = api.GetShardRequest(
                run_id=self.link.run_id, sha256=bytes.fromhex(sha256), offset=offset
            )
            stream: AsyncIterator[api.Piece] = self.stub.GetShard(
                request, timeout=_STREAM_TIMEOUT_S
            )
            return stream

        await _fetch(source, sha256, target, total_bytes, limit_bytes)

    async def _weights(
        self, file: api.AuditFile, spec: ParameterSpec
    ) -> Callable[[wire.RunHead], FloatVector]:
        head = open_envelope(file.run_head, wire.RunHead).record
        sha256 = head.weights_sha256.hex()
        target = self.home / f"{sha256}.safetensors"

        def source(offset: int) -> AsyncIterator[api.Piece]:
            request = api.GetStateRequest(
                run_id=self.link.run_id,
                state_digest=head.state_digest,
                part=api.STATE_PART_WEIGHTS,
                offset=offset,
            )
            stream: AsyncIterator[api.Piece] = self.stub.GetState(
                request, timeout=_STREAM_TIMEOUT_S
            )
            return stream

        limit_bytes = 4 * element_count(spec) + _FILE_BYTES_PER_PARAMETER * len(spec)
        try:
            await _fetch(source, sha256, target, None, limit_bytes + _FILE_SLACK_BYTES)
        except NotFound as error:
            return _lost(str(error))
        weights = await asyncio.to_thread(read_vector, target, spec)
        return lambda _head: np.array(weights)

    async def _credit(self, file: api.AuditFile) -> CreditLeaf | None:
        """The credit of the contribution, proven; None where it has none."""
        assignment = open_envelope(file.assignment, wire.Assignment).record
        request = api.GetReceiptRequest(
            run_id=self.link.run_id, assignment_id=assignment.assignment_id
        )
        try:
            reply = await call(lambda timeout: self.stub.GetReceipt(request, timeout=timeout))
        except (NotFound, TransientError):
            return None
        leaf = verify_receipt(reply.leaf, reply.proof, root=self.link.root).leaf
        if not isinstance(leaf, CreditLeaf) or leaf.assignment_id != request.assignment_id.hex():
            raise BadRecord("the receipt is of something else")
        return leaf

    def _run_leaf(self, where: str) -> RunLeaf:
        source: TileSource = (
            directory_source(Path(where)) if _is_folder(where) else HttpSource(where)
        )
        return read_run_leaf(source, self.manifest)


class Pieces:
    """What a coordinator streams of an audit, put together; bounded by what an audit can have."""

    def __init__(self, layout: ChunkLayout) -> None:
        self._chunk_count = layout.count
        projected_bytes = layout.count * (PROJECTION_BYTES + _ENVELOPE_BYTES)
        self._records_bytes = _AUDITS * (projected_bytes + _RESULTS * MAX_RECORD_BYTES)
        self._file: api.AuditFile | None = None
        self._chunks: list[wire.OpenedChunk] = []
        self._more = {"audit_result": 0, "projection": 0}

    def add(self, piece: api.AuditPiece) -> None:
        """Take the next one.

        Raises:
            BadRecord: it is out of place, or too much.
        """
        kind = piece.WhichOneof("piece")
        if kind is None or (kind == "file") != (self._file is None):
            raise BadRecord("an audit is one file, and then what follows it")
        if self._file is None:
            self._file = piece.file
            return
        if kind == "chunk":
            self._chunks.append(piece.chunk)
            if len(self._chunks) > _AUDITS * self._chunk_count:
                raise BadRecord("more chunks were opened than the update has")
            return
        self._more[kind] += 1
        self._records_bytes -= piece.ByteSize()
        if self._records_bytes < 0:
            raise BadRecord("more was signed than the audits of one update can take")
        if kind == "projection":
            self._file.projections.append(piece.projection)
        else:
            self._file.audit_results.append(piece.audit_result)

    def whole(self) -> tuple[api.AuditFile, tuple[wire.OpenedChunk, ...]]:
        """The file with all of its records, and the opened chunks.

        Raises:
            BadRecord: something is missing.
        """
        file, more = self._file, self._more
        if file is None:
            raise BadRecord("the coordinator sent no audit")
        announced = (file.opened_chunks, file.more_results, file.more_projections)
        if announced != (len(self._chunks), more["audit_result"], more["projection"]):
            raise BadRecord("the coordinator did not send all that it announced of this audit")
        return file, tuple(self._chunks)


def _is_folder(where: str) -> bool:
    return "://" not in where


def _lost(why: str) -> Callable[[wire.RunHead], FloatVector]:
    def refuse(_head: wire.RunHead) -> FloatVector:
        raise NotFound(why)

    return refuse


async def _fetch(
    source: Callable[[int], AsyncIterator[api.Piece]],
    sha256: str,
    target: Path,
    total_bytes: int | None,
    limit_bytes: int,
) -> None:
    """Download a file, unless it is here and whole.

    Raises:
        NotFound: it is kept no more.
        TransientError: it cannot be had now, or came damaged.
    """
    if await asyncio.to_thread(_is_here, target, sha256):
        return
    partial = target.with_suffix(".part")
    try:
        await download(
            source,
            sha256=bytes.fromhex(sha256),
            total_bytes=total_bytes,
            limit_bytes=limit_bytes,
            target=partial,
        )
    except BadDigest as error:
        raise TransientError(f"{error}; ask again") from error
    await asyncio.to_thread(partial.replace, target)


def _is_here(target: Path, sha256: str) -> bool:
    return target.exists() and file_sha256(target) == sha256
