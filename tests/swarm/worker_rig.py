"""A whole tiny run with real processes on loopback: coordinator, anchor, workers.

Everything is driven through the command line, as a person would do it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from protocol.dataset import DatasetManifest, ShardInfo, Source
from protocol.identity import Identity
from protocol.leash import leashed

__all__ = ["Identity", "Process", "Rig", "barnraise", "open_rig"]

VOCABULARY = 256
SEQUENCE_LENGTH = 32
SEQUENCES = 4096
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

RUN_TOML = """\
[run]
name = "tiny"
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
overlap = "{overlap}"
[outer]
learning_rate = {outer_learning_rate}
momentum = {outer_momentum}
[round]
duration_s = {duration_s}
grace_s = {grace_s}
gather_s = {gather_s}
broadcast_s = 10.0
min_members = {min_members}
max_rounds = {max_rounds}
[update]
codec = "{codec}"
combine = "{combine}"
chunk_elements = 4096
[verification]
probation_steps = {probation_steps}
probation_passes = 0
reducer_passes = {reducer_passes}
[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
public_url = "{public_url}"
auditor = {auditor}
heartbeat_s = 0.5
anchor_arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
"""
SETTINGS: dict[str, Any] = {
    **{"max_steps": 20, "duration_s": 6.0, "grace_s": 3.0, "min_members": 1},
    **{"max_rounds": 3, "codec": "int8", "combine": "mean", "public_url": "", "gather_s": 10.0},
    **{"overlap": "none", "outer_learning_rate": 0.7, "outer_momentum": 0.9},
    # For tests that are not about audits: everybody is trusted from the start.
    **{"probation_steps": 0, "reducer_passes": 0, "auditor": "false"},
}
"""Of a run, where a test says nothing else."""


def write_dataset(folder: Path) -> None:
    """Counting sequences with a little noise: learnt within a few steps."""
    rng = np.random.default_rng(7)

    def shard(count: int) -> ShardInfo:
        starts = rng.integers(0, VOCABULARY, (count, 1))
        steps = rng.integers(1, 4, (count, 1))
        tokens = (starts + steps * np.arange(SEQUENCE_LENGTH)) % VOCABULARY
        data = tokens.astype("<u2").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "shards" / f"{digest}.bin").write_bytes(data)
        return ShardInfo(sha256=digest, sequences=count, bytes=len(data))

    (folder / "shards").mkdir(parents=True)
    tokenizer = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {}}}).encode()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    shards = (shard(SEQUENCES // 2), shard(SEQUENCES // 2))
    manifest = DatasetManifest(
        dtype="uint16",
        sequence_length=SEQUENCE_LENGTH,
        vocab_size=VOCABULARY,
        eos_token_id=0,
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        shuffle_seed=7,
        shards=shards,
        validation=shard(64),
        sources=(
            Source(
                name="counting", licence="CC0-1.0", files=1, documents=1, bytes=1, sha256="0" * 64
            ),
        ),
        licence="CC0-1.0",
        tokens=SEQUENCES * SEQUENCE_LENGTH,
    )
    (folder / "dataset.json").write_bytes(manifest.canonical())


def barnraise(
    *arguments: str, check: bool = True, inside: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ``inside`` is put before it."""
    done = subprocess.run(
        [*inside, sys.executable, "-m", "barnraise", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"{arguments} failed:\n{done.stdout}\n{done.stderr}")
    return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One command in its own session, its output in a file; ``inside`` is put before it."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        program: Sequence[str] = ("-m", "barnraise"),
        inside: Sequence[str] = (),
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                leashed([*inside, sys.executable, *program, *arguments]),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def interrupt_group(self) -> None:
        """Ctrl-C as a terminal sends it: to the whole process group."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def wait(self, timeout_s: float = 150.0) -> int:
        return self.popen.wait(timeout_s)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 150.0, *, count: int = 1) -> str:
        """The output's ``count``-th match; processes tell their state in their logs."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            found = re.findall(pattern, self.text())
            if len(found) >= count:
                return str(found[count - 1])
            if self.popen.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} did not appear ({count}x) in:\n{self.text()[-6000:]}")

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Rig:
    """Starts and ends the processes of one run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.port = free_port()
        self.link = ""
        self.processes: list[Process] = []

    def init(self, **settings: Any) -> None:
        toml = self.folder / "run.toml"
        toml.write_text(RUN_TOML.format(port=self.port, **{**SETTINGS, **settings}))
        write_dataset(self.folder / "data")
        arguments = ("--config", str(toml), "--data", str(self.folder / "data"))
        barnraise("coordinator", "init", *arguments, "--run-dir", str(self.run))
        self.link = (self.run / "join-link.txt").read_text().strip()

    def start(self, name: str, *arguments: str, **options: Any) -> Process:
        process = Process(self.folder / f"{name}.log", *arguments, **options)
        self.processes.append(process)
        return process

    def serve(self, **how: Any) -> Process:
        serve = ("coordinator", "serve", "--run-dir", str(self.run))
        return self.start("coordinator", *serve, **how)

    def home(self, name: str) -> Path:
        return self.folder / name

    def join(self, name: str, *options: str) -> None:
        listen = () if "--client-mode" in options else ("--listen", "/ip4/127.0.0.1/tcp/0")
        home = (
            "--home",
            str(self.home(name)),
            "--name",
            name,
            "--threads",
            "1",
            "--yes",
            "--dedicated",
        )
        barnraise("worker", "join", self.link, *home, *listen, *options)

    def work(self, name: str, *options: str, **how: Any) -> Process:
        home = ("--home", str(self.home(name)))
        return self.start(name, "worker", "run", *home, "--json-logs", *options, **how)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.end()


@contextmanager
def open_rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    try:
        yield rig
    finally:
        rig.close()
