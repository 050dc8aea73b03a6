"""The coordinator with ten thousand members: waiting times, processor time, memory.

A real ``coordinator serve`` (TLS, gRPC, its engine; SQLite on this disk, and a PostgreSQL of the
benchmark's own) and :mod:`bench.coordinator_load` in another process, which plays the members: real
keys and signatures, a watch stream each, heartbeats at the interval that they are told, a work
request each, and commits that come at random moments within one grace of 20 s. Fair to say:

* Server, generator and PostgreSQL share this machine's cores, so waiting times hold the generator's
  own lag too (``own_lag_ms``: the longest that its loop was away).
* Members share connections, 32 on each, and 64 share a loopback address: what one address may enrol
  and ask for is as the defaults have it.
* They are enrolled before the service starts, by the admission's own code in one transaction, and
  have passed the audits of their probation.
* A roster holds 4,096 members. The running round's policy is widened in the database, so that its
  commits can be counted; it ends before anybody reduces.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog
from sqlalchemy.orm import Session

from bench.coordinator_load import address_of_member, identity_of
from bench.process_cost import own_cpu_s
from bench.report import Row, write_report
from coordinator import round_state
from coordinator.admission import Admission, AdmissionPolicy
from coordinator.audit.trust import add_pass
from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.opening import running_round
from coordinator.serve import Run
from ledger.log import Log
from protocol.envelope import open_envelope, seal
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "chaos"))

from chaos_limits_rig import ENVIRONMENT, Server, serve
from postgres_rig import postgres
from run_rig import RUN_TOML, make_dataset, make_run

NOTE = (
    "real coordinator serve, members played by another process on the same cores; latencies "
    "are the client's; commits at random moments of one 20 s grace"
)
MIB = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    members: int
    round_s: float
    steady_s: float
    grace_s: float = 20.0
    commit_within_s: float = 18.0


FULL = Scale(members=10_000, round_s=100.0, steady_s=20.0)
QUICK = Scale(members=130, round_s=6.0, steady_s=1.0, grace_s=6.0, commit_within_s=1.0)


def run(quick: bool) -> list[Row]:
    """Rows of the report: database, phase, call."""
    # One line for each member would drown the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    scale = QUICK if quick else FULL
    rows = []
    with tempfile.TemporaryDirectory(prefix="barnraise-bench-") as name:
        folder = Path(name)
        rows += measure(folder / "sqlite", "sqlite", "", scale)
        with postgres() as server, server.database() as url:
            rows += measure(folder / "postgresql", "postgresql", url, scale)
    write_report("coordinator-quick" if quick else "coordinator", rows, note=NOTE)
    return rows


def measure(folder: Path, name: str, url: str, scale: Scale) -> list[Row]:
    """One database's rows."""
    folder.mkdir(parents=True)
    run_dir = prepare(folder, url, scale)
    with serve(run_dir, folder / "coordinator.log") as server:
        phases = list(_play(server, run_dir / "manifest.json", scale))
    log = (folder / "coordinator.log").read_text()
    failed = [line for line in log.splitlines() if "call_failed" in line or "Traceback" in line]
    assert not failed, f"the coordinator failed:\n{log[-3000:]}"
    shutil.rmtree(folder)
    return [row for seen, server_side in phases for row in _rows(name, scale, seen, server_side)]


# ---- before the service starts ----


def prepare(folder: Path, url: str, scale: Scale) -> Path:
    """A run's folder, whose database knows every member."""
    sequences = 4 * 5 * scale.members  # of a batch, batches of a lease
    make_dataset(folder / "data", train=sequences + sequences % 2)
    make_run(folder / "data", folder / "run", _run_toml(url, scale))
    run = Run.open(RunFolder(folder / "run"), time.time())
    database = Database(run.folder.database_url(run.settings))
    log = Log(run.manifest.origin, run.keys.log)
    try:
        with database.session() as session:
            asyncio.run(enrol(session, run, log, scale.members))
            widen_round(session, scale.members)
        with database.session() as session:
            log.sign_head(session)
    finally:
        database.close()
    return folder / "run"


def _run_toml(url: str, scale: Scale) -> str:
    rounds = f"[round]\nduration_s = {scale.round_s}\ngrace_s = {scale.grace_s}\n"
    text = RUN_TOML.replace("probation_steps = 0\nprobation_passes = 0\nreducer_passes = 0\n", "")
    text = text.replace("[verification]\n", rounds)
    return text.replace("[server]\n", f'[server]\ndatabase = "{url}"\n') if url else text


class _OneTransaction:
    """A database to the admission: everything in the transaction that is open here."""

    def __init__(self, session: Session, log: Log) -> None:
        self._session, self._log = session, log

    async def run(self, work: Callable[[Session], Any]) -> Any:
        """The head is signed once, at the end."""
        return None if work == self._log.sign_head else work(self._session)


async def enrol(session: Session, run: Run, log: Log, count: int) -> None:
    """Let every member in, as Enrol does, and count the audits that a trusted one has passed."""
    policy = AdmissionPolicy(run.manifest.run_id, "", frozenset())
    database: Any = _OneTransaction(session, log)
    admission = Admission(database, log, run.keys.round, policy, time.time)
    for number in range(count):
        identity = identity_of(number)
        record = wire.Enrolment(
            run_id=run.manifest.run_id,
            worker=identity.peer_id,
            donor=identity.peer_id,
            client_version="0.1.0",
            device=wire.Device(device_class="cpu", name="bench", threads=1),
            client_mode=True,
            freshness=wire.Freshness(
                sent_at_ms=int(time.time() * 1000), nonce=secrets.token_bytes(16)
            ),
        )
        signed = open_envelope(seal(record, identity), wire.Enrolment)
        reply = await admission.admit(signed, f"ipv4:{address_of_member(number)}:1000")
        assert reply.admitted, reply.message
        for _ in range(run.manifest.verification.probation_passes):
            add_pass(session, identity.peer_id, "cpu")


def widen_round(session: Session, members: int) -> None:
    """Let the running round have more members than its roster could hold."""
    row = running_round(session)
    machine = round_state.load(row.machine)
    policy = dataclasses.replace(machine.policy, max_members=members)
    row.machine = round_state.dump(dataclasses.replace(machine, policy=policy))


# ---- while it serves ----


@dataclass
class _Spent:
    """What the server has used so far."""

    at_s: float
    cpu_s: float

    @classmethod
    def of(cls, process: psutil.Process) -> _Spent:
        return cls(time.monotonic(), own_cpu_s(process))


def _play(server: Server, manifest: Path, scale: Scale) -> Iterator[tuple[dict[str, Any], Row]]:
    """What the members say of each phase, and what the server used in it."""
    process = psutil.Process(server.process.pid)
    before = _Spent.of(process)
    with _load(server.link, manifest, scale) as lines:
        for line in lines:
            seen = json.loads(line)
            now = _Spent.of(process)
            wall_s = max(1e-3, now.at_s - before.at_s)
            cpu_s = now.cpu_s - before.cpu_s
            yield (
                seen,
                {
                    "server_cpu_s": round(cpu_s, 1),
                    "server_cores": round(cpu_s / wall_s, 2),
                    "server_peak_mib": server.peak_rss_bytes // MIB,
                },
            )
            before = now


@contextmanager
def _load(link: JoinLink, manifest: Path, scale: Scale) -> Iterator[Iterator[str]]:
    options = {
        "members": scale.members,
        "steady-s": scale.steady_s,
        "grace-s": scale.grace_s,
        "commit-within-s": scale.commit_within_s,
    }
    command = [sys.executable, "-m", "bench.coordinator_load", str(link), str(manifest)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    process = psutil.Popen(command, env=ENVIRONMENT, stdout=-1, text=True)
    try:
        yield iter(process.stdout)
        assert process.wait(60) == 0, "the members' process failed"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _rows(name: str, scale: Scale, seen: dict[str, Any], server_side: Row) -> Iterator[Row]:
    print(name, json.dumps(seen), json.dumps(server_side), flush=True)
    for call, met in seen["calls"].items():
        if not met["calls"] and not met["failed"]:
            continue
        yield {
            "database": name,
            "members": scale.members,
            "phase": seen["phase"],
            "call": call,
            "calls": met["calls"],
            "failed": met["failed"],
            "p50_ms": met.get("p50_ms"),
            "p99_ms": met.get("p99_ms"),
            "most_ms": met.get("most_ms"),
            "accepted_in_grace": seen.get("accepted", "") if call == "Commit" else "",
            "told_interval_s": seen["told_interval_s"],
            "own_lag_ms": seen["own_lag_ms"],
            **server_side,
        }
