"""The public record on a SQLite file: appends, proofs and verification per second."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from sqlalchemy import create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from bench.report import Row, write_report
from ledger.authority import store_delegations
from ledger.credit import training_microcredits
from ledger.log import Log
from ledger.receipts import make_receipt, verify_receipt
from ledger.records import CreditLeaf, EnrolLeaf, RoundLeaf, RunLeaf
from ledger.schema import Base
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.audit_policy import PPM
from protocol.identity import Identity
from protocol.manifest import RunManifest
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

NOTE = (
    "Credit leaves in a SQLite file (WAL, synchronous=FULL); an append is one transaction with its "
    "tree nodes, followed by a signed head; verification recomputes hashes, credit and signatures."
)
_BATCHES = (1, 100, 1000)
_NOW_S = 1_700_000_000


def run(quick: bool) -> list[Row]:
    """Rows of the report: operation, batch, leaves, seconds, rate."""
    with tempfile.TemporaryDirectory(prefix="barnraise-bench-") as folder:
        rows = [
            row
            for batch in _BATCHES
            for row in _measure(Path(folder) / f"{batch}.db", batch, _leaves(batch, quick))
        ]
    write_report("ledger-quick" if quick else "ledger", rows, note=NOTE)
    return rows


def _leaves(batch: int, quick: bool) -> int:
    return {1: 200, 100: 5_000, 1000: 20_000}[batch] // (10 if quick else 1) or batch


def _measure(path: Path, batch: int, leaves: int) -> Iterator[Row]:
    """Append, prove and verify one log."""
    root, key = Identity.generate(), Identity.generate()
    manifest = bench_manifest(root)
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", _durable)
    Base.metadata.create_all(engine)
    log = Log(manifest.origin, key)
    worker = Identity.generate().peer_id
    with Session(engine) as session, session.begin():
        store_delegations(session, [_delegation(root, key, manifest)])
        enrol = EnrolLeaf(
            run_id=manifest.run_id.hex(),
            at_s=_NOW_S,
            worker=worker,
            donor=worker,
            device_class="cpu",
        )
        log.append(session, [RunLeaf.of(manifest, at_s=_NOW_S, draw_tip=bytes(32)), enrol])
    credits = [_credit(manifest, worker, number) for number in range(leaves)]
    # One line for each head would drown the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    started = time.perf_counter()
    for first in range(0, leaves, batch):
        with Session(engine) as session, session.begin():
            log.append(session, credits[first : first + batch])
        with Session(engine) as session, session.begin():
            log.sign_head(session)
    yield _row("append and sign", batch, leaves, time.perf_counter() - started)
    with Session(engine) as session, session.begin():
        log.append(session, [_round(manifest, leaves)])
        log.sign_head(session)
    with Session(engine) as session:
        count = min(leaves, 500)
        started = time.perf_counter()
        receipts = [
            make_receipt(session, manifest.origin, 2 + number * leaves // count)
            for number in range(count)
        ]
        yield _row("make receipt", batch, count, time.perf_counter() - started)
        started = time.perf_counter()
        for receipt in receipts:
            verify_receipt(receipt.leaf, receipt.proof, root=root.peer_id)
        yield _row("verify receipt", batch, count, time.perf_counter() - started)
        started = time.perf_counter()
        report = verify(DatabaseSource(session), root=root.peer_id)
        yield _row("verify log", batch, report.size, time.perf_counter() - started)
    engine.dispose()


def _row(what: str, batch: int, count: int, seconds: float) -> Row:
    return {
        "operation": what,
        "batch_leaves": batch,
        "count": count,
        "seconds": round(seconds, 3),
        "per_second": round(count / seconds),
    }


def _durable(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


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
    """A run to record."""
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
