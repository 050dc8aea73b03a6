"""What a lost reducer costs a round: from the last commit to new weights, undisturbed and not.

Eight real workers through the command line, the coordinator and its anchor, on loopback; a Llama
of about 25 million parameters at int8, one inner step a round. In the disturbed rounds one worker
that reduces is killed with ``kill -9``, in GATHER and in BROADCAST, at an exact chunk of it. Times
are the coordinator's: from the last ``committed`` to ``round_settled``.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.report import Row, write_report

_TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(_TESTS / "chaos"), str(_TESTS / "swarm")]

from chaos_faulty import program  # noqa: E402
from worker_rig import SEQUENCE_LENGTH, Process, Rig, barnraise, write_dataset  # noqa: E402

MEMBERS, UNDISTURBED = 8, 5
VICTIM = "w0"
DEATHS: dict[str, dict[str, Any]] = {
    "one reducer killed in GATHER": {"point": "reducer.keep", "do": "kill", "nth": 20},
    "one reducer killed in BROADCAST": {"point": "reducer.combine", "do": "kill", "nth": 4},
}
NOTE = (
    f"{MEMBERS} members, {{elements:,}} elements at int8; seconds from the last commit to the "
    "settled round; killed: a worker that reduces an equal share"
)
_PATIENCE_S = 900.0

RUN_TOML = """\
[run]
name = "lost-reducer"
[model]
model_type = "llama"
vocab_size = 256
hidden_size = {hidden}
intermediate_size = {intermediate}
num_hidden_layers = {layers}
num_attention_heads = 8
num_key_value_heads = 8
max_position_embeddings = {length}
tie_word_embeddings = true
[training]
sequence_length = {length}
sequences_per_batch = 1
max_steps = 1
[round]
duration_s = 600.0
grace_s = 600.0
min_members = {members}
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


def run(quick: bool) -> None:
    """Measure and report."""
    small = {"hidden": 64, "intermediate": 172, "layers": 2}
    large = {"hidden": 512, "intermediate": 1368, "layers": 8}
    members, rounds = (3, 2) if quick else (MEMBERS, UNDISTURBED)
    with (
        tempfile.TemporaryDirectory() as folder,
        _swarm(Path(folder), members, **(small if quick else large)) as swarm,
    ):
        rows = _measure(swarm, rounds)
        elements = swarm.elements
    write_report(
        "lost_reducer-quick" if quick else "lost_reducer", rows, note=NOTE.format(elements=elements)
    )


class _Swarm(Rig):
    """The rig of the tests with a model of another size."""

    elements = 0

    def make(self, members: int, **model: int) -> None:
        toml = self.folder / "run.toml"
        toml.write_text(
            RUN_TOML.format(port=self.port, members=members - 1, length=SEQUENCE_LENGTH, **model)
        )
        write_dataset(self.folder / "data")
        arguments = ("--config", str(toml), "--data", str(self.folder / "data"))
        made = barnraise("coordinator", "init", *arguments, "--run-dir", str(self.run), "--json")
        answer = json.loads(made.stdout)
        self.link, self.elements = answer["join_link"], answer["parameters"]
        self.coordinator = self.serve()
        self.coordinator.wait_for("Serving", _PATIENCE_S)
        self.names = [f"w{number}" for number in range(members)]
        for name in self.names:
            self.join(name)

    def settled(self) -> Iterator[tuple[int, int, float]]:
        """Rounds that are settled: number, members, seconds since the last commit."""
        last: dict[int, float] = {}
        for line in self.coordinator.text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "committed":
                last[event["round"]] = _time_s(event)
            elif event.get("event") == "round_settled":
                number = event["round"]
                yield number, event["members"], _time_s(event) - last[number]


@contextmanager
def _swarm(folder: Path, members: int, **model: int) -> Iterator[_Swarm]:
    swarm = _Swarm(folder)
    try:
        swarm.make(members, **model)
        yield swarm
    finally:
        swarm.close()


def _measure(swarm: _Swarm, rounds: int) -> list[Row]:
    for name in swarm.names[1:]:
        swarm.work(name)
    members = len(swarm.names)
    rows: list[Row] = []
    undisturbed: dict[int, float] = {}  # seconds by round
    killed_in: set[int] = set()
    for case, death in DEATHS.items():
        victim = swarm.work(VICTIM, program=program("chaos_points_reduce", _later(swarm, death)))
        died_in = _wait_for_death(victim)
        killed_in.add(died_in)
        times = {number: (size, took_s) for number, size, took_s in _until(swarm, died_in)}
        whole = {n: took_s for n, (size, took_s) in times.items() if size == members}
        undisturbed |= {n: took_s for n, took_s in whole.items() if n not in killed_in}
        size, took_s = times[died_in]
        rows.append({"case": case, "members_merged": size, "seconds": took_s})
        victim.log.unlink()
    base_s = statistics.median(undisturbed.values())
    rows.insert(
        0,
        {
            "case": f"undisturbed, median of {len(undisturbed)} rounds",
            "members_merged": members,
            "seconds": base_s,
        },
    )
    return [{**row, "ratio": float(str(row["seconds"])) / base_s} for row in rows]


def _later(swarm: _Swarm, death: dict[str, Any]) -> dict[str, Any]:
    """The same, but some whole rounds after the victim has joined."""
    done = max((number for number, _, _ in swarm.settled()), default=-1)
    return {**death, "where": {**death.get("where", {}), "round": done + 2 + UNDISTURBED}}


def _wait_for_death(victim: Process) -> int:
    victim.wait_for('"fault_fired"', _PATIENCE_S)
    assert victim.wait() == -signal.SIGKILL
    line = next(line for line in victim.text().splitlines() if "fault_fired" in line)
    return int(json.loads(line)["round"])


def _until(swarm: _Swarm, round_: int) -> list[tuple[int, int, float]]:
    end_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        found = list(swarm.settled())
        if any(number == round_ for number, _, _ in found):
            return found
        time.sleep(0.2)
    raise TimeoutError(f"round {round_} did not settle")


def _time_s(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()
