"""A record of many donors, for the benchmark of the boards; and a process that lets it grow."""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import create_engine, event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from bench.ledger import bench_manifest
from ledger.credit import training_microcredits
from ledger.log import Log
from ledger.records import CreditLeaf, EnrolLeaf, Leaf, RoundLeaf, RunLeaf
from ledger.schema import Base, LogLeaf, Profile
from ledger.tree import tree_size
from protocol.audit_policy import PPM
from protocol.identity import Identity
from protocol.manifest import RunManifest

_START_S = 1_700_000_000
_ROUND_S = 600
_BATCH = 2_000
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jasper")
_KEY = Identity.from_seed(hashlib.sha256(b"log of the benchmark").digest())
_ROOT = Identity.from_seed(hashlib.sha256(b"root of the benchmark").digest())


@dataclass(frozen=True)
class Record:
    """A record in a file."""

    url: str
    keys: list[str]
    names: list[str]

    @contextmanager
    def growing(self, *, every_s: float, credits: int) -> Iterator[None]:
        """Another process records a round of so many credits now and then."""
        command = [sys.executable, "-m", "bench.leaderboard_record", self.url]
        writer = subprocess.Popen(
            [*command, "--every", str(every_s), "--credits", str(credits)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert writer.stdout is not None
            if not writer.stdout.readline():
                raise RuntimeError("the record does not grow")
            yield
        finally:
            writer.terminate()
            writer.communicate()


def write_record(path: Path, donors: int) -> Record:
    """Donors with names, each with a device and some credit, in rounds of a few thousand."""
    rng = random.Random(7)
    keys = [_key(number) for number in range(donors)]
    names = [f"{rng.choice(_WORDS)} {rng.choice(_WORDS)} {number:05d}" for number in range(donors)]
    url = f"sqlite:///{path}"
    engine = create_engine(url)
    event.listen(engine, "connect", _settings)
    Base.metadata.create_all(engine)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    manifest = bench_manifest(_ROOT)
    log = Log(manifest.origin, _KEY)
    with Session(engine) as session, session.begin():
        log.append(session, [RunLeaf.of(manifest, at_s=_START_S, draw_tip=bytes(32))])
        session.add_all(
            Profile(donor=key, display_name=name, updated_at_s=_START_S)
            for key, name in zip(keys, names, strict=True)
        )
    merged = 0
    for round_, first in enumerate(range(0, donors, _BATCH)):
        at_s = _START_S + (round_ + 1) * _ROUND_S
        leaves: list[Leaf] = [_enrol(manifest, key, at_s) for key in keys[first : first + _BATCH]]
        paid = [
            _credit(manifest, key, round_, at_s, 256 * rng.randrange(1, 400))
            for key in keys[first : first + _BATCH]
        ]
        merged += sum(leaf.tokens for leaf in paid)
        leaves += [*paid, _round(manifest, round_, at_s, len(paid), merged)]
        with Session(engine) as session, session.begin():
            log.append(session, leaves)
    with Session(engine) as session, session.begin():
        log.sign_head(session)
    engine.dispose()
    return Record(url, keys, names)


def _grow(url: str, every_s: float, credits: int) -> None:
    """Record rounds until it is terminated."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    engine = create_engine(url)
    event.listen(engine, "connect", _settings)
    manifest, rng = bench_manifest(_ROOT), random.Random(8)
    log = Log(manifest.origin, _KEY)
    with Session(engine) as session:
        kinds = select(LogLeaf.data).where(LogLeaf.kind == "round")
        last = RoundLeaf.model_validate_json(
            session.scalars(kinds.order_by(LogLeaf.leaf_index.desc()).limit(1)).one()
        )
        keys = list(session.scalars(select(LogLeaf.donor).where(LogLeaf.kind == "enrol")).unique())
    round_, at_s, merged = last.round, last.at_s, last.merged_tokens
    while True:
        started = time.monotonic()
        round_, at_s = round_ + 1, at_s + _ROUND_S
        paid = [
            _credit(manifest, str(key), round_, at_s, 256 * rng.randrange(1, 400))
            for key in rng.sample(keys, credits)
        ]
        merged += sum(leaf.tokens for leaf in paid)
        with Session(engine) as session, session.begin():
            log.append(session, [*paid, _round(manifest, round_, at_s, len(paid), merged)])
        with Session(engine) as session, session.begin():
            log.sign_head(session)
            print(tree_size(session), flush=True)
        time.sleep(max(0.0, started + every_s - time.monotonic()))


def _key(number: int) -> str:
    return Identity.from_seed(hashlib.sha256(b"donor %d" % number).digest()).peer_id


def _enrol(manifest: RunManifest, key: str, at_s: int) -> EnrolLeaf:
    return EnrolLeaf(
        run_id=manifest.run_id.hex(), at_s=at_s, worker=key, donor=key, device_class="cpu"
    )


def _credit(manifest: RunManifest, key: str, round_: int, at_s: int, tokens: int) -> CreditLeaf:
    digest = hashlib.sha256(f"{round_}/{key}".encode()).digest()
    return CreditLeaf(
        run_id=manifest.run_id.hex(),
        at_s=at_s,
        work="training",
        round=round_,
        assignment_id=digest[:16].hex(),
        worker=key,
        donor=key,
        tokens=tokens,
        microcredits=training_microcredits(
            tokens, manifest.model_config_json, manifest.sequence_length
        ),
        contribution_digest=digest.hex(),
        execution="cpu",
        audit_ppm=PPM,
    )


def _round(manifest: RunManifest, round_: int, at_s: int, members: int, merged: int) -> RoundLeaf:
    return RoundLeaf(
        run_id=manifest.run_id.hex(),
        at_s=at_s,
        round=round_,
        outcome="settled",
        state_digest=hashlib.sha256(b"state %d" % round_).hexdigest(),
        roster_digest="1" * 64,
        result_digest="2" * 64,
        merged_tokens=merged,
        members=members,
        started_at_s=at_s - _ROUND_S,
        ended_at_s=at_s,
    )


def _settings(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=OFF")  # how fast it is written is not what is measured
    cursor.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--every", type=float, required=True)
    parser.add_argument("--credits", type=int, required=True)
    arguments = parser.parse_args()
    _grow(arguments.url, arguments.every, arguments.credits)
