"""The run computed again by one process, from the first weights, with nothing but public inputs.

Two questions are answered in this way:

* *Is it the right state?* Every merged unit is trained again from the weights of its round; its
  commitment must be the one that was merged, and the states that follow must have the digests that
  the coordinator signed. Units that were resumed after a kill are among them.
* *How well would it have learnt in peace?* As many rounds, each with as many members and merged
  tokens, which these share evenly: nobody was cut short.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from chaos_soak_facts import Unit, rows, units
from chaos_soak_run import Run
from numpy.typing import NDArray

from protocol.codec import MEAN_SOURCE, decode_chunk, encode_chunk, noise_key
from protocol.combine import combine_chunk
from protocol.dataset import folder_reader, read_manifest
from protocol.manifest import RunManifest
from protocol.outer import outer_step
from protocol.state import describe
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

FloatVector = NDArray[np.float32]
_PROCESSES = 2


@dataclass(frozen=True)
class Task:
    """One unit to be trained again."""

    round: int
    worker: str
    start_batch: int
    steps: int
    seed: int
    tokens_base: int
    weight: int
    root: bytes = b""  # that it was committed to; empty: none was


@dataclass
class State:
    weights: FloatVector
    momentum: FloatVector
    settled: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Settled:
    """What a round that was settled merged."""

    round: int
    settled: int  # after it
    tasks: tuple[Task, ...]  # in roster order
    digest: bytes  # of the state after it


class Replay:
    """Trains units in processes of its own and settles rounds with them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.manifest = RunManifest.parse((run.run / "manifest.json").read_bytes())
        self.batch = self.manifest.inner.sequences_per_batch
        self._pool = ProcessPoolExecutor(
            _PROCESSES, multiprocessing.get_context("spawn"), initializer=_begin
        )

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def first(self) -> State:
        weights = self._pool.submit(_initial, str(self.run.run / "manifest.json")).result()
        return State(weights, np.zeros_like(weights))

    def settle(self, state: State, tasks: Sequence[Task]) -> list[bytes]:
        """Advance a state by one round.

        Returns:
            The commitment of each unit.
        """
        where = (str(self.run.run / "manifest.json"), str(self.run.data))
        jobs = [self._pool.submit(_train, *where, state.weights, task) for task in tasks]
        done = [job.result() for job in jobs]
        mean = self._mean(tasks, [chunks for _, chunks in done])
        state.weights, state.momentum = outer_step(
            state.weights, state.momentum, mean, self.manifest.outer
        )
        state.settled += 1
        state.tokens += sum(task.steps for task in tasks) * self.manifest.tokens_per_step
        return [root for root, _ in done]

    def _mean(self, tasks: Sequence[Task], encoded: list[tuple[bytes, ...]]) -> FloatVector:
        update = self.manifest.update
        elements = self._elements
        layout = ChunkLayout(elements, update.chunk_elements)
        mean = np.empty(elements, np.float32)
        for chunk in range(layout.count):
            size = layout.chunk_size(chunk)
            inputs = [decode_chunk(update.codec, chunks[chunk], size) for chunks in encoded]
            combined = combine_chunk(update.combine, inputs, [task.weight for task in tasks])
            key = noise_key(self.manifest.run_id, tasks[0].round, chunk, MEAN_SOURCE)
            again = encode_chunk(update.codec, combined, key)
            mean[slice(*layout.bounds(chunk))] = decode_chunk(update.codec, again, size)
        return mean

    @property
    def _elements(self) -> int:
        from protocol.model import element_count, parameter_spec

        return element_count(parameter_spec(self.manifest.model_config_json))

    def digest(self, state: State) -> bytes:
        return describe(
            state.weights,
            state.momentum,
            round_=state.settled,
            merged_tokens=state.tokens,
            chunk_elements=self.manifest.update.chunk_elements,
        ).digest

    def loss(self, state: State) -> float:
        where = (str(self.run.run / "manifest.json"), str(self.run.data))
        return self._pool.submit(_evaluate, *where, state.weights).result()


def again(replay: Replay, rounds: Iterable[Settled]) -> list[str]:
    """Compute a run again; what is not as it was signed, empty if nothing."""
    state, wrong = replay.first(), []
    for settled in rounds:
        roots = replay.settle(state, settled.tasks)
        for task, root in zip(settled.tasks, roots, strict=True):
            if root != task.root:
                wrong.append(f"round {task.round}: the unit of {task.worker} is not its training")
        if replay.digest(state) != settled.digest:
            wrong.append(f"round {settled.round}: its units do not lead to the state after it")
            return wrong
    return wrong


def in_peace(replay: Replay, rounds: Iterable[Settled], seed: int) -> list[tuple[int, float]]:
    """Merged tokens and loss of a run in which nobody failed: as many rounds, members and tokens.

    Args:
        seed: where in the data it begins, and the seeds of its units.
    """
    state, losses = replay.first(), []
    batches = replay.run.shape.sequences // replay.batch
    at = np.random.default_rng(seed).integers(0, batches)
    for settled in rounds:
        members = len(settled.tasks)
        total = sum(task.steps for task in settled.tasks)
        tasks = []
        for number, member in enumerate(settled.tasks):
            steps = total // members + (number < total % members)
            if at + steps > batches:
                at = 0
            tasks.append(
                Task(
                    settled.round,
                    member.worker,
                    int(at),
                    steps,
                    seed=int(at),
                    tokens_base=state.tokens,
                    weight=steps,
                )
            )
            at += steps
        replay.settle(state, tasks)
        losses.append((state.tokens, replay.loss(state)))
    return losses


def settled_rounds(run: Run) -> list[Settled]:
    """The run's settled rounds with their merged units, oldest first."""
    by_round: dict[int, dict[str, Unit]] = {}
    for unit in units(run.database):
        if unit.status == "merged":
            by_round.setdefault(unit.round, {})[unit.worker] = unit
    ends = rows(
        run.database,
        "SELECT r.number, s.settled_rounds, s.digest, b.merged_tokens FROM rounds r "
        "JOIN states b ON b.settled_rounds = r.settled_rounds "
        "JOIN states s ON s.settled_rounds = r.settled_rounds + 1 "
        "WHERE r.phase = 'SETTLED' ORDER BY r.number",
    )
    return [
        Settled(number, settled, _tasks(run, number, tokens, by_round[number]), digest)
        for number, settled, digest, tokens in ends
    ]


def _tasks(run: Run, round_: int, tokens_base: int, merged: dict[str, Unit]) -> tuple[Task, ...]:
    """In the order, and with the weights, of the last roster."""
    ((envelope,),) = rows(
        run.database,
        "SELECT envelope FROM rosters WHERE round = ? ORDER BY attempt DESC LIMIT 1",
        round_,
    )
    roster = wire.Roster.FromString(wire.Envelope.FromString(envelope).payload)
    return tuple(
        Task(
            round_,
            member.worker,
            unit.start_batch,
            unit.steps,
            unit.seed,
            tokens_base,
            member.weight,
            unit.root,
        )
        for member in roster.members
        if (unit := merged.get(member.worker)) is not None
    )


# ---- in the pool's processes


def _begin() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@cache
def _manifest(path: str) -> RunManifest:
    return RunManifest.parse(Path(path).read_bytes())


def _initial(manifest: str) -> FloatVector:
    from protocol.model import initial_weights

    return initial_weights(_manifest(manifest))


def _train(
    manifest: str, data: str, weights: FloatVector, task: Task
) -> tuple[bytes, tuple[bytes, ...]]:
    from coordinator.audit import replay

    folder = Path(data)
    batch = _manifest(manifest).inner.sequences_per_batch
    unit = replay.Task(
        task.round,
        task.worker,
        task.start_batch * batch,
        task.steps,
        task.seed,
        task.tokens_base,
    )
    reader = folder_reader(folder, read_manifest(folder))
    done = replay.replay_unit(_manifest(manifest), weights, unit, reader, replay.Execution())
    assert done is not None
    return done.update.root, done.update.chunks


def _evaluate(manifest: str, data: str, weights: FloatVector) -> float:
    from protocol.training import evaluate

    folder = Path(data)
    sequences = folder_reader(folder, read_manifest(folder)).validation(256)
    return evaluate(_manifest(manifest), weights, sequences)
