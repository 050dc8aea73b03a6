"""A run with honest and faulty processes on loopback, put together for one scenario.

Invariants:

* Every process is the real command in a session of its own, on a leash to this one.
* The suite waits for facts in the coordinator's database, or for lines in a process's log, and
  never for a time to pass.
* All scenarios of one :class:`Ground` begin from the same bytes: run id, keys, data, tolerances.
  So the same run without the adversary is the measure of what it did.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from facts import Facts, Observer
from faults import Fault

from protocol.dataset import DatasetManifest, ShardInfo, Source
from protocol.identity import Identity
from protocol.leash import leashed
from protocol.link import JoinLink
from worker.config import WorkerConfig

VOCABULARY, SEQUENCE_LENGTH, SEQUENCES = 256, 32, 8192
PEERS = ("ada", "bob", "cyd")
"""Honest: three donors, of whom ada can be reached and reduces."""

_FAULTY = Path(__file__).with_name("faulty_worker.py")
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
_POLL_S = 0.1
_GRACE_S = 20.0

RUN_TOML = """\
[run]
name = "ring"
[model]
model_type = "llama"
vocab_size = 256
hidden_size = 32
intermediate_size = 88
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 32
tie_word_embeddings = true
[training]
sequence_length = 32
sequences_per_batch = 4
max_steps = 10
total_tokens = 100000000
[round]
duration_s = {round_s}
grace_s = 2.0
gather_s = 4.0
broadcast_s = 4.0
min_members = {min_members}
[update]
codec = "int8"
combine = "clipped_mean"
chunk_elements = 2048
[verification]
{verification}
[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
anchor_arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
validation_sequences = 64
heartbeat_s = 0.3
auditor = false
[server.audit]
step_s = 0.2
answer_s = 3.0
patience_s = 120.0
"""

VERIFICATION: dict[str, Any] = {
    "p_min": 0.25,
    "probation_passes": 3,
    "probation_steps": 0,
    "reducer_passes": 0,
    "audited_results": 4,
    "p_second_auditor": 0.0,
    "pending_contributions": 100,
    "pending_s": 0.0,
}


class Timeout(AssertionError):
    """A fact did not come true in time; the message ends with what the logs say."""


class Process:
    """One command, its output in a file."""

    def __init__(self, log: Path, command: list[str], environment: Mapping[str, str]) -> None:
        self.log, self.name = log, log.stem
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                leashed(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """SIGTERM, then SIGKILL to what is left of its session."""
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


@dataclass
class Ground:
    """A run that was made once and is fought over many times."""

    folder: Path
    verification: dict[str, Any] = field(default_factory=dict)
    round_s: float = 4.0
    min_members: int = 3
    link: str = ""

    @property
    def template(self) -> Path:
        return self.folder / "template"

    def make(self) -> None:
        """Data, keys and manifest; the honest workers' homes."""
        self.folder.mkdir(parents=True)
        write_dataset(self.folder / "data")
        settings = {
            "port": _free_port(),
            "round_s": self.round_s,
            "min_members": self.min_members,
            "verification": _toml(VERIFICATION | self.verification),
        }
        config = self.folder / "run.toml"
        config.write_text(RUN_TOML.format(**settings))
        where = ("--config", str(config), "--data", str(self.folder / "data"))
        call("coordinator", "init", *where, "--run-dir", str(self.template / "run"))
        self.link = (self.template / "run" / "join-link.txt").read_text().strip()
        for name in PEERS:
            make_home(self.template / name, self.link, name, reachable=name == PEERS[0])

    def calibrate(self) -> None:
        """Measure the bounds once, as an organiser would."""
        run = str(self.template / "run")
        call("coordinator", "calibrate", "--run-dir", run, "--samples", "2")

    @contextmanager
    def arena(self) -> Iterator[Arena]:
        """A fresh copy of the run; its processes end with the block. It is left to be looked at."""
        live = self.folder / "live"
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(self.template, live, symlinks=True)
        arena = Arena(live, self.link)
        try:
            yield arena
        finally:
            arena.close()


class Arena:
    """The processes of one scenario."""

    def __init__(self, folder: Path, link: str) -> None:
        self.folder, self.link = folder, link
        self.run = folder / "run"
        self.processes: dict[str, Process] = {}
        self.horizon = 0  # settled rounds after which losses are compared
        self.observer = Observer(self.run / "coordinator.db")

    # ---- processes

    def serve(self, *, auditors: int = 1) -> None:
        """Start the coordinator with its anchor, and auditors of ours."""
        serve = ("coordinator", "serve", "--run-dir", str(self.run))
        process = self._start("coordinator", _command(*serve))
        self.until_log(process, "Serving")
        for number in range(auditors):
            self.audit(f"auditor{number}")

    def audit(self, name: str, *fault: str) -> Process:
        """Start an auditor, honest unless faulty options are given."""
        command = ("coordinator", "audit", "--run-dir", str(self.run))
        key = ("--key", str(self.folder / f"{name}.key"))
        options = ("--poll-s", "0.2", "--no-calibrate", "--json-logs")
        return self._start(name, _command(*command, *key, *options, faulty=fault))

    def work(self, name: str, *fault: str, reachable: bool = False) -> Process:
        """Start a worker, honest unless faulty options are given."""
        home = self.folder / name
        if not home.exists():
            make_home(home, self.link, name, reachable=reachable)
        command = ("worker", "run", "--home", str(home), "--json-logs")
        return self._start(name, _command(*command, faulty=fault))

    def adversary(
        self, fault: Fault, name: str = "eve", *, reachable: bool = False, **options: object
    ) -> Process:
        """Start a worker with a fault; ``options`` are those of ``faulty_worker.py``."""
        given = [f"--{key}={value}" for key, value in options.items()]
        return self.work(name, "--fault", fault, *given, reachable=reachable)

    def peers(self) -> None:
        for name in PEERS:
            self.work(name)

    def hide(self, name: str) -> None:
        """Before its start: a peer that nobody can reach, and so no reducer."""
        path = self.folder / name / "worker.toml"
        WorkerConfig.load(path).with_options(client_mode=True).save(path)

    @property
    def honest(self) -> tuple[str, ...]:
        """PeerIDs of the honest workers."""
        return tuple(self.peer_id(name) for name in PEERS)

    def peer_id(self, name: str) -> str:
        return Identity.load(self.folder / name / "worker.key").peer_id

    def _start(self, name: str, command: list[str]) -> Process:
        environment = {**_ENVIRONMENT, "TMPDIR": str(self._temporary())}
        process = Process(self.folder / f"{name}.log", command, environment)
        self.processes[name] = process
        return process

    def _temporary(self) -> Path:
        path = self.folder / "tmp"
        path.mkdir(exist_ok=True)
        return path

    # ---- facts

    def look(self) -> Facts:
        return self.observer.look()

    def until(self, holds: Callable[[Facts], object], timeout_s: float = 200.0) -> Facts:
        """Wait for a fact in the database.

        Raises:
            Timeout: it did not come true; or the coordinator has ended.
        """
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and self.processes["coordinator"].running:
            facts = self.look()
            if holds(facts):
                return facts
            time.sleep(_POLL_S)
        raise Timeout(f"did not come true within {timeout_s:.0f} s\n{self.tails()}")

    def until_log(self, process: Process, text: str, timeout_s: float = 200.0) -> None:
        """Wait for a line in a process's log."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if text in process.text():
                return
            if not process.running:
                break
            time.sleep(_POLL_S)
        raise Timeout(f"{text!r} is not in the log of {process.name}\n{self.tails()}")

    def tails(self, lines: int = 12) -> str:
        parts = []
        for name, process in self.processes.items():
            last = process.text().splitlines()[-lines:]
            parts.append("\n".join([f"==== {name}", *(line[:300] for line in last)]))
        return "\n".join(parts)

    # ---- the end

    def verify_ledger(self) -> None:
        """The public record, replayed by the real command.

        Raises:
            AssertionError: it does not verify.
        """
        root = JoinLink.parse(self.link).root
        url = f"sqlite:///{self.run / 'coordinator.db'}"
        call("ledger", "verify", "--db", url, "--root", root)

    def pause(self) -> None:
        """No new work, as the organiser can ask for; audits go on."""
        call("coordinator", "pause", "--run-dir", str(self.run))

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            process.end()
        self.observer.close()


def call(*arguments: str, timeout_s: float = 300.0) -> str:
    """Run a ``barnraise`` command to its end; its output."""
    done = subprocess.run(
        _command(*arguments),
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _command(*arguments: str, faulty: tuple[str, ...] = ()) -> list[str]:
    if faulty:
        return [sys.executable, str(_FAULTY), *faulty, "--", *arguments]
    return [sys.executable, "-m", "barnraise", *arguments]


def make_home(home: Path, link: str, name: str, *, reachable: bool) -> None:
    """What ``worker join`` leaves: a key and a configuration."""
    home.mkdir(parents=True)
    Identity.generate().save(home / "worker.key")
    listen = ("/ip4/127.0.0.1/tcp/0",)
    config = WorkerConfig(
        link=link, name=name, device="cpu", client_mode=not reachable, listen=listen
    )
    config.save(home / "worker.toml")


def write_dataset(folder: Path) -> None:
    """Counting sequences: learnt within a few rounds, and forgotten as fast."""
    generator = np.random.default_rng(7)

    def shard(count: int) -> ShardInfo:
        starts = generator.integers(0, VOCABULARY, (count, 1))
        steps = generator.integers(1, 4, (count, 1))
        tokens = (starts + steps * np.arange(SEQUENCE_LENGTH)) % VOCABULARY
        data = tokens.astype("<u2").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "shards" / f"{digest}.bin").write_bytes(data)
        return ShardInfo(sha256=digest, sequences=count, bytes=len(data))

    (folder / "shards").mkdir(parents=True)
    tokenizer = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {}}}).encode()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    source = Source(
        name="counting", licence="CC0-1.0", files=1, documents=1, bytes=1, sha256="0" * 64
    )
    manifest = DatasetManifest(
        dtype="uint16",
        sequence_length=SEQUENCE_LENGTH,
        vocab_size=VOCABULARY,
        eos_token_id=0,
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        shuffle_seed=7,
        shards=(shard(SEQUENCES // 2), shard(SEQUENCES // 2)),
        validation=shard(64),
        sources=(source,),
        licence="CC0-1.0",
        tokens=SEQUENCES * SEQUENCE_LENGTH,
    )
    (folder / "dataset.json").write_bytes(manifest.canonical())


def _toml(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
