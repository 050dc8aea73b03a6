"""What a worker costs beside its training: speed, processor and memory, against the bare loop.

A whole run on loopback (coordinator, anchor, one worker, a Llama of four million parameters), and
beside it the same model, batches, threads and niceness in plain PyTorch. The two take turns of some
seconds: while one runs the other is stopped. Speed is of processor time, as in ``bench.train``,
and over whole units: snapshots, encoding and loading the weights are in the worker's. What a unit
costs beside its steps is also told apart: these units are of less than a minute, real ones of many.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.daemon_turns import Turn, Work, fixed_cpu_s, ratios, total, units
from bench.process_cost import own_cpu_s
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
    "one worker on loopback, units of {unit_s:.0f} s; speed by processor time, worker and bare "
    "loop in turns, median (least to most); memory is the most resident at the end of a turn; "
    "load on this machine before: {load:.1f} of {cores} cores"
)
_PATIENCE_S, _LOOK_S = 600.0, 0.02

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
    units: int
    turn_s: float
    paused_s: float


_WHOLE = _Size(256, 688, 5, round_s=45.0, units=3, turn_s=5.0, paused_s=20.0)
_QUICK = _Size(64, 172, 2, round_s=6.0, units=2, turn_s=1.0, paused_s=5.0)


def run(quick: bool) -> list[Row]:
    """Measure and report; ``quick`` only proves that it runs."""
    size = _QUICK if quick else _WHOLE
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, _worker(Path(folder), size) as worker:
        with _bare_loop(worker) as bare:
            rows = _working(worker, bare, size)
        rows += _paused(worker, size)
    note = NOTE.format(unit_s=size.round_s, load=load, cores=os.cpu_count())
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

    def stop_after_a_step(self) -> tuple[Work, int]:
        """Suspend the trainer just after one.

        Returns:
            What it has done in all, and how many units are committed.
        """
        before, until_s = self.status(), time.monotonic() + _PATIENCE_S
        while True:
            now = self.status()
            steps, committed = int(now["steps_done"]), int(now["units_committed"])
            as_before = (steps, committed) == (before["steps_done"], before["units_committed"])
            if now["phase"] == "training" and steps and not as_before:
                self.trainer.suspend()
                tokens = int(now["tokens_committed"]) + steps * _TOKENS_PER_STEP
                return Work(tokens, own_cpu_s(self.trainer)), committed
            assert time.monotonic() < until_s, "it does not train"
            time.sleep(_LOOK_S)

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
        # The unit under way is not counted: when it has ended, all is loaded and has been used.
        process.wait_for('"event": "training"', _PATIENCE_S)
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
    turns: list[Turn] = []
    shares: list[float] = []
    resident: dict[str, float] = {}
    before, committed = worker.stop_after_a_step()
    # From the end of one unit to that of another: one more end than there are units.
    while sum(turn.units_ended for turn in turns) <= size.units:
        others_s, own_s = own_cpu_s(worker.daemon, worker.p2pd), own_cpu_s(worker.trainer)
        worker.trainer.resume()
        time.sleep(size.turn_s)
        # Before we ask it anything: the answers are not its work.
        others_s = own_cpu_s(worker.daemon, worker.p2pd) - others_s
        shares.append(others_s / max(own_cpu_s(worker.trainer) - own_s, 1e-6))
        now, committed_now = worker.stop_after_a_step()
        turns.append(Turn(now - before, _turn_of(bare, size.turn_s), committed_now - committed))
        before, committed = now, committed_now
        _note_resident(resident, worker, bare)
    worker.trainer.resume()
    return [
        *_speed_rows(turns),
        _row("daemon and p2pd, cpu s per cpu s", round(statistics.median(shares), 4), "<= 0.03"),
        _row("sequences at a time", worker.status()["parts"]["tuning"]["micro_batch_sequences"]),
        *_memory_rows(resident),
    ]


def _speed_rows(turns: Sequence[Turn]) -> list[Row]:
    whole, steady = list(units(turns)), [turn for turn in turns if not turn.units_ended]
    per_unit_s = total(turn.ours for turn in whole).cpu_s / sum(one.units_ended for one in whole)
    return [
        _row("worker, tokens per cpu s", round(total(one.ours for one in whole).per_s)),
        _row("bare loop, tokens per cpu s", round(total(one.bare for one in whole).per_s)),
        _ratio_row("worker / bare loop, whole units", whole, ">= 0.97"),
        _ratio_row("worker / bare loop, steps alone", steady),
        _row("cpu s of a unit", round(per_unit_s, 1)),
        _row("cpu s of a unit beside its steps", round(fixed_cpu_s(turns), 2)),
    ]


def _memory_rows(resident: Mapping[str, float]) -> list[Row]:
    above = resident["trainer"] - resident["bare loop"]
    return [
        _row("daemon, MiB resident", round(resident["daemon"]), "<= 400"),
        _row("p2pd, MiB resident", round(resident["p2pd"]), "<= 100"),
        _row("trainer, MiB resident", round(resident["trainer"])),
        _row("bare loop, MiB resident", round(resident["bare loop"])),
        _row("trainer above bare loop, MiB", round(above), "<= 250"),
    ]


def _turn_of(bare: _Bare, seconds: float) -> Work:
    before = bare.now()
    bare.process.send_signal(signal.SIGCONT)
    time.sleep(seconds)
    until_s = time.monotonic() + _PATIENCE_S
    while (after := bare.now())["steps"] == before["steps"]:  # a busy machine
        assert time.monotonic() < until_s, "the bare loop stands still"
        time.sleep(_LOOK_S)
    bare.process.send_signal(signal.SIGSTOP)
    steps = after["steps"] - before["steps"]
    return Work(steps * _TOKENS_PER_STEP, after["cpu_s"] - before["cpu_s"])


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
    cpu_s, begun_s = own_cpu_s(*left), time.monotonic()
    time.sleep(size.paused_s)
    share = (own_cpu_s(*left) - cpu_s) / (time.monotonic() - begun_s)
    resident = sum(process.memory_info().rss for process in left) / MIB
    return [
        _row("paused, processes", len(left)),
        _row("paused, MiB resident", round(resident), "< 150"),
        _row("paused, percent of a core", round(100 * share, 2), "< 1"),
    ]


def _ratio_row(what: str, turns: Sequence[Turn], goal: str = "") -> Row:
    median, least, most = ratios(turns)
    spread = f" ({least:.3f} to {most:.3f}, {len(turns)} of them)"
    return _row(what + spread, round(median, 3), goal)


def _row(what: str, value: float, goal: str = "") -> Row:
    return {"what": what, "value": value, "goal": goal}
