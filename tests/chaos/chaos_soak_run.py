"""The run that a soak is about, and its processes.

Invariant: every process is a real command in a session of its own, on a leash to this one; its
lives are marked in its one log (``life``): what came out of which is told from the log alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from chaos_soak_plan import COORDINATOR, Planned
from chaos_soak_points import QUIET

from protocol.dataset import DatasetManifest, ShardInfo, Source
from protocol.identity import Identity, PeerId
from protocol.leash import leashed
from worker.config import WorkerConfig

VOCABULARY, SEQUENCE_LENGTH, SHARDS = 256, 32, 4
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
LIFE = "life"

_PROCESS = Path(__file__).with_name("chaos_soak_process.py")
_END_S = 30.0

_RUN_TOML = """\
[run]
name = "soak"
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
max_steps = {max_steps}
learning_rate = 5e-4
total_tokens = 1000000000
[round]
duration_s = {round_s}
grace_s = {grace_s}
gather_s = 10.0
broadcast_s = 10.0
min_members = {min_members}
[update]
codec = "int8"
combine = "mean"
chunk_elements = 4096
[verification]
probation_steps = 0
probation_passes = 0
reducer_passes = 0
[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
anchor_arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
auditor = false
heartbeat_s = 1.0
validation_sequences = 256
"""


@dataclass(frozen=True)
class Shape:
    """How large a soak is."""

    workers: int = 12
    round_s: float = 35.0
    grace_s: float = 8.0
    max_steps: int = 80  # of a unit: trained well within a round
    min_members: int = 2
    sequences: int = 32768

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"w{number:02}" for number in range(self.workers))

    def reachable(self, name: str) -> bool:
        """Every third can be reached and so reduces; the others are behind something."""
        return self.names.index(name) % 3 == 0


@dataclass
class Member:
    """A process of the soak through all its lives."""

    name: str
    log: Path
    words: list[str]
    kind: str  # worker | coordinator
    popen: subprocess.Popen[bytes] | None = None
    lives: int = 0

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def process(self) -> psutil.Process:
        assert self.popen is not None
        return psutil.Process(self.popen.pid)

    def start(self, faults: Sequence[Planned]) -> None:
        """Begin a life with these faults before it."""
        path = self.log.parent / f"{self.name}.faults"
        path.write_text(json.dumps([fault.as_json() for fault in faults]))
        command = [sys.executable, str(_PROCESS), str(path), self.kind, "--", *self.words]
        self.lives += 1
        with self.log.open("ab") as output:
            output.write(json.dumps({"event": LIFE, "number": self.lives}).encode() + b"\n")
            output.flush()
            self.popen = subprocess.Popen(
                leashed(command),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def tree(self) -> list[psutil.Process]:
        """The process and all that it started; empty when it has ended."""
        if not self.running:
            return []
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wake(self) -> None:
        """Let everything go on that stands still."""
        for process in self.tree():
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue  # it has ended meanwhile

    def ask_to_end(self) -> None:
        """SIGTERM as a service manager sends it, once."""
        if self.popen is not None and self.popen.poll() is None:
            self.wake()
            self.popen.send_signal(signal.SIGTERM)

    def wait(self) -> int | None:
        """The exit code, of a process that was asked to end; None if it was never started."""
        if self.popen is None:
            return None
        try:
            self.popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        return self.popen.returncode


class Run:
    """A run folder, its members' homes, and who is alive."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder, self.shape = folder, shape
        self.run = folder / "run"
        self.logs = folder / "logs"
        self.members: dict[str, Member] = {}

    # ---- before it begins

    def make(self) -> None:
        """Data, keys, manifest; what ``worker join`` leaves in every worker's home."""
        self.logs.mkdir(parents=True)
        write_dataset(self.data, self.shape.sequences)
        config = self.folder / "run.toml"
        shape = self.shape
        config.write_text(
            _RUN_TOML.format(
                port=_free_port(),
                round_s=shape.round_s,
                grace_s=shape.grace_s,
                max_steps=shape.max_steps,
                min_members=shape.min_members,
            )
        )
        where = ("--config", str(config), "--data", str(self.data))
        call("coordinator", "init", *where, "--run-dir", str(self.run))
        serve = ["coordinator", "serve", "--run-dir", str(self.run)]
        self.members[COORDINATOR] = Member(
            COORDINATOR, self.logs / "coordinator.log", serve, "coordinator"
        )
        for name in shape.names:
            _make_home(self.home(name), self.link, name, reachable=shape.reachable(name))
            work = ["worker", "run", "--home", str(self.home(name)), "--json-logs"]
            self.members[name] = Member(name, self.logs / f"{name}.log", work, "worker")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def database(self) -> Path:
        return self.run / "coordinator.db"

    @cached_property
    def link(self) -> str:
        return (self.run / "join-link.txt").read_text().strip()

    @cached_property
    def peer_ids(self) -> dict[PeerId, str]:
        """Which worker a PeerID is."""
        names = self.shape.names
        return {Identity.load(self.home(name) / "worker.key").peer_id: name for name in names}

    def home(self, name: str) -> Path:
        return self.folder / name

    # ---- while it runs

    @property
    def coordinator(self) -> Member:
        return self.members[COORDINATOR]

    @property
    def workers(self) -> list[Member]:
        return [self.members[name] for name in self.shape.names]

    def be_quiet(self) -> None:
        """No fault fires any more."""
        (self.logs / QUIET).touch()

    def close(self) -> dict[str, int | None]:
        """End everything, workers first; exit codes by name."""
        for member in self.workers:
            member.ask_to_end()
        codes = {member.name: member.wait() for member in self.workers}
        self.coordinator.ask_to_end()
        return codes | {COORDINATOR: self.coordinator.wait()}


def call(*arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run a ``barnraise`` command to its end.

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "barnraise", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout}\n{done.stderr}"
    return done


def write_dataset(folder: Path, sequences: int) -> None:
    """Text of a Markov chain: learnt a little further with every round, and never wholly.

    After each token eight others may come, the first most often. There is no plateau that two
    runs would share whatever had happened to one of them.
    """
    generator = np.random.default_rng(7)
    branches = 8
    follows = np.stack([generator.permutation(VOCABULARY)[:branches] for _ in range(VOCABULARY)])
    chances = 1 / np.arange(1, branches + 1)
    bounds = np.cumsum(chances / chances.sum())

    def shard(count: int) -> ShardInfo:
        tokens = np.empty((count, SEQUENCE_LENGTH), "<u2")
        tokens[:, 0] = generator.integers(0, VOCABULARY, count)
        for column in range(1, SEQUENCE_LENGTH):
            choice = np.searchsorted(bounds, generator.random(count), side="right")
            tokens[:, column] = follows[tokens[:, column - 1], np.minimum(choice, branches - 1)]
        data = tokens.tobytes()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "shards" / f"{digest}.bin").write_bytes(data)
        return ShardInfo(sha256=digest, sequences=count, bytes=len(data))

    (folder / "shards").mkdir(parents=True)
    tokenizer = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {}}}).encode()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    source = Source(name="chain", licence="CC0-1.0", files=1, documents=1, bytes=1, sha256="0" * 64)
    manifest = DatasetManifest(
        dtype="uint16",
        sequence_length=SEQUENCE_LENGTH,
        vocab_size=VOCABULARY,
        eos_token_id=0,
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        shuffle_seed=7,
        shards=tuple(shard(sequences // SHARDS) for _ in range(SHARDS)),
        validation=shard(256),
        sources=(source,),
        licence="CC0-1.0",
        tokens=sequences * SEQUENCE_LENGTH,
    )
    (folder / "dataset.json").write_bytes(manifest.canonical())


def _make_home(home: Path, link: str, name: str, *, reachable: bool) -> None:
    home.mkdir(parents=True)
    Identity.generate().save(home / "worker.key")
    listen = ("/ip4/127.0.0.1/tcp/0",)
    WorkerConfig(link=link, name=name, device="cpu", client_mode=not reachable, listen=listen).save(
        home / "worker.toml"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def events(log: Path) -> list[dict[str, Any]]:
    """The JSON lines of a log; structlog's and the soak's own."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # cut by a kill
    return found
