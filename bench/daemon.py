"""What a worker costs beside its training: speed, processor and memory, against the bare loop.

A whole run on loopback (coordinator, anchor, one worker, a Llama of four million parameters), and
beside it the same model, batches, threads and niceness in plain PyTorch. The two take turns of some
seconds: while one runs the other is stopped. Speed is of processor time, as in ``bench.train``,
and over whole rounds: encoding, snapshots and loading the weights are in the worker's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.report import Row, write_report
from worker.config import Home
from worker.control import ask

_TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(_TESTS / "swarm")]

import worker_rig  # noqa: E402

SEQUENCE_LENGTH, SEQUENCES_PER_BATCH = 128, 8
_TOKENS_PER_STEP = SEQUENCE_LENGTH * SEQUENCES_PER_BATCH
MIB = 1 << 20
NOTE = (
    "one worker on loopback; speed by processor time, worker and bare loop in turns; memory is the "
    "most resident at the end of a turn; load on this machine {load:.1f} of {cores} cores"
)
_PATIENCE_S = 600.0

RUN_TOML = """\
[run]
name = "daemon"
[model]
model_type = "llama"
vocab_size = 256
hidden_size = {hidden}
intermediate_size = {intermediate}
num_hidden_layers = {layers}
num_attention_heads = 4
num_key_value_heads = 4
max_position_embeddings = {length}
tie_word_embeddings = true
[training]
sequence_length = {length}
sequences_per_batch = {batch}
max_steps = 2000
[round]
duration_s = {round_s}
grace_s = 60.0
min_members = 1
[verification]
probation_steps = 0
probation_passes = 0
reducer_passes = 0
[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
auditor = false
validation_sequences = 1
anchor_arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
"""


@dataclass(frozen=True)
class _Size:
    hidden: int
    intermediate: int
    layers: int
    round_s: float
    turns: int
    turn_s: float
    paused_s: float


_WHOLE = _Size(256, 688, 5, round_s=60.0, turns=16, turn_s=6.0, paused_s=20.0)
_QUICK = _Size(64, 172, 2, round_s=6.0, turns=4, turn_s=2.0, paused_s=5.0)


def run(quick: bool) -> list[Row]:
    """Measure and report; ``quick`` only proves that it runs."""
    size = _QUICK if quick else _WHOLE
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, _worker(Path(folder), size) as worker:
        with _bare_loop(worker) as bare:
            rows = _working(worker, bare, size)
        rows += _paused(worker, size)
    note = NOTE.format(load=load, cores=os.cpu_count())
    write_report("daemon-quick" if quick else "daemon", rows, note=note)
    return rows


@dataclass
class _Worker:
    """A running one, seen from outside."""

    home: Home
    daemon: psutil.Process

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.home, "status")["status"]
        return found

    def tokens(self) -> int:
        """Trained so far: of units that are committed, and of the one under way."""
        now = self.status()
        under_way = int(now["steps_done"]) if now["phase"] == "training" else 0
        return int(now["tokens_committed"]) + under_way * _TOKENS_PER_STEP

    def child(self, name: str) -> psutil.Process | None:
        for process in self.daemon.children(recursive=True):
            if any(name in part for part in process.cmdline()):
                return process
        return None

    @property
    def trainer(self) -> psutil.Process:
        found = self.child("worker.trainer_process")
        assert found is not None, "the trainer has ended"
        return found

    @property
    def p2pd(self) -> psutil.Process:
        found = self.child("p2pd")
        assert found is not None, "p2pd has ended"
        return found


@contextmanager
def _worker(folder: Path, size: _Size) -> Iterator[_Worker]:
    worker_rig.SEQUENCE_LENGTH = SEQUENCE_LENGTH
    with worker_rig.open_rig(folder) as rig:
        toml = folder / "run.toml"
        model = {"hidden": size.hidden, "intermediate": size.intermediate, "layers": size.layers}
        batch = {"length": SEQUENCE_LENGTH, "batch": SEQUENCES_PER_BATCH}
        toml.write_text(RUN_TOML.format(port=rig.port, round_s=size.round_s, **model, **batch))
        worker_rig.write_dataset(folder / "data")
        arguments = ("--config", str(toml), "--data", str(folder / "data"))
        worker_rig.barnraise("coordinator", "init", *arguments, "--run-dir", str(rig.run))
        rig.link = (rig.run / "join-link.txt").read_text().strip()
        rig.serve().wait_for("Serving", _PATIENCE_S)
        rig.join("w0")
        process = rig.work("w0")
        process.wait_for('"event": "committed"', _PATIENCE_S)  # all is loaded and has been used
        yield _Worker(Home(rig.home("w0")), psutil.Process(process.popen.pid))


@dataclass
class _Bare:
    """The loop without us; stopped unless it is its turn."""

    process: subprocess.Popen[str]
    log: Path

    def now(self) -> dict[str, Any]:
        last: dict[str, Any] = json.loads(self.log.read_text().splitlines()[-1])
        return last


@contextmanager
def _bare_loop(worker: _Worker) -> Iterator[_Bare]:
    manifest, log = worker.home.manifest, worker.home.path / "bare.log"
    command = [sys.executable, "-m", "bench.bare_loop", str(manifest), "1"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, str(worker.trainer.nice())],
            stdout=output,
            text=True,
            env=worker_rig.ENVIRONMENT,
        )
    try:
        while log.read_text().count("\n") < 3:
            time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        yield _Bare(process, log)
    finally:
        process.kill()
        process.wait()


def _working(worker: _Worker, bare: _Bare, size: _Size) -> list[Row]:
    ours, theirs, beside_s = _Rate(), _Rate(), 0.0
    resident: dict[str, float] = {}
    worker.trainer.suspend()
    begun_at = worker.tokens()
    for _ in range(size.turns):
        cpu_s, others_s = _cpu_s(worker.trainer), _cpu_s(worker.daemon, worker.p2pd)
        worker.trainer.resume()
        time.sleep(size.turn_s)
        worker.trainer.suspend()
        ours.cpu_s += _cpu_s(worker.trainer) - cpu_s
        beside_s += _cpu_s(worker.daemon, worker.p2pd) - others_s
        _turn_of(bare, size.turn_s, theirs)
        _note_resident(resident, worker, bare)
    ours.tokens = worker.tokens() - begun_at
    worker.trainer.resume()
    above = resident["trainer"] - resident["bare loop"]
    return [
        _row("worker, tokens per cpu s", round(ours.per_s)),
        _row("bare loop, tokens per cpu s", round(theirs.per_s)),
        _row("worker / bare loop", round(ours.per_s / theirs.per_s, 3), ">= 0.97"),
        _row("daemon and p2pd, cpu s per cpu s", round(beside_s / ours.cpu_s, 4), "<= 0.03"),
        _row("daemon, MiB resident", round(resident["daemon"]), "<= 400"),
        _row("p2pd, MiB resident", round(resident["p2pd"]), "<= 100"),
        _row("trainer, MiB resident", round(resident["trainer"])),
        _row("bare loop, MiB resident", round(resident["bare loop"])),
        _row("trainer above bare loop, MiB", round(above), "<= 250"),
    ]


def _turn_of(bare: _Bare, seconds: float, rate: _Rate) -> None:
    before = bare.now()
    bare.process.send_signal(signal.SIGCONT)
    time.sleep(seconds)
    bare.process.send_signal(signal.SIGSTOP)
    after = bare.now()
    rate.tokens += (after["steps"] - before["steps"]) * _TOKENS_PER_STEP
    rate.cpu_s += after["cpu_s"] - before["cpu_s"]


@dataclass
class _Rate:
    tokens: int = 0
    cpu_s: float = 0.0

    @property
    def per_s(self) -> float:
        return self.tokens / max(self.cpu_s, 1e-6)


def _note_resident(most: dict[str, float], worker: _Worker, bare: _Bare) -> None:
    processes = {
        "trainer": worker.trainer,
        "bare loop": psutil.Process(bare.process.pid),
        "daemon": worker.daemon,
        "p2pd": worker.p2pd,
    }
    for name, process in processes.items():
        most[name] = max(most.get(name, 0.0), process.memory_info().rss / MIB)


def _paused(worker: _Worker, size: _Size) -> list[Row]:
    """Everything that is left of it when its owner has paused it."""
    ask(worker.home, "pause")
    until_s = time.monotonic() + _PATIENCE_S
    while not worker.status()["asleep"]:
        assert time.monotonic() < until_s, "it does not fall asleep"
        time.sleep(0.5)
    time.sleep(2.0)  # what it does at its start is not what it does at rest
    left = [worker.daemon, *worker.daemon.children(recursive=True)]
    cpu_s, begun_s = _cpu_s(*left), time.monotonic()
    time.sleep(size.paused_s)
    share = (_cpu_s(*left) - cpu_s) / (time.monotonic() - begun_s)
    resident = sum(process.memory_info().rss for process in left) / MIB
    return [
        _row("paused, processes", len(left)),
        _row("paused, MiB resident", round(resident), "< 150"),
        _row("paused, percent of a core", round(100 * share, 2), "< 1"),
    ]


def _cpu_s(*processes: psutil.Process) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def _row(what: str, value: float, goal: str = "") -> Row:
    return {"what": what, "value": value, "goal": goal}
