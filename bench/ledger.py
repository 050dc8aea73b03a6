"""The public record on SQLite and PostgreSQL: appends, proofs and verification per second."""

from __future__ import annotations

import hashlib
import logging
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from bench.report import Row, write_report
from coordinator.database import Database
from ledger.authority import store_delegations
from ledger.credit import training_microcredits
from ledger.log import Log
from ledger.receipts import make_receipt, verify_receipt
from ledger.records import CreditLeaf, EnrolLeaf, RoundLeaf, RunLeaf
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.audit_policy import PPM
from protocol.identity import Identity
from protocol.manifest import RunManifest
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

sys.path.append(str(Path(__file__).parents[1] / "tests"))

NOTE = (
    "Credit leaves; durable: SQLite with WAL and synchronous=FULL, PostgreSQL with its defaults, a "
    "server of the benchmark's own on a unix socket. An append is one transaction with its tree "
    "nodes, followed by a signed head, each under the writer's lock, as the coordinator does it. "
    "Verification recomputes every hash, credit and signature, and compares every stored row."
)
Spent = tuple[float, float]
"""Seconds on the wall, and of this process's own work: a busy machine slows the first."""

_NOW_S = 1_700_000_000
_LARGE = 1_000_000
_PROOFS = 50  # of each log


def run(quick: bool) -> list[Row]:
    """Rows of the report: database, operation, batch, count, rate, time of each."""
    # One line for each head would drown the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    from postgres_rig import postgres

    share = 20 if quick else 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="barnraise-bench-") as folder:
        for batch, leaves in ((1, 1000), (100, 20_000), (1000, 50_000)):
            url = f"sqlite:///{folder}/{batch}.db"
            rows += _measure(url, batch, max(leaves // share, batch))
        rows += _measure(f"sqlite:///{folder}/large.db", 2000, _LARGE // (1000 if quick else 1))
        with postgres() as server:
            for batch, leaves in ((1, 1000), (100, 20_000), (1000, 50_000)):
                with server.database() as url:
                    rows += _measure(url, batch, max(leaves // share, batch))
    write_report("ledger-quick" if quick else "ledger", rows, note=NOTE)
    return rows


def _measure(url: str, batch: int, leaves: int) -> Iterator[Row]:
    """Append, prove and verify one log."""
    database = Database(url)
    database.upgrade()
    try:
        record = _Record(database, batch, leaves)
        yield record.row("append and sign", leaves, list(record.append()))
        record.finish()
        engine = create_engine(url)
        with Session(engine) as session:
            yield from record.prove(session)
            began = _clock()
            report = verify(DatabaseSource(session), root=record.root.peer_id)
            yield record.row("verify log", report.size, [_since(began)])
        engine.dispose()
    finally:
        database.close()


class _Record:
    """A log with one donor, who has done everything."""

    def __init__(self, database: Database, batch: int, leaves: int) -> None:
        self.database, self.batch, self.leaves = database, batch, leaves
        self.root, self._key = Identity.generate(), Identity.generate()
        self.manifest = bench_manifest(self.root)
        self.log = Log(self.manifest.origin, self._key)
        self.worker = Identity.generate().peer_id
        enrol = EnrolLeaf(
            run_id=self.manifest.run_id.hex(),
            at_s=_NOW_S,
            worker=self.worker,
            donor=self.worker,
            device_class="cpu",
        )
        opened = RunLeaf.of(self.manifest, at_s=_NOW_S, draw_tip=bytes(32))
        with database.session() as session:
            store_delegations(session, [_delegation(self.root, self._key, self.manifest)])
            self.log.append(session, [opened, enrol])

    def append(self) -> Iterator[Spent]:
        """Time of each batch; making the leaves is not counted."""
        for first in range(0, self.leaves, self.batch):
            numbers = range(first, min(first + self.batch, self.leaves))
            leaves = [_credit(self.manifest, self.worker, number) for number in numbers]
            began = _clock()
            with self.database.session() as session:
                self.log.append(session, leaves)
            with self.database.session() as session:
                self.log.sign_head(session)
            yield _since(began)

    def finish(self) -> None:
        """The round that merged it all."""
        with self.database.session() as session:
            self.log.append(session, [_round(self.manifest, self.leaves)])
        with self.database.session() as session:
            self.log.sign_head(session)

    def prove(self, session: Session) -> Iterator[Row]:
        """Receipts, made and verified."""
        count = min(self.leaves, _PROOFS)
        receipts = []
        made: list[Spent] = []
        verified: list[Spent] = []
        for number in range(count):
            index = 2 + number * self.leaves // count
            began = _clock()
            receipt = make_receipt(session, self.manifest.origin, index)
            made.append(_since(began))
            receipts.append(receipt)
        for receipt in receipts:
            began = _clock()
            verify_receipt(receipt.leaf, receipt.proof, root=self.root.peer_id)
            verified.append(_since(began))
        yield self.row("make receipt", count, made)
        yield self.row("verify receipt", count, verified)

    def row(self, what: str, count: int, spent: list[Spent]) -> Row:
        wall_s = sum(each_s for each_s, _ in spent)
        return {
            "database": self.database.engine.dialect.name,
            "operation": what,
            "batch_leaves": self.batch,
            "log_leaves": self.leaves,
            "cpu_seconds": round(sum(cpu_s for _, cpu_s in spent), 3),
            "per_second": round(count / wall_s),
            "median_ms": round(1000 * statistics.median(each_s for each_s, _ in spent), 3),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }


def _clock() -> Spent:
    return time.perf_counter(), time.process_time()


def _since(began: Spent) -> Spent:
    wall_s, cpu_s = _clock()
    return wall_s - began[0], cpu_s - began[1]


def _credit(manifest: RunManifest, worker: str, number: int) -> CreditLeaf:
    digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
    return CreditLeaf(
        run_id=manifest.run_id.hex(),
        at_s=_NOW_S,
        work="training",
        round=0,
        assignment_id=digest[:16].hex(),
        worker=worker,
        donor=worker,
        tokens=20_480,
        microcredits=training_microcredits(
            20_480, manifest.model_config_json, manifest.sequence_length
        ),
        contribution_digest=digest.hex(),
        execution="cpu",
        audit_ppm=PPM,
    )


def _round(manifest: RunManifest, leaves: int) -> RoundLeaf:
    return RoundLeaf(
        run_id=manifest.run_id.hex(),
        at_s=_NOW_S,
        round=0,
        outcome="settled",
        state_digest="0" * 64,
        roster_digest="1" * 64,
        result_digest="2" * 64,
        merged_tokens=leaves * 20_480,
        members=leaves,
        started_at_s=_NOW_S,
        ended_at_s=_NOW_S,
    )


def _delegation(root: Identity, key: Identity, manifest: RunManifest) -> wire.Envelope:
    return delegate(
        root,
        run_id=manifest.run_id,
        purpose=wire.KEY_PURPOSE_LOG,
        public_key=key.public.raw,
        serial=1,
        not_before_s=_NOW_S,
        not_after_s=_NOW_S + 86_400,
    )


def bench_manifest(root: Identity) -> RunManifest:
    return RunManifest.from_mapping(
        {
            "name": "bench",
            "origin": "bench.example.org",
            "root": root.peer_id,
            "licence": "Apache-2.0",
            "model_config_json": {
                "model_type": "llama",
                "vocab_size": 8192,
                "hidden_size": 512,
                "intermediate_size": 1376,
                "num_hidden_layers": 8,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
                "max_position_embeddings": 256,
            },
            "init": {"kind": "seed", "seed": 1},
            "tokenizer_sha256": "0" * 64,
            "dataset_sha256": "1" * 64,
            "sequence_length": 256,
            "inner": {
                "max_steps": 10,
                "sequences_per_batch": 8,
                "learning_rate": {"peak": 0.003, "total_tokens": 1_000_000},
            },
            "round": {"duration_s": 60.0},
            "campaign": {"title": "A benchmark", "goal_microcredits": 1},
        }
    )
